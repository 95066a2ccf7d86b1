"""RF8: a weight in one byte, as its two leading signed binary digits (arXiv 2506.00486).

    a = round(log2 |w|),  r = w - sign(w) 2^a,  b = round(log2 |r|),
    w^ = sign(w) 2^a + [a - b <= 4] sign(r) 2^b,  exact zero stays zero

so |w^| / 2^a is one of 3/4, 7/8, 15/16, 1, 17/16, 9/8, 5/4, 3/2, and a product with w^ is two shifts and an
addition. The byte is laid out so that its seven magnitude bits rise with the value:

    bit 7: sign | bits 6-3: exponent E | bits 2-0: residual, in rising order
    residual    000   001   010   011   100   101   110   111
               -1/4  -1/8 -1/16    0  +1/16  +1/8  +1/4  +1/2
    value      (-1)^sign (1 + residual) 2^(E + exponent)

- Byte 0x00 is zero. 3/4 2^a is always written as 3/2 2^(a-1), so the other bytes of residual 000 are reserved:
  they decode to 3/4 2^(E + exponent) and are never emitted, nor is 0x80 (it decodes to -0).
- ``exponent``, an int8 shared by the tensor or by a channel, places the window of 16 exponents so that its top
  is the exponent of the largest encoded value: exponent = top - 15, at least -125 (every decoded value is then
  a normal float32) and at most 113; all-zero and empty tensors get -125.
- The smallest value of the window is 7/8 2^exponent; weights that round to less become zero or plus or minus
  that value, whichever is nearer (the tie goes away from zero). So do subnormal float32 weights.
- A weight that would round beyond the largest finite number of its dtype (to 2^128 in float32 and bfloat16,
  to 2^16 in float16) becomes the largest RF8 value below: 15/16 of that power.
- RF8 has no infinities and no NaN. Outside jit they raise; under jit, where nothing can be raised, the tensor
  or channel that holds one gets the exponent 127, which decodes to NaN everywhere.

The relative error of a weight inside the window is at most 0.1082 (rounding "digits", the paper's rule above)
or 1/11 (rounding "nearest": the nearest of the same values, ties away from zero).

All decisions are integer comparisons on the bits of the weight as a float32, hence exact and the same on every
device, eager or jitted. bfloat16 and float16 convert exactly; float64 is first rounded to float32.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from ggjax._internal import trees

Rounding: TypeAlias = Literal["digits", "nearest"]
Axis: TypeAlias = int | Sequence[int] | None

RESIDUALS = (-1 / 4, -1 / 8, -1 / 16, 0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""The residual of each of the eight residual codes, relative to the power of two."""

MIN_EXPONENT, MAX_EXPONENT, NOT_FINITE = -125, 113, 127
"""The range of the shared exponent, and the mark of a tensor that held a NaN or an infinity under jit."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RF8Array:
    """An array of RF8 codes: a pytree of two arrays, so it passes through jit, scan and checkpoints.

    Invariants (``validate`` checks them):

    - codes: uint8, of the shape of the encoded array; none of the 31 reserved bytes.
    - exponents: int8; a scalar (one window for all), or an array of as many dimensions as codes, each equal to
      that of codes or 1. In [-125, 113], or 127 for "held a NaN or an infinity".
    - dtype: static; the floating dtype of the encoded array, and that of ``decode``.
    - value = (-1)^sign (1 + residual) 2^(E + exponents), below 2^128 (see the module's text).
    """

    codes: jax.Array
    exponents: jax.Array
    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the encoded array."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions of the encoded array."""
        return self.codes.ndim

    @property
    def size(self) -> int:
        """The number of elements of the encoded array."""
        return self.codes.size


def encode(x: ArrayLike, *, axis: Axis = None, rounding: Rounding = "digits") -> RF8Array:
    """Encode an array, one byte a weight.

    Args:
      x: floating-point array of any shape.
      axis: the axis or axes along which weights share one exponent, as in ``jnp.max``: None for one exponent
        for the whole array, 0 for one per column of a matrix (per output channel of a dense kernel).
      rounding: "digits" (the paper's two rounded logarithms) or "nearest" (the nearest of the same values).

    Returns:
      An ``RF8Array``, sharded like x.

    Raises:
      ValueError: a NaN or an infinity (outside jit), an unknown rounding, an axis that x does not have.
      TypeError: x is not floating.

    >>> q = encode(jnp.array([1.0, -0.3, 0.0]))
    >>> [hex(c) for c in q.codes.tolist()], int(q.exponents)
    (['0x7b', '0xee', '0x0'], -15)
    >>> decode(q).tolist()
    [1.0, -0.3125, 0.0]
    """
    x = _checked(x, axis, rounding)
    return _encode(x, axis=_static(axis), rounding=rounding)


def decode(q: RF8Array, dtype: DTypeLike | None = None) -> jax.Array:
    """The array that the codes stand for.

    Args:
      q: what ``encode`` gave.
      dtype: a floating dtype; None for that of the encoded array. float32, bfloat16 and float64 hold every RF8
        value exactly; in float16, values outside its range overflow or lose digits as in any cast.

    Raises:
      TypeError: q is not an ``RF8Array``, or dtype is not a floating one.

    >>> decode(encode(jnp.array([0.7, 0.1])), jnp.bfloat16).tolist()
    [0.75, 0.09375]
    """
    if not isinstance(q, RF8Array):
        raise TypeError(f"q must be an RF8Array, got {type(q).__name__}")
    dtype = q.dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating one, got {dtype}")
    return _decode(q.codes, q.exponents, dtype)


def round(x: ArrayLike, *, axis: Axis = None, rounding: Rounding = "digits") -> jax.Array:
    """``decode(encode(x))``: the weights that RF8 can hold, in the dtype of x. Rounding twice changes nothing.

    Its derivative is zero; for training through it, add ``jax.lax.stop_gradient(round(x) - x)`` to x.

    Args, Raises: see ``encode``.

    >>> round(jnp.array([1.0, 1.04, 1.05, 1.6])).tolist()
    [1.0, 1.0, 1.0625, 1.5]
    """
    x = _checked(x, axis, rounding)
    return _round(x, axis=_static(axis), rounding=rounding)


def tree_encode(
    params: Any, *, axis: Axis = None, rounding: Rounding = "digits", mask: trees.Mask = None
) -> Any:
    """Encode the selected floating leaves of a tree, each with its own exponents.

    Args:
      params: a tree of arrays.
      axis: see ``encode``; leaves that lack one of the axes get one exponent.
      rounding: see ``encode``.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.

    Returns:
      The tree with an ``RF8Array`` in place of every selected leaf and the other leaves as they were.

    Raises:
      ValueError: no floating leaf, a mask that does not fit, an unknown rounding, or (outside jit) a NaN or
        infinite weight; the message names the leaf.

    >>> tree = tree_encode({"w": jnp.ones((2, 3)), "step": jnp.array(7)})
    >>> tree["w"].codes.dtype, tree["step"].dtype
    (dtype('uint8'), dtype('int32'))
    """
    _check_rounding(rounding)
    flat = trees.flatten(params, mask)
    weights = [jnp.asarray(x) for x in flat.weights()]
    trees.check_finite(flat.weight_names(), weights)
    return flat.replace(_encode_leaves(weights, axis=_static(axis), rounding=rounding))


def tree_decode(tree: Any) -> Any:
    """The tree with every ``RF8Array`` decoded to its own dtype, and the other leaves as they were.

    >>> params = {"w": jnp.array([0.5, 0.6]), "step": jnp.array(7)}
    >>> tree_decode(tree_encode(params))["w"].tolist()
    [0.5, 0.625]
    """
    return jax.tree.map(lambda q: decode(q) if _is_encoded(q) else q, tree, is_leaf=_is_encoded)


def dot(x: ArrayLike, q: RF8Array) -> jax.Array:
    """``jnp.dot(x, decode(q))``, computed in the dtype of x.

    >>> dot(jnp.ones((1, 2)), encode(jnp.array([[0.5], [0.25]]))).tolist()
    [[0.75]]
    """
    x = jnp.asarray(x)
    return jnp.dot(x, decode(q, x.dtype))


def validate(q: RF8Array, name: str = "q") -> None:
    """Check the invariants of an ``RF8Array``, say of one read from a file.

    Args:
      q: the array; the values of traced or abstract codes are not looked at.
      name: what to call it in messages.

    Raises:
      TypeError: not an RF8Array, or a field of the wrong dtype.
      ValueError: shapes that do not fit, an exponent out of range, a reserved code or one beyond float32.

    >>> validate(encode(jnp.ones(3)))
    """
    if not isinstance(q, RF8Array):
        raise TypeError(f"{name} must be an RF8Array, got {type(q).__name__}")
    if q.codes.dtype != np.uint8 or q.exponents.dtype != np.int8:
        raise TypeError(
            f"{name}: codes must be uint8 and exponents int8, got {q.codes.dtype} and {q.exponents.dtype}"
        )
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise TypeError(f"{name}: dtype must be a floating one, got {q.dtype}")
    shape = q.exponents.shape
    fits = len(shape) == q.ndim and all(e in (1, n) for e, n in zip(shape, q.shape, strict=True))
    if shape and not fits:
        raise ValueError(f"{name}: exponents of shape {shape} do not fit codes of shape {q.shape}")
    if not trees.is_concrete(q.codes, q.exponents):
        return
    low, high, reserved, beyond = jax.device_get(_survey(q))
    if low < MIN_EXPONENT or high > MAX_EXPONENT:
        raise ValueError(
            f"{name}: exponents must be in [{MIN_EXPONENT}, {MAX_EXPONENT}] or {NOT_FINITE}, "
            f"got {low if low < MIN_EXPONENT else high}"
        )
    if reserved or beyond:
        raise ValueError(f"{name}: {reserved} reserved codes and {beyond} codes beyond float32, expected none")


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
    """Whether a byte, or each byte of an integer array, is one of the 31 that ``encode`` never emits.

    >>> [is_reserved(code) for code in (0x00, 0x01, 0x08, 0x80)]
    [False, False, True, True]
    """
    return ((code & 7) == 0) & (code != 0)


# Inside one octave [1, 2) 2^e the RF8 values are 1, 17/16, 9/8, 5/4, 3/2, 7/4, 15/8 (and 2, of the next one),
# and rounding is a staircase: seven thresholds on the 23 mantissa bits. In units of the code, the step from 3/2
# to 7/4 is two, over the reserved code, so that its threshold stands twice.
#
# "digits", for |w| = (1 + f) 2^e: below sqrt(2) the residual is f, kept as the power of two 2^-k nearest in
# logarithm when f > 2^-4.5: thresholds f = sqrt(2) 2^-5, 2^-4, 2^-3, 2^-2. Above sqrt(2) (itself no threshold:
# both sides give 3/2) the residual is -(1 - f)/2 of 2^(e+1): thresholds 1 - f = sqrt(2) 2^-2, 2^-3, 2^-4. The
# square root of two is irrational, so no float lies on one.


def _root2(bits: int) -> int:
    """floor(sqrt(2) 2^bits), exactly."""
    return math.isqrt(2 << 2 * bits)


def _mantissas(*fractions: float) -> tuple[int, ...]:
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

_ABS, _INF = 0x7FFFFFFF, 0x7F800000  # int32 masks: all but the sign; the bits of infinity


def _magnitude(bits: Any, rounding: str) -> Any:
    """8 (exponent + 127) + residual code of the rounding of a positive float32, given by its bits (int32)."""
    mantissa = bits & 0x7FFFFF
    return (bits >> 23 << 3) + 3 + sum((mantissa >= t).astype(np.int32) for t in _THRESHOLDS[rounding])


def _largest(dtype: Any) -> int:
    """The magnitude of the largest RF8 value that is finite in the dtype."""
    top = np.float32(min(float(jnp.finfo(dtype).max), float(np.finfo(np.float32).max)))
    return int(_magnitude(top.view(np.int32), "down"))


def _float32(x: jax.Array) -> jax.Array:
    if x.dtype == np.float64:  # finite numbers beyond float32 stay finite
        top = float(np.finfo(np.float32).max)
        x = jnp.where(jnp.isfinite(x), jnp.clip(x, -top, top), x)
    return x.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("axis", "rounding"))
def _encode(x: jax.Array, *, axis: Axis, rounding: Rounding) -> RF8Array:
    bits = lax.bitcast_convert_type(_float32(x), jnp.int32)
    size = bits & _ABS
    # The greatest magnitude, by two reductions of x itself (before one of the bits, XLA would store them all).
    # A NaN wins both, and an infinity one.
    keep = axis is not None
    high, low = jnp.max(x, axis, keepdims=keep, initial=0), jnp.min(x, axis, keepdims=keep, initial=0)
    top = lax.bitcast_convert_type(_float32(jnp.maximum(high, -low)), jnp.int32) & _ABS
    last = jnp.minimum(_magnitude(top, rounding), _largest(x.dtype))
    exponent = jnp.maximum((last >> 3) - 127 - 15, MIN_EXPONENT)
    exponent = jnp.where(top < _INF, exponent, NOT_FINITE)
    # Zero or the smallest value, 7/8 2^exponent: split at its half, 7/4 2^(exponent - 2). At exponent -125 the
    # half is a subnormal, whose bits are 7/8 of those of the smallest normal number.
    half = jnp.where(exponent > MIN_EXPONENT, (exponent + 125 << 23) + (3 << 21), 7 << 20)
    code = _magnitude(size, rounding) - (exponent + 127 << 3)
    # The maximum may have been a subnormal and taken for 0, hence at least 1.
    code = jnp.clip(code, (size >= half).astype(jnp.int32), jnp.maximum(last - (exponent + 127 << 3), 1))
    code = jnp.where((bits < 0) & (code > 0), code | 128, code)
    return RF8Array(code.astype(jnp.uint8), exponent.astype(jnp.int8), x.dtype)


# A byte is turned into the bits of a float, exponent and four mantissa bits, by one addition. Counted in
# sixteenths of the octave, residuals 000 to 111 lie -8, -4, -2, 0, 1, 2, 4, 8 from the power of two (below it a
# sixteenth of the octave is half as long), which is twice the residual code, minus 8, plus one of these:
_EXTRA = sum(e << 2 * i for i, e in enumerate((0, 2, 2, 2, 1, 0, 0, 2)))  # two bits each


@functools.partial(jax.jit, static_argnames="dtype")
def _decode(codes: jax.Array, exponents: jax.Array, dtype: Any) -> jax.Array:
    exponent = exponents.astype(jnp.int32)
    code = codes.astype(jnp.int32)
    double = code << 1 & 0xFF
    sixteenths = double + (_EXTRA >> (double & 14) & 3) + ((exponent + 127 << 4) - 8)
    bits = jnp.where(double == 0, 0, sixteenths << 19) | (code >> 7 << 31)
    bits = bits | jnp.where(exponent == NOT_FINITE, 0x7FC00000, 0)
    return lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


@functools.partial(jax.jit, static_argnames=("axis", "rounding"))
def _round(x: jax.Array, *, axis: Axis, rounding: Rounding) -> jax.Array:
    q = _encode(x, axis=axis, rounding=rounding)
    return _decode(q.codes, q.exponents, q.dtype)


@functools.partial(jax.jit, static_argnames=("axis", "rounding"))
def _encode_leaves(leaves: list[jax.Array], *, axis: Axis, rounding: Rounding) -> list[RF8Array]:
    axes = [axis if _has_axes(x.ndim, axis) else None for x in leaves]
    return [_encode(x, axis=a, rounding=rounding) for x, a in zip(leaves, axes, strict=True)]


@jax.jit
def _survey(q: RF8Array) -> tuple[jax.Array, ...]:
    """Lowest and highest exponent, and how many codes are reserved or stand for 2^128 and more."""
    exponents = q.exponents.astype(jnp.int32)
    finite = exponents != NOT_FINITE
    low = jnp.min(jnp.where(finite, exponents, 0), initial=0)
    high = jnp.max(jnp.where(finite, exponents, 0), initial=0)
    magnitude = (q.codes & 127).astype(jnp.int32) + (exponents + 127 << 3)
    beyond = finite & (magnitude > _largest(jnp.float32)) & ((q.codes & 127) > 0)
    return low, high, jnp.sum(is_reserved(q.codes)), jnp.sum(beyond)


def _is_encoded(x: Any) -> bool:
    return isinstance(x, RF8Array)


def _static(axis: Axis) -> Axis:
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


def _has_axes(ndim: int, axis: Axis) -> bool:
    axes = (axis,) if isinstance(axis, int) else axis or ()
    return all(-ndim <= a < ndim for a in axes)


def _check_rounding(rounding: str) -> None:
    if rounding not in ("digits", "nearest"):
        raise ValueError(f'rounding must be "digits" or "nearest", got {rounding!r}')


def _checked(x: ArrayLike, axis: Axis, rounding: str) -> jax.Array:
    _check_rounding(rounding)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be a floating-point array, got {x.dtype}")
    if not _has_axes(x.ndim, axis):
        raise ValueError(f"axis {axis} is out of range for x of shape {x.shape}")
    trees.check_finite(["x"], [x])
    return x
