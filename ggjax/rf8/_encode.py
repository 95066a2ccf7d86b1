"""From weights to RF8: one array at a time."""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import trees
from ggjax.rf8 import _rounding
from ggjax.rf8._array import RF8Array
from ggjax.rf8._format import floats
from ggjax.rf8._rounding import Rounding

Axis: TypeAlias = int | Sequence[int] | None


def encode(x: ArrayLike, *, axis: Axis = None, rounding: Rounding = "digits") -> RF8Array:
    """Encode an array, one byte a weight.

    Args:
      x: floating-point array of any shape.
      axis: the axis or axes along which weights share one exponent, as in ``jnp.max``: None for one exponent
        for the whole array, 0 for one per column of a matrix (per output channel of a dense kernel).
      rounding: "digits" (the paper's two rounded logarithms) or "nearest" (the nearest of the same values).

    Returns:
      An ``RF8Array``, sharded like x. Under ``jax.vmap``, ``jax.lax.map`` and ``jax.lax.scan`` each slice is
      encoded on its own, and the stack of them is again an ``RF8Array`` that decodes to the stacked weights.

    Raises:
      ValueError: a NaN or an infinity (unless x is traced), an unknown rounding, an axis that x does not have.
      TypeError: x is not floating, or of a dtype without sign or zero (float8_e8m0fnu) or of less than 8 bits.

    >>> q = encode(jnp.array([1.0, -0.3, 0.0]))
    >>> [hex(c) for c in q.codes.tolist()], q.exponents.tolist()
    (['0x7b', '0xee', '0x0'], [-15])
    >>> jnp.asarray(q).tolist()
    [1.0, -0.3125, 0.0]
    """
    x = _checked(x, axis, rounding)
    return encode_array(x, axis=static_axis(axis), rounding=rounding)


def round(x: ArrayLike, *, axis: Axis = None, rounding: Rounding = "digits") -> jax.Array:
    """``decode(encode(x))``: the weights that RF8 can hold, in the dtype of x. Rounding twice changes nothing.

    Its derivative is zero; for training through it, add ``jax.lax.stop_gradient(round(x) - x)`` to x.

    Args, Raises: see ``encode``.

    >>> round(jnp.array([1.0, 1.04, 1.05, 1.6])).tolist()
    [1.0, 1.0, 1.0625, 1.5]
    """
    x = _checked(x, axis, rounding)
    return _round(x, axis=static_axis(axis), rounding=rounding)


@functools.partial(jax.jit, static_argnames=("axis", "rounding"))
def encode_array(x: jax.Array, *, axis: Axis, rounding: Rounding) -> RF8Array:
    """``encode`` without its checks, compiled once for every shape."""
    # The greatest magnitude, by two reductions of x itself: before a reduction of the bits, XLA would store all
    # of them. A NaN wins both, and an infinity one of them.
    high, low = (f(x, axis, keepdims=True, initial=0) for f in (jnp.max, jnp.min))
    top = bits_of(jnp.maximum(high, -low)) & _rounding.ABS
    codes, exponents = _rounding.codes_of(bits_of(x), top, x.dtype, rounding, jnp)
    return RF8Array(codes, exponents, x.dtype)


def encode_on_host(x: np.ndarray, *, axis: Axis, rounding: Rounding) -> RF8Array:
    """``encode_array`` in NumPy, which has nothing to compile: the same integers from the same functions."""
    bits = np.asarray(_rounding.float32(x, np), order="C").view(np.int32)
    top = np.max(bits & _rounding.ABS, static_axis(axis), keepdims=True, initial=0)
    codes, exponents = _rounding.codes_of(bits, top, x.dtype, rounding, np)
    return RF8Array(codes, exponents, x.dtype)


@functools.partial(jax.jit, static_argnames=("axis", "rounding"))
def _round(x: jax.Array, *, axis: Axis, rounding: Rounding) -> jax.Array:
    q = encode_array(x, axis=axis, rounding=rounding)
    return floats(q.codes, q.exponents, q.dtype)


def bits_of(x: jax.Array) -> jax.Array:
    """The bits of the weights as float32, int32 of the same shape."""
    return lax.bitcast_convert_type(_rounding.float32(x, jnp), jnp.int32)


def static_axis(axis: Axis) -> Axis:
    """The axis as a hashable value."""
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


def has_axes(ndim: int, axis: Axis) -> bool:
    """Whether an array of so many dimensions has the axes."""
    axes = (axis,) if isinstance(axis, int) else axis or ()
    return all(-ndim <= a < ndim for a in axes)


def _checked(x: Any, axis: Axis, rounding: str) -> jax.Array:
    _rounding.check_rounding(rounding)
    dtype = x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype  # some dtypes cannot be put on a device
    if not trees.is_weight_dtype(dtype):
        raise TypeError(
            f"x must be a floating-point array with a sign, a zero and at least 8 bits a number, got {dtype}"
        )
    x = jnp.asarray(x)
    if not has_axes(x.ndim, axis):
        raise ValueError(f"axis {axis} is out of range for x of shape {x.shape}")
    trees.check_finite(["x"], [x])
    return x
