"""Quantizer "dictionary": weights of few distinct values, exactly: pruned, ternary, or of 4 or 8 bits once.

A key is the place of the weight's bits in a sorted list of all that occur.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec.quantize._quantizer import FLOATS, Prepared, Quantizer, only
from ggjax.codec.quantize._summary import spread_out

MOST = 255
"""Distinct values at most, so that each is a token of its own."""

_SAMPLE = 1 << 12
_PIECE = 1 << 20


class Dictionary(NamedTuple):
    """The parameters of the quantizer."""

    values: tuple[int, ...]  # the bits of each value, as an unsigned number


def bits_dtype(dtype: Any) -> np.dtype:
    """That of the bits of a dtype, as unsigned numbers."""
    return np.dtype(f"u{jnp.dtype(dtype).itemsize}")


def _prepare(
    x: np.ndarray, step: np.float32, dead_zone: float, centroids: tuple[float, ...]
) -> Prepared | None:
    bits = x.reshape(-1).view(bits_dtype(x.dtype))
    values = distinct(bits)
    if values is None:
        return None
    index = np.empty(bits.shape, np.uint8)
    for i in range(0, len(bits), _PIECE):
        index[i : i + _PIECE] = np.searchsorted(values, bits[i : i + _PIECE])
    return Prepared(index.reshape(x.shape), Dictionary(tuple(values.tolist())), ())


def distinct(bits: np.ndarray) -> np.ndarray | None:
    """The values that occur in a vector, sorted; None for too many."""
    values = np.unique(spread_out(bits, _SAMPLE))  # of most arrays, too many already
    for i in range(0, len(bits), _PIECE):
        if len(values) > MOST:
            return None
        piece = bits[i : i + _PIECE]
        near = values[np.minimum(np.searchsorted(values, piece), len(values) - 1)]
        values = np.union1d(values, piece[near != piece])
    return values if len(values) <= MOST else None


def _weights_of(index: Any, params: Dictionary, dtype: str, steps: Any = None) -> Any:
    if isinstance(index, np.ndarray):
        return _table(params, dtype).view(jnp.dtype(dtype))[index]
    narrow = jax.dtypes.canonicalize_dtype(dtype)
    table = _table(params, dtype)
    if narrow != jnp.dtype(dtype):  # float64, where JAX has float32
        return jnp.asarray(table.view(dtype).astype(narrow))[index]
    return lax.bitcast_convert_type(jnp.asarray(table)[index], narrow)


def _table(params: Dictionary, dtype: str) -> np.ndarray:
    return np.array(params.values, np.uint64).astype(bits_dtype(dtype))


def _read(stated: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> Dictionary:
    only(stated, "values")
    values: Any = stated.get("values")
    end = 1 << 8 * bits_dtype(dtype).itemsize
    if not isinstance(values, list) or not 1 <= len(values) <= MOST:
        raise ValueError(f"values must be 1 to {MOST} numbers")
    if not all(type(v) is int and 0 <= v < end for v in values):
        raise ValueError(f"values of {dtype} must be whole numbers from 0 to {end - 1}")
    return Dictionary(tuple(values))


QUANTIZER = Quantizer(
    dtypes=(*FLOATS, "int8", "uint8"),
    signed=False,
    has_step=False,
    is_finite=False,
    prepare=_prepare,
    keys_of=lambda index, settings, zeros: index.astype(np.uint32),
    values_of=lambda key, dtype, arguments, zeros: key.astype(np.uint8),
    keys=lambda params, dtype, zeros: len(params.values),
    stated=lambda params: {"values": list(params.values)},
    read=_read,
    held=lambda dtype: "uint8",
    weights_of=_weights_of,
    has_classes=False,
)
