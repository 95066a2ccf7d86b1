"""Keys: every weight as an unsigned 32-bit number, and back.

Three kinds of key, by what is kept of a weight w:

- "uniform": its level q = round(w / step), halves to even, as a 32-bit two's complement number.
- "rf8": its RF8 code, the sign moved to the end: 0 for zero, otherwise 2 (code & 127) + sign - 1.
- "lossless": all bits of a float32, bfloat16 or float16, the sign moved to the end: 2 m + sign, where m are the
  bits below the sign, less ``zeros`` trailing bits that are 0 in the whole part. Neighbouring keys are
  neighbouring magnitudes, so a window of keys is a range of exponents.
"""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec._host import namespace_of

Kind = Literal["uniform", "rf8", "lossless"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CODED = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
"""The dtypes that are coded; others are kept as they are."""

LOSSLESS = {"float32": 23, "bfloat16": 7, "float16": 10}
"""The dtypes of the lossless kind, and their mantissa bits."""


MIN_SIZE = 1024
"""Arrays with fewer elements are kept as they are."""


def is_codable(x: Any, kind: Kind) -> bool:
    """Whether an array is coded; others are kept as they are."""
    if not hasattr(x, "shape") or math.prod(x.shape) < MIN_SIZE:
        return False
    return str(x.dtype) in (LOSSLESS if kind == "lossless" else CODED)


def _bits_dtype(dtype: Any) -> Any:
    return jnp.uint32 if jnp.dtype(dtype).itemsize == 4 else jnp.uint16


def _same_bits(x: Any, dtype: Any) -> Any:
    return x.view(dtype) if isinstance(x, np.ndarray) else lax.bitcast_convert_type(x, dtype)


def keys_of(x: Any, kind: Kind, step: Any, dead_zone: Any, zeros: Any) -> Any:
    """The keys of weights (of RF8 codes, for that kind), uint32 of the same shape.

    Args:
      x: NumPy or JAX array; JAX ones may be traced.
      kind: the kind of key.
      step: float32 scalar, for "uniform".
      dead_zone: float32 scalar, for "uniform": levels are sign(w) floor(|w| / step + 1/2 - dead_zone).
      zeros: uint32 scalar, for "lossless".
    """
    xp = namespace_of(x)
    if kind == "rf8":
        code = x.astype(np.uint32)
        return xp.where(code == 0, xp.uint32(0), ((code & 127) << 1) + (code >> 7) - 1)
    if kind == "lossless":
        bits = _same_bits(x, _bits_dtype(x.dtype))
        width = 8 * bits.dtype.itemsize
        bits = bits.astype(np.uint32)
        magnitude = bits & xp.uint32((1 << (width - 1)) - 1)
        return (magnitude >> xp.uint32(zeros)) << 1 | bits >> (width - 1)
    t = x.astype(np.float32) / step
    shrunk = xp.sign(t) * xp.floor(xp.abs(t) + (np.float32(0.5) - dead_zone))
    level = xp.where(dead_zone > 0, shrunk, xp.round(t))
    return _same_bits(level.astype(np.int32), np.uint32)


def values_of(
    key: jax.Array, kind: Kind, dtype: Any, step: jax.Array, centroids: jax.Array, zeros: jax.Array
) -> jax.Array:
    """What keys stand for: weights of a dtype; for "rf8" codes, uint8; for "lossless" the bits of the weights,
    uint16 or uint32. Traceable.

    On the way through other operations a NaN is safe as bits only: a device may widen a 16-bit type and back.

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
        width = 8 * jnp.dtype(_bits_dtype(dtype)).itemsize
        bits = (key >> 1) << zeros.astype(jnp.uint32) | (key & 1) << (width - 1)
        return bits.astype(_bits_dtype(dtype))
    level = lax.bitcast_convert_type(key, jnp.int32)
    number = level.astype(jnp.float32)
    if centroids.size:  # added before the product: one after it could be fused with it, and rounded otherwise
        size = jnp.where(level < 0, 0 - key, key)
        index = jnp.minimum(jnp.maximum(size, 1) - 1, jnp.uint32(centroids.shape[0] - 1))
        number = number + jnp.sign(number) * centroids.at[index].get(mode="promise_in_bounds")
    largest = min(float(jnp.finfo(dtype).max), float(jnp.finfo(jnp.float32).max))
    return jnp.clip(number * step, -largest, largest).astype(dtype)


def trailing_zeros(bits: np.ndarray, dtype: str) -> np.ndarray:
    """How many bits at the end of unsigned numbers are 0: at most those of the mantissa of a dtype."""
    lowest = bits & (~bits + np.ones_like(bits))  # the lowest bit that is not 0
    place = np.frexp(lowest.astype(np.float64))[1] - 1  # -1 for none
    return np.where(place < 0, LOSSLESS[dtype], np.minimum(place, LOSSLESS[dtype]))
