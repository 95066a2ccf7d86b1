"""Products with weights in whatever form they are kept."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from ggjax import rf8
from ggjax._internal import einsums, trees
from ggjax.codec._coded import Coded
from ggjax.codec._compressed import is_coded
from ggjax.codec._decompress import decompress
from ggjax.codec.serving import _array, _matrices
from ggjax.codec.serving._array import LevelArray
from ggjax.codec.serving._floats_needed import Small


def dot(x: ArrayLike, w: Any, *, preferred_element_type: DTypeLike | None = None) -> jax.Array:
    """``jnp.dot(x, w)`` for weights in whatever form they are kept, added up in float32.

    A ``LevelArray`` and an ``rf8.RF8Array`` are decoded tile by tile, where they are
    multiplied, and never as a whole (``rf8.dot`` says how). A coded array of ``compress`` is decoded as a whole
    where it is used, under jit on the device: so a step that scans over stacked layers holds one of them at a
    time. An array of floats is multiplied as it is.

    Args:
      x: floating-point array (..., K).
      w: (K, N), or of another number of axes as in ``jnp.dot``.
      preferred_element_type: the dtype of the result; None for that of x.

    Returns:
      (..., N).

    Raises:
      TypeError: w is in none of these forms, or x is not floating.
      ValueError: the shapes do not fit; the message says which sizes were expected to be equal.

    >>> w = LevelArray(jnp.array([[3], [-1]], jnp.int8), jnp.full((1, 1), 0.25), jnp.ones((1, 1)))
    >>> dot(jnp.ones((1, 2)), w).tolist()
    [[0.5]]
    """
    x, w = _checked(x, w)
    dtype = jnp.dtype(preferred_element_type or x.dtype)
    if isinstance(w, rf8.RF8Array):
        return rf8.dot(x, w, preferred_element_type=dtype)
    return _dot(x, w, dtype)


def einsum(
    subscripts: str, x: ArrayLike, w: Any, *, preferred_element_type: DTypeLike | None = None
) -> jax.Array:
    """``jnp.einsum(subscripts, x, w)`` for weights in whatever form they are kept; otherwise as ``dot``.

    Of a ``LevelArray``, those axes that the rows' steps belong to should be summed over and the others kept, or
    the other way round, as in all usual layers: otherwise all of it is decoded first. See ``rf8.einsum``.

    Args:
      subscripts: of two operands and the result, as in "bsd,dhk->bshk". Every axis of w is in x, in the result,
        or in both.
      x: floating-point array.
      w: the weights.
      preferred_element_type: the dtype of the result; None for that of x.

    Raises:
      TypeError: w is in none of these forms, or x is not floating.
      ValueError: subscripts that are not of this kind, or do not fit the shapes.

    >>> w = LevelArray(jnp.array([[3, -1]], jnp.int8), jnp.full((1, 1), 0.25), jnp.ones((1, 1)))
    >>> einsum("bk,nk->bn", jnp.ones((1, 2)), w).tolist()
    [[0.5]]
    """
    x, w = _checked(x, w)
    dtype = jnp.dtype(preferred_element_type or x.dtype)
    if isinstance(w, rf8.RF8Array):
        return rf8.einsum(subscripts, x, w, preferred_element_type=dtype)
    return _einsum(subscripts, x, w, dtype)


@functools.partial(jax.jit, static_argnums=2)
def _dot(x: jax.Array, w: Any, dtype: Any) -> jax.Array:
    if isinstance(w, Small):
        return einsums.dot(_matrices.product, x, w, dtype)
    return _floats(jnp.dot, x, w, dtype)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _einsum(subscripts: str, x: jax.Array, w: Any, dtype: Any) -> jax.Array:
    if isinstance(w, Small):
        return einsums.einsum(_matrices.product, subscripts, x, w, dtype)
    return _floats(functools.partial(jnp.einsum, subscripts), x, w, dtype)


def _floats(product: Any, x: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    common = jnp.promote_types(x.dtype, w.dtype)
    wide = trees.wide_dtype(common)
    return product(x.astype(common), w.astype(common), preferred_element_type=wide).astype(dtype)


def _checked(x: ArrayLike, w: Any) -> tuple[jax.Array, Any]:
    if isinstance(x, (Small, rf8.RF8Array)) or is_coded(x):
        raise TypeError(f"x must be an array, got {type(x).__name__}: decode it first")
    x = jnp.asarray(x)
    if not trees.is_weight_dtype(x.dtype):
        raise TypeError(f"x must be a floating-point array, got {x.dtype}")
    if is_coded(w):
        if not trees.is_concrete(x, *jax.tree.leaves(w)):
            x, w = lax.optimization_barrier((x, w))  # so that no layer is decoded before its turn
        w = decompress(w, keep_rf8=isinstance(w, Coded))
    if isinstance(w, LevelArray):
        _array.check_form(w, "w")
    elif not isinstance(w, (Small, rf8.RF8Array)):
        w = jnp.asarray(w)
        if not trees.is_weight_dtype(w.dtype):
            raise TypeError(f"w must be weights: floats, or a form that codec has for them, got {w.dtype}")
    return x, w
