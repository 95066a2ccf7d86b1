"""What a multiplier for RF8 weights has to do, in whole numbers: two shifts and an addition."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import trees
from ggjax.rf8._array import RF8Array, check_form
from ggjax.rf8._format import NOT_FINITE, RESIDUALS

FRACTION = 4
"""Binary places of a product: the smallest residual is a sixteenth."""

MOST = 2**11
"""The largest size of x: with it, no product leaves int32."""

# Of each residual code: whether its second digit is added (1), subtracted (-1) or missing (0), and how far
# below the power of two it lies.
_SIGNS = np.sign(RESIDUALS).astype(np.int32)
_PLACES = np.array([-math.log2(abs(r)) if r else 0 for r in RESIDUALS], np.int32)


class MultiplyAdds(NamedTuple):
    """Products in whole numbers, and the operations that each took; int32 arrays of one shape."""

    products: jax.Array  # x w = products 2^(exponent - 4), exactly
    shifts: jax.Array  # 0, 1 or 2
    additions: jax.Array  # 0 or 1; a subtraction counts as one


def multiply_adds(x: ArrayLike, q: RF8Array) -> MultiplyAdds:
    """The products of whole numbers with RF8 weights, bit by bit as a multiplier of two shifters and an adder.

    A weight is plus or minus 2^E (1 + residual), times the 2^exponent that it shares with others. So its
    product with x is x shifted by E, and x shifted by E and the place of the residual, added or subtracted.
    Four binary places are kept, which makes every product exact. What is added up over a dot product is not
    counted: a multiply-add of any format has that addition too.

    >>> from ggjax.rf8 import encode
    >>> q = encode(jnp.array([0.75, 1.0, -1.125, 0.0]))
    >>> found = multiply_adds(jnp.int32(100), q)
    >>> (np.asarray(found.products) * 2.0 ** (np.asarray(q.exponents) - 4.0)).tolist()
    [75.0, 100.0, -112.5, 0.0]
    >>> found.shifts.tolist(), found.additions.tolist()
    ([2, 1, 2, 0], [1, 0, 1, 0])

    Args:
      x: whole numbers from -2048 to 2048, of an integer dtype; broadcast against q.
      q: encoded weights.

    Returns:
      A ``MultiplyAdds`` of the shape to which x and q broadcast. A weight of 0 takes no operation, a power of
      two one shift.

    Raises:
      TypeError: x is not of an integer dtype, or q is not an ``RF8Array``.
      ValueError: an x out of range, or an exponent that stands for weights that were not finite (where they are
        known; under jit, products of such are without meaning); shapes that do not broadcast.

    References:
      arXiv 2506.00486, version 3, claims the multiplier; the bytes and this form of it are this package's own.
    """
    check_form(q, "q")
    numbers = np.asarray(x) if type(x) is int else x
    if not isinstance(numbers, jax.Array | np.ndarray | np.generic) or not jnp.issubdtype(
        numbers.dtype, jnp.integer
    ):
        raise TypeError(
            f"x must be whole numbers of an integer dtype, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    if trees.is_concrete(numbers) and numbers.size:
        known = np.asarray(numbers)  # by NumPy, as operations of JAX on known arrays are traced under jit
        for value in (int(known.min()), int(known.max())):
            if abs(value) > MOST:
                raise ValueError(f"x must lie between -{MOST} and {MOST}, got {value}")
    if trees.is_concrete(q.exponents) and bool(np.any(np.asarray(q.exponents) == NOT_FINITE)):
        raise ValueError(
            f"q has the exponent {NOT_FINITE}: it was encoded from weights that were not all finite"
        )
    shape = jnp.broadcast_shapes(numbers.shape, q.shape)
    return _multiply(jnp.broadcast_to(numbers, shape).astype(jnp.int32), jnp.broadcast_to(q.codes, shape))


@jax.jit
def _multiply(x: jax.Array, codes: jax.Array) -> MultiplyAdds:
    code = codes.astype(jnp.int32)
    present, residual = (code & 127) != 0, code & 7
    place, sign = jnp.asarray(_PLACES)[residual], jnp.asarray(_SIGNS)[residual]
    first = lax.shift_left(x, (code >> 3 & 15) + FRACTION)
    second = lax.shift_left(x, (code >> 3 & 15) + FRACTION - place)
    total = jnp.where(sign > 0, first + second, jnp.where(sign < 0, first - second, first))
    total = jnp.where(code >> 7 != 0, -total, total)
    additions = jnp.where(present, jnp.abs(sign), 0)
    return MultiplyAdds(jnp.where(present, total, 0), jnp.where(present, 1, 0) + additions, additions)
