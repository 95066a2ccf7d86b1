"""Floats of fewer bits: the top of the mantissa, and a limited range of exponents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal.gradients import straight_through
from ggjax.baselines._reparameterization import Mask, check_whole, flatten

MANTISSA, EXPONENT = 23, 8
"""Bits of a float32."""

_MAGNITUDE, _INFINITE = 0x7FFFFFFF, 255


def round_floats(
    params: Any,
    mantissa_bits: ArrayLike,
    exponent_bits: ArrayLike = EXPONENT,
    *,
    nearest: bool = False,
    mask: Mask = "kernels",
) -> Any:
    """Weights with fewer bits of mantissa and exponent, in every leaf alike.

    The gradient passes straight through. This is what BitWave's controller (``bitwave_update``) sets the bit
    lengths of. The number kept has 1 + exponent_bits + mantissa_bits bits:

    - The mantissa is cut after so many bits (the paper's choice), or rounded there: ties away from zero.
    - The exponents are the 2^exponent_bits - 1 below and at the largest exponent of the leaf, and one code
      means zero. Values below become zero; a value that rounding carries above becomes the largest one. (Where
      the range lies is our choice.)

    With 23 and 8 bits float32 weights stay as they are, but for subnormal ones, which become zero.

    Args:
      params: a tree of arrays. float64 leaves are rounded to float32 on the way.
      mantissa_bits: 0 to 23, a whole number; may be traced.
      exponent_bits: 1 to 8, a whole number; may be traced.
      nearest: round instead of cutting.
      mask: the leaves to round: "kernels", a tree of bools, a prefix of one, or a function from params to one.

    Returns:
      A tree like params.

    Raises:
      ValueError: bit lengths out of range, no floating leaf, a mask that does not fit, a NaN or infinite weight
        (where it is known; under jit it stays what it is).

    >>> w = jnp.array([[1.7, -0.3, 1e-6]])
    >>> round_floats({"w": w}, 1, 3)["w"].tolist()
    [[1.5, -0.25, 0.0]]
    """
    check_whole("mantissa_bits", mantissa_bits, 0, MANTISSA)
    check_whole("exponent_bits", exponent_bits, 1, EXPONENT)
    lengths = [jnp.asarray(n).astype(np.int32) for n in (mantissa_bits, exponent_bits)]
    flat = flatten(params, mask)

    def rounded(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        near = straight_through(as_float(x, *lengths, nearest=nearest).astype(x.dtype), x)
        return jnp.where(jnp.isfinite(x), near, x)

    return flat.replace(map(rounded, flat.weights()))


def as_float(x: jax.Array, mantissa: jax.Array, exponent: jax.Array, *, nearest: bool = False) -> jax.Array:
    """The values in that format, float32, without their gradient. Bit lengths are int32 scalars."""
    bits, size, *_ = _parts(x, mantissa, exponent, nearest)
    return lax.bitcast_convert_type((bits & ~_MAGNITUDE) | size, jnp.float32)


def float_levels(x: jax.Array, mantissa: jax.Array, exponent: jax.Array, *, nearest: bool = False) -> jax.Array:
    """The values in that format as int32: 0, 1, 2, ... by rising magnitude, with the sign of the value."""
    bits, size, least, drop = _parts(x, mantissa, exponent, nearest)
    number = jnp.where(size > 0, (size >> drop) - (least >> drop) + 1, 0)
    return jnp.where(bits < 0, -number, number)


@functools.partial(jax.jit, static_argnums=3)  # outside jit, constants do not lie on the mesh of the weights
def _parts(x: jax.Array, mantissa: jax.Array, exponent: jax.Array, nearest: bool) -> tuple[jax.Array, ...]:
    """The bits of the weights, of the rounded magnitudes and of the smallest one, and how many are cut."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(x).astype(jnp.float32), jnp.int32)
    size = bits & _MAGNITUDE
    finite = size >> MANTISSA < _INFINITE
    top = jnp.max(jnp.where(finite, size, 0), initial=0) >> MANTISSA
    drop = MANTISSA - mantissa
    one = jnp.ones((), jnp.int32)
    largest = (((top + 1) << mantissa) - 1) << drop
    least = jnp.maximum(top - ((one << exponent) - 2), 1) << MANTISSA
    half = (one << drop) >> 1 if nearest else jnp.zeros((), jnp.int32)
    cut = jnp.minimum((jnp.where(finite, size, 0) + half) >> drop << drop, largest)
    return bits, jnp.where(finite, jnp.where(cut < least, 0, cut), size), least, drop


def format_bits(dtype: Any) -> tuple[int, int]:
    """Mantissa and exponent bits of a dtype, at most those of float32."""
    info = jnp.finfo(dtype)
    return min(int(info.nmant), MANTISSA), min(int(info.nexp), EXPONENT)


def check_format(name: str, leaf: Any) -> None:
    """Raise ValueError naming the leaf unless its floats can be taken apart: 16 or 32 bits."""
    if jnp.finfo(leaf.dtype).bits not in (16, 32):
        raise ValueError(f"leaf {name!r}: expected float32, bfloat16 or float16, got {leaf.dtype}")


def exponents_of(x: ArrayLike) -> jax.Array:
    """The exponent field of every float as it is stored: uint8, 0 for zero and subnormals, all ones for NaN."""
    x = jnp.asarray(x)
    word = jnp.uint32 if jnp.finfo(x.dtype).bits == 32 else jnp.uint16
    mantissa, exponent = format_bits(x.dtype)
    bits = lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    return ((bits >> mantissa) & np.uint32((1 << exponent) - 1)).astype(jnp.uint8)
