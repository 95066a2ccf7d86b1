"""The rule of RF8 computed in float64 NumPy from the paper's text, with none of the package's own code."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ggjax import rf8

BYTES = np.arange(256, dtype=np.uint8)
CANONICAL = np.array([c for c in range(256) if c == 0 or c & 7])
INT16 = np.arange(2**16, dtype=np.uint16)
BFLOAT16 = INT16.view(jnp.bfloat16)
FLOAT16 = INT16.view(np.float16)

BOUND = {"digits": 1.5 / (1 + math.sqrt(2) / 4) - 1, "nearest": 1 / 11}
"""The largest relative error of a weight inside the window."""


def round_log2(v):
    """The integer nearest to log2(v), exactly: v = m 2^e with m in [1/2, 1), and m^2 has at most 48 bits."""
    m, e = np.frexp(v)
    return e - (m * m < 0.5)


def signed_digits(w):
    """w^ of the paper for non-zero float64 w that are exact in float32, and no window."""
    a = round_log2(np.abs(w))
    first = np.sign(w) * np.ldexp(1.0, a)
    r = w - first
    b = round_log2(np.where(r == 0, 1.0, np.abs(r)))
    return first + np.where((r != 0) & (a - b <= 4), np.sign(r) * np.ldexp(1.0, b), 0.0)


def nearest(w):
    """The nearest of (1 + residual) 2^e for non-zero w, ties away from zero."""
    m, e = np.frexp(np.abs(w))  # in [1/2, 1)
    grid = np.array([8, 8.5, 9, 10, 12, 14, 15, 16]) / 16
    at = np.searchsorted((grid[1:] + grid[:-1]) / 2, m, side="right")
    return np.sign(w) * np.ldexp(grid[at], e)


def exponent_of(values):
    """15 below a for values (1 + residual) 2^a of residuals -1/8 to 1/2, at least -125 (as for 0)."""
    m, e = np.frexp(values)  # m in 8/16, 8.5/16, 9/16, 10/16, 12/16, or 14/16, 15/16 of the power above
    a = np.where(m < 0.8, e - 1, e)
    return np.where(values == 0, -125, np.maximum(a - 15, -125))


def reference(w, rounding, axis=None, largest=15 / 16 * 2.0**128):
    """(RF8 of a float64 array, exponents), with windows shared along axis."""
    w = np.asarray(w, np.float64)
    rule = {"digits": signed_digits, "nearest": nearest}[rounding]
    out = np.where(w == 0, 0.0, rule(np.where(w == 0, 1.0, w)))
    out = np.clip(out, -largest, largest)
    window = exponent_of(np.abs(out).max(axis, initial=0, keepdims=True))
    smallest = np.ldexp(7 / 8, window)
    low = np.where(np.abs(w) >= smallest / 2, np.sign(w) * smallest, 0.0)
    return np.where(np.abs(out) < smallest, low, out), window


def agree(x: Any, rounding: Any, axis: Any = None, **kw: Any) -> rf8.RF8Array:
    """Encode a NumPy array, compare exactly with the reference, and check the codes; the encoded array."""
    q = rf8.encode(jnp.asarray(x), axis=axis, rounding=rounding)
    rf8.validate(q)
    want, window = reference(x, rounding, axis, **kw)
    assert q.exponents.shape == window.shape
    np.testing.assert_array_equal(q.exponents, window)
    np.testing.assert_array_equal(np.asarray(rf8.decode(q, jnp.float32), np.float64), want)
    np.testing.assert_array_equal(np.asarray(rf8.decode(q), np.float64), want)
    return q
