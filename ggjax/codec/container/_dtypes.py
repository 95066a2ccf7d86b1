"""The dtypes of safetensors, and tensors that no array can hold."""

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "C64": np.complex64,
}
"""Those of arrays, by their safetensors names."""

NAMES = {np.dtype(t): name for name, t in DTYPES.items()}

BITS = {n: 8 * np.dtype(t).itemsize for n, t in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Bits of an element, of all dtypes: those below 8 are packed, which no array of NumPy or JAX is."""

RARE = frozenset(BITS) - DTYPES.keys() | {"F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
"""Floating dtypes that no quantizer takes."""

MOST_AXES = 64
"""Of an array of NumPy."""


class Opaque(NamedTuple):
    """A tensor that no array can hold: of a packed dtype, or of more axes or a larger (empty) shape."""

    dtype: str  # safetensors name
    shape: tuple[int, ...]
    data: np.ndarray  # its bytes, uint8

    @property
    def nbytes(self) -> int:
        return len(self.data)


def as_array(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray | Opaque:
    """The array that bytes stand for."""
    if not has_arrays(dtype, shape):
        return Opaque(dtype, shape, data)
    return data.view(np.dtype(DTYPES[dtype])).reshape(shape)


def has_arrays(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether there are arrays of a dtype (by its safetensors name) and a shape."""
    return dtype in DTYPES and is_shape(list(shape))


def is_shape(x: Any) -> bool:
    """Whether this is a shape that an array can have: of up to 64 axes, and fewer than 2^62 elements."""
    if not isinstance(x, list) or len(x) > MOST_AXES or not all(map(is_count, x)):
        return False
    return math.prod(n for n in x if n) < 1 << 62


def is_count(n: Any) -> bool:
    """Whether this is a whole number of at least 0, as JSON gives it, and not beyond 64 bits."""
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor of a dtype, by its safetensors name, and a shape."""
    return math.prod(shape) * BITS[dtype] // 8
