"""Products with weights that stay in RF8: decoded tile by tile, where they are multiplied."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from ggjax._internal import einsums, tiled, trees
from ggjax.rf8._array import RF8Array, check_form
from ggjax.rf8._format import BIAS, NOT_FINITE, WINDOW, bits_at, floats

_LOW = -(WINDOW - 1)
"""The exponent that tiles are decoded at, so that their values lie about 1, and no sum of products overflows
that would not anyway."""


def dot(x: ArrayLike, q: RF8Array, *, preferred_element_type: DTypeLike | None = None) -> jax.Array:
    """``jnp.dot(x, decode(q))`` without ever decoding all of q: weights stay one byte each.

    Products are added up in float32 (in float64 for x of float64). On CPUs a loop decodes tile after tile, on
    GPUs and TPUs a Pallas kernel decodes in registers, where K and N are multiples of 128. The derivative with
    respect to x is computed in the same way; q has none. A q that is divided over devices by rows or columns
    is used where it lies; what travels is the product.

    Args:
      x: floating-point array (..., K).
      q: encoded array (K, N), or of another number of axes as in ``jnp.dot``. Exponents may be shared along
        any of them.
      preferred_element_type: the dtype of the result; None for that of x.

    Returns:
      (..., N).

    Raises:
      TypeError: q is not an ``RF8Array`` (``encode`` makes one), or x is not floating.
      ValueError: the shapes do not fit; the message says which sizes were expected to be equal.

    >>> from ggjax.rf8 import encode
    >>> dot(jnp.ones((1, 2)), encode(jnp.array([[0.5], [0.25]]))).tolist()
    [[0.75]]
    """
    x = _checked(x, q)
    return _dot(x, q, jnp.dtype(preferred_element_type or x.dtype))


def einsum(
    subscripts: str, x: ArrayLike, q: RF8Array, *, preferred_element_type: DTypeLike | None = None
) -> jax.Array:
    """``jnp.einsum(subscripts, x, decode(q))`` without ever decoding all of q; otherwise as ``dot``.

    Axes of q that are summed over should stand side by side, before or after those that are kept, as in all
    usual layers: otherwise its bytes are transposed first. Axes that x, q and the result share (experts, say)
    are worked on one after another.

    Args:
      subscripts: of two operands and the result, as in "bsd,dhk->bshk". Every axis of q is in x, in the result,
        or in both.
      x: floating-point array.
      q: encoded array.
      preferred_element_type: the dtype of the result; None for that of x.

    Raises:
      TypeError: q is not an ``RF8Array``, or x is not floating.
      ValueError: subscripts that are not of this kind, or do not fit the shapes.

    >>> from ggjax.rf8 import encode
    >>> einsum("bk,nk->bn", jnp.ones((1, 2)), encode(jnp.array([[0.5, 0.25]]))).tolist()
    [[0.75]]
    """
    x = _checked(x, q)
    return _einsum(subscripts, x, q, jnp.dtype(preferred_element_type or x.dtype))


@functools.partial(jax.jit, static_argnums=2)
def _dot(x: jax.Array, q: RF8Array, dtype: Any) -> jax.Array:
    return einsums.dot(_product, x, q, dtype)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _einsum(subscripts: str, x: jax.Array, q: RF8Array, dtype: Any) -> jax.Array:
    return einsums.einsum(_product, subscripts, x, q, dtype)


def _checked(x: ArrayLike, q: Any) -> jax.Array:
    check_form(q, "q")
    if isinstance(x, RF8Array):
        raise TypeError("x must be an array, got an RF8Array: decode it first")
    x = jnp.asarray(x)
    if not trees.is_weight_dtype(x.dtype):
        raise TypeError(f"x must be a floating-point array, got {x.dtype}")
    return x


def _product(x: jax.Array, q: RF8Array, transposed: bool) -> jax.Array:
    """x (B, K) times q (K, N), or (B, N) times its transposed, float32 or wider."""
    rows, columns = q.exponents.shape
    e = q.exponents.astype(jnp.int32)
    if rows > 1 and columns > 1:
        return _tiled(_decode_each, x, (q.codes, q.exponents), transposed)
    if rows == columns == 1:
        return _scaled(_tiled(_decode, x, (q.codes,), transposed), e)
    e, before = e.reshape(1, -1), (rows > 1) != transposed  # whether exponents belong to x or to the result
    if not before:
        return _scaled(_tiled(_decode, x, (q.codes,), transposed), e)
    top = jnp.max(jnp.where(e == NOT_FINITE, jnp.int32(_LOW), e), keepdims=True)
    wide = x.astype(trees.wide_dtype(x.dtype))
    y = _tiled(_decode, wide * _power(e - top + jnp.where(e == NOT_FINITE, top, 0), e), (q.codes,), transposed)
    return _scaled(y, top)


def _tiled(decode: Any, x: jax.Array, arrays: tuple[jax.Array, ...], transposed: bool) -> jax.Array:
    if transposed:
        return tiled.dot_transposed(decode, x, arrays)[0]
    return tiled.dot(decode, x[None], arrays)


def _decode(codes: jax.Array) -> tuple[jax.Array]:
    """Values at the exponent ``_LOW``."""
    return (lax.bitcast_convert_type(bits_at(codes, _LOW), jnp.float32),)


def _decode_each(codes: jax.Array, exponents: jax.Array) -> tuple[jax.Array]:
    return (floats(codes, exponents, jnp.float32),)


def _scaled(y: jax.Array, exponents: jax.Array) -> jax.Array:
    """y times 2^(exponents - _LOW), in two steps, since the power alone may be beyond float32."""
    n = exponents - _LOW
    half = n >> 1
    return y * _power(half, exponents).astype(y.dtype) * _power(n - half, exponents).astype(y.dtype)


def _power(n: jax.Array, exponents: jax.Array) -> jax.Array:
    """2^n as float32, 0 for n below -126; NaN where the exponents say that a weight was not finite."""
    power = lax.bitcast_convert_type(jnp.maximum(n + BIAS, 0) << 23, jnp.float32)
    return jnp.where(exponents == NOT_FINITE, np.float32(np.nan), power)
