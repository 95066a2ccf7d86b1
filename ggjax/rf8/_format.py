"""The byte: what its 256 values stand for, and how a byte is turned into the bits of a float."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

RESIDUALS = (-1 / 4, -1 / 8, -1 / 16, 0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""The residual of each of the eight residual codes, relative to the power of two."""

MIN_EXPONENT, MAX_EXPONENT, NOT_FINITE = -125, 113, 127
"""The range of the shared exponent, and the mark of a tensor that held a NaN or an infinity under jit."""

WINDOW = 16
"""How many powers of two the four exponent bits can tell apart."""

BIAS = 127
"""What a float32 adds to its exponent."""


@functools.cache
def values() -> np.ndarray:
    """The values of all 256 bytes at exponent 0: a read-only float64 array of shape (256,).

    >>> values()[[0x00, 0x01, 0x03, 0x7F, 0x83]].tolist()
    [0.0, 0.875, 1.0, 49152.0, -1.0]
    """
    code = np.arange(256)
    value = (1 + np.array(RESIDUALS)[code & 7]) * 2.0 ** (code >> 3 & 15)
    value = np.where(code & 127, value, 0.0) * np.where(code & 128, -1.0, 1.0)
    value.flags.writeable = False
    return value


def is_reserved(code: Any) -> Any:
    """Whether a byte, or each byte of an integer array, is one of the 31 that ``encode`` never writes.

    >>> [is_reserved(code) for code in (0x00, 0x01, 0x08, 0x80)]
    [False, False, True, True]
    """
    return ((code & 7) == 0) & (code != 0)


# A byte becomes the exponent and the four leading mantissa bits of a float32 by one addition. Counted in
# sixteenths of the octave, the residuals 000 to 111 lie at -8, -4, -2, 0, 1, 2, 4, 8 from the power of two (the
# octave below it is half as long, so a sixteenth of it is too). That is twice the residual code, minus 8, plus
# one of the numbers here, which are packed into one integer, two bits each.
_EXTRA = sum(extra << 2 * i for i, extra in enumerate((0, 2, 2, 2, 1, 0, 0, 2)))

_NAN = np.int32(0x7FC00000)  # the bits of a quiet NaN


@functools.partial(jax.jit, static_argnames="dtype")
def floats(codes: jax.Array, exponents: jax.Array, dtype: Any) -> jax.Array:
    """The values of codes (uint8), with exponents (int8) that are broadcast against them, in the dtype."""
    return lax.bitcast_convert_type(_bits_of(codes, exponents, jnp), jnp.float32).astype(dtype)


def floats_on_host(codes: np.ndarray, exponents: np.ndarray, dtype: Any) -> np.ndarray:
    """``floats`` in NumPy, which has nothing to compile."""
    with np.errstate(over="ignore"):  # a cast to float16 may overflow, as it does on a device
        return np.asarray(_bits_of(codes, exponents, np)).view(np.float32).astype(dtype)


def _bits_of(codes: Any, exponents: Any, xp: Any) -> Any:
    """The bits of the float32 values of codes, as int32.

    Args:
      codes: uint8.
      exponents: int8, broadcast against codes.
      xp: ``numpy`` or ``jax.numpy``, whichever the arrays are of.
    """
    exponent = exponents.astype(np.int32)
    bits = _finite_bits(codes.astype(np.int32), exponent, xp)
    return bits | xp.where(exponent == NOT_FINITE, _NAN, np.int32(0))


def bits_at(codes: jax.Array, exponent: int) -> jax.Array:
    """``_bits_of`` for one known exponent, from codes as signed bytes: one operation less."""
    return _finite_bits(lax.bitcast_convert_type(codes, jnp.int8).astype(jnp.int32), np.int32(exponent), jnp)


def _finite_bits(code: Any, exponent: Any, xp: Any) -> Any:
    """The bits for codes in the low eight of 32; the bits above them are zeros, or copies of the sign."""
    double = code << 1 & 0xFF
    sixteenths = double + (_EXTRA >> (double & 14) & 3) + ((exponent + BIAS << 4) - 8)
    return xp.where(double == 0, np.int32(0), sixteenths << 19) | (code >> 7 << 31)
