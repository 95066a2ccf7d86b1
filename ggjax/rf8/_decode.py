"""From RF8 back to weights."""

import jax
from jax.typing import DTypeLike

from ggjax._internal import trees
from ggjax.rf8._array import RF8Array, check_form
from ggjax.rf8._format import floats


def decode(q: RF8Array, dtype: DTypeLike | None = None) -> jax.Array:
    """The array that the codes stand for.

    Args:
      q: what ``encode`` gave.
      dtype: a floating dtype; None for that of the encoded array. float32, bfloat16 and float64 hold every RF8
        value exactly; in float16 and in floats of 8 bits, values outside the range overflow or lose digits as
        in any cast.

    Raises:
      TypeError: q is not an ``RF8Array`` of uint8 codes and int8 exponents, or dtype is not a floating one of
        at least 8 bits.
      ValueError: the shape of the exponents does not fit that of the codes.

    >>> import jax.numpy as jnp
    >>> from ggjax.rf8 import encode
    >>> decode(encode(jnp.array([0.7, 0.1])), jnp.bfloat16).tolist()
    [0.75, 0.09375]
    """
    check_form(q, "q")
    dtype = q.dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
    if not trees.is_weight_dtype(dtype):
        raise TypeError(f"dtype must be a floating one of at least 8 bits, got {dtype}")
    return floats(q.codes, q.exponents, dtype)
