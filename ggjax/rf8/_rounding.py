"""Rounding to the values of RF8: integer thresholds on the bits of a float32.

Inside one octave [1, 2) 2^e the RF8 values are 1, 17/16, 9/8, 5/4, 3/2, 7/4, 15/8 (and 2, which begins the next
one), and rounding is a staircase: seven thresholds on the 23 mantissa bits. In units of the code, the step from
3/2 to 7/4 is two, over the reserved code, so its threshold is listed twice.

"digits", for |w| = (1 + f) 2^e: below sqrt(2) the residual is f, kept as the power of two 2^-k that is nearest
in logarithm when f > 2^-4.5, so the thresholds are f = sqrt(2) 2^-5, 2^-4, 2^-3, 2^-2 (the factor applies to
all). Above sqrt(2), which is itself no threshold since both sides give 3/2, the residual is -(1 - f)/2 of
2^(e+1), and the thresholds are 1 - f = sqrt(2) 2^-2, 2^-3, 2^-4. The square root of two is irrational, so no
float lies on one of them.
"""

import math
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from ggjax.rf8._format import BIAS, MIN_EXPONENT, NOT_FINITE, WINDOW

Rounding: TypeAlias = Literal["digits", "nearest"]


def _root2(bits: int) -> int:
    """floor(sqrt(2) 2^bits), exactly."""
    return math.isqrt(2 << 2 * bits)


def _mantissas(*fractions: float) -> tuple[int, ...]:
    """Seven fractions of an octave as mantissas, the fifth of them twice (see above)."""
    *low, a, b, c = (int(f * 2**23) for f in fractions)
    return (*low, a, a, b, c)


_THRESHOLDS = {
    "digits": (
        *(_root2(bits) + 1 for bits in (18, 19, 20, 21)),
        *(2**23 - _root2(bits) for bits in (21, 21, 20, 19)),
    ),
    "nearest": _mantissas(1 / 32, 3 / 32, 3 / 16, 3 / 8, 5 / 8, 13 / 16, 15 / 16),
    "down": _mantissas(1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 1),
}

ABS, INFINITY = 0x7FFFFFFF, 0x7F800000
"""On the bits of a float32 as int32: the mask of all but the sign, and infinity."""


def check_rounding(rounding: str) -> None:
    """Raise ValueError unless it is one of the two roundings."""
    if rounding not in ("digits", "nearest"):
        raise ValueError(f'rounding must be "digits" or "nearest", got {rounding!r}')


def magnitude(bits: Any, rounding: str) -> Any:
    """8 (exponent + 127) + residual code of the rounding of a positive float32, given by its bits (int32)."""
    mantissa = bits & 0x7FFFFF
    return (bits >> 23 << 3) + 3 + sum((mantissa >= t).astype(np.int32) for t in _THRESHOLDS[rounding])


def largest(dtype: Any) -> int:
    """The magnitude of the largest RF8 value that is finite in the dtype."""
    top = np.float32(min(float(jnp.finfo(dtype).max), float(np.finfo(np.float32).max)))
    return int(magnitude(top.view(np.int32), "down"))


def exceeds(codes: Any, exponents: Any, dtype: Any) -> Any:
    """Whether the values of codes (uint8, exponents int32) go beyond the largest finite one of the dtype."""
    code = (codes & 127).astype(np.int32)
    return (code > 0) & (code + (exponents + BIAS << 3) > largest(dtype))


def float32(x: Any, xp: Any) -> Any:
    """The weights as float32; finite float64 numbers beyond its range stay finite."""
    if x.dtype == np.float64:
        top = float(np.finfo(np.float32).max)
        x = xp.where(xp.isfinite(x), xp.clip(x, -top, top), x)
    return x.astype(np.float32)


def codes_of(bits: Any, top: Any, dtype: Any, rounding: str, xp: Any) -> tuple[Any, Any]:
    """Encode weights whose largest magnitudes are known.

    Args:
      bits: the weights as float32, by their bits (int32).
      top: the bits of the largest magnitude of each window, broadcast against ``bits``.
      dtype: what the weights are kept in: no value goes beyond its range.
      rounding: "digits" or "nearest".
      xp: ``numpy`` or ``jax.numpy``, whichever the arrays are of.

    Returns:
      codes (uint8, of the shape of bits) and exponents (int8, of the shape of top).
    """
    size = bits & ABS
    last = xp.minimum(magnitude(top, rounding), np.int32(largest(dtype)))
    exponent = xp.maximum((last >> 3) - BIAS - (WINDOW - 1), np.int32(MIN_EXPONENT))
    exponent = xp.where(top < INFINITY, exponent, np.int32(NOT_FINITE))
    # Zero or the smallest value, 7/8 2^exponent: split at its half, 7/4 2^(exponent - 2). At exponent -125 the
    # half is a subnormal, whose bits are 7/8 of those of the smallest normal number.
    half = xp.where(exponent > MIN_EXPONENT, (exponent + 125 << 23) + (3 << 21), np.int32(7 << 20))
    code = magnitude(size, rounding) - (exponent + BIAS << 3)
    # A device may have taken a largest magnitude that is subnormal for 0, hence at least 1.
    code = xp.clip(
        code, (size >= half).astype(np.int32), xp.maximum(last - (exponent + BIAS << 3), np.int32(1))
    )
    code = xp.where((bits < 0) & (code > 0), code | 128, code)
    return code.astype(np.uint8), exponent.astype(np.int8)
