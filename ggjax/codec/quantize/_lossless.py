"""Quantizer "lossless": all bits of a float32, bfloat16 or float16, the sign moved to the end.

A key is 2 m + sign, where m are the bits below the sign, less trailing bits that are 0 in the whole part.
Neighbouring keys are neighbouring magnitudes, so a window of keys is a range of exponents.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec._host import namespace_of
from ggjax.codec.quantize._quantizer import Prepared, Quantizer, only

MANTISSA = {"float32": 23, "bfloat16": 7, "float16": 10}
"""The dtypes, and the bits of their mantissa."""


class Lossless(NamedTuple):
    """The parameters of the quantizer: none."""


def _width(dtype: Any) -> int:
    return 8 * jnp.dtype(dtype).itemsize


def _held(dtype: str) -> str:
    return f"uint{_width(dtype)}"


def _same_bits(x: Any, dtype: Any) -> Any:
    dtype = jnp.dtype(dtype)
    return x.view(dtype) if isinstance(x, np.ndarray) else lax.bitcast_convert_type(x, dtype)


def _keys_of(x: Any, settings: tuple[Any, ...], zeros: Any) -> Any:
    xp, width = namespace_of(x), _width(x.dtype)
    bits = _same_bits(x, _held(x.dtype)).astype(np.uint32)
    magnitude = bits & np.uint32((1 << (width - 1)) - 1)
    return (magnitude >> xp.uint32(zeros)) << 1 | bits >> (width - 1)


def _values_of(key: Any, dtype: str, arguments: tuple[Any, ...], zeros: Any) -> Any:
    bits = (key >> 1) << zeros.astype(np.uint32) | (key & 1) << (_width(dtype) - 1)
    return bits.astype(_held(dtype))


def _zeros_of(rows: np.ndarray) -> np.ndarray:
    """How many bits at the end of all weights of a row are 0: at most those of the mantissa."""
    bits = np.bitwise_or.reduce(rows.view(_held(str(rows.dtype))), axis=1)
    most = MANTISSA[str(rows.dtype)]
    lowest = bits & (~bits + np.ones_like(bits))  # the lowest bit that is not 0
    place = np.frexp(lowest.astype(np.float64))[1] - 1  # -1 for none
    return np.where(place < 0, most, np.minimum(place, most)).astype(np.int64)


def _read(stated: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> Lossless:
    only(stated)
    return Lossless()


QUANTIZER = Quantizer(
    dtypes=MANTISSA,
    signed=False,
    has_step=False,
    is_finite=False,
    prepare=lambda x, step, dead_zone, centroids: Prepared(x, Lossless(), ()),
    keys_of=_keys_of,
    values_of=_values_of,
    keys=lambda params, dtype, zeros: 1 << (_width(dtype) - zeros),
    stated=lambda params: {},
    read=_read,
    held=_held,
    weights_of=lambda values, params, dtype, steps: _same_bits(values, dtype),
    zeros_of=_zeros_of,
    most_zeros=MANTISSA.__getitem__,
)
