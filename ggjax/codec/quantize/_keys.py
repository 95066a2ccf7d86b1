"""Keys: every weight as an unsigned 32-bit number, and back.

Three kinds of key, by what is kept of a weight w:

- "uniform": its level q = round(w / step), halves to even, as a 32-bit two's complement number.
- "rf8": its RF8 code, the sign moved to the end: 0 for zero, otherwise 2 (code & 127) + sign - 1.
- "lossless": all bits of a float32, bfloat16 or float16, the sign moved to the end: 2 m + sign, where m are the
  bits below the sign, less ``zeros`` trailing bits that are 0 in the whole part. Neighbouring keys are
  neighbouring magnitudes, so a window of keys is a range of exponents.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Kind = Literal["uniform", "rf8", "lossless"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CODED = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
"""The dtypes that are coded; others are kept as they are."""

LOSSLESS = {"float32": 23, "bfloat16": 7, "float16": 10}
"""The dtypes of the lossless kind, and their mantissa bits."""


def _bits_dtype(dtype: Any) -> Any:
    return jnp.uint32 if jnp.dtype(dtype).itemsize == 4 else jnp.uint16


def keys_of(x: jax.Array, kind: Kind, step: jax.Array, dead_zone: jax.Array, zeros: jax.Array) -> jax.Array:
    """The keys of weights (of RF8 codes, for that kind), uint32 of the same shape. Traceable."""
    if kind == "rf8":
        code = x.astype(jnp.uint32)
        return jnp.where(code == 0, 0, ((code & 127) << 1) + (code >> 7) - 1)
    if kind == "lossless":
        bits = lax.bitcast_convert_type(x, _bits_dtype(x.dtype))
        width = 8 * bits.dtype.itemsize
        bits = bits.astype(jnp.uint32)
        magnitude = bits & jnp.uint32((1 << (width - 1)) - 1)
        return (magnitude >> zeros.astype(jnp.uint32)) << 1 | bits >> (width - 1)
    t = x.astype(jnp.float32) / step
    shrunk = jnp.sign(t) * jnp.floor(jnp.abs(t) + (0.5 - dead_zone))
    level = jnp.where(dead_zone > 0, shrunk, jnp.round(t))
    return lax.bitcast_convert_type(level.astype(jnp.int32), jnp.uint32)


def values_of(
    key: jax.Array, kind: Kind, dtype: Any, step: jax.Array, centroids: jax.Array, zeros: jax.Array
) -> jax.Array:
    """The weights (RF8 codes, uint8, for that kind) that keys stand for. Traceable.

    Args:
      key: uint32, any shape.
      kind: the kind of key.
      dtype: of the weights.
      step: float32 scalar, for "uniform".
      centroids: float32 (m,): what to add to |q| for |q| = 1, ..., m (the last also beyond); may be empty.
      zeros: uint32 scalar, for "lossless".
    """
    if kind == "rf8":
        code = (key + 1) >> 1 | (((key + 1) & 1) << 7)
        return jnp.where(key == 0, 0, code).astype(jnp.uint8)
    if kind == "lossless":
        return lax.bitcast_convert_type(bits_of(key, dtype, zeros), dtype)
    level = lax.bitcast_convert_type(key, jnp.int32)
    number = level.astype(jnp.float32)
    if centroids.size:  # added before the product: one after it could be fused with it, and rounded otherwise
        size = jnp.where(level < 0, 0 - key, key)
        index = jnp.minimum(jnp.maximum(size, 1) - 1, jnp.uint32(centroids.shape[0] - 1))
        number = number + jnp.sign(number) * centroids.at[index].get(mode="promise_in_bounds")
    largest = min(float(jnp.finfo(dtype).max), float(jnp.finfo(jnp.float32).max))
    return jnp.clip(number * step, -largest, largest).astype(dtype)


def bits_of(key: jax.Array, dtype: Any, zeros: jax.Array) -> jax.Array:
    """The bits of the weights of lossless keys, uint16 or uint32. Traceable.

    On the way through other operations a NaN is safe as bits only: a device may widen a 16-bit type and back.
    """
    width = 8 * jnp.dtype(_bits_dtype(dtype)).itemsize
    bits = (key >> 1) << zeros.astype(jnp.uint32) | (key & 1) << (width - 1)
    return bits.astype(_bits_dtype(dtype))


def trailing_zeros(bits: np.ndarray, dtype: str) -> np.ndarray:
    """How many bits at the end of unsigned numbers are 0: at most those of the mantissa of a dtype."""
    lowest = bits & (~bits + np.ones_like(bits))  # the lowest bit that is not 0
    place = np.frexp(lowest.astype(np.float64))[1] - 1  # -1 for none
    return np.where(place < 0, LOSSLESS[dtype], np.minimum(place, LOSSLESS[dtype]))
