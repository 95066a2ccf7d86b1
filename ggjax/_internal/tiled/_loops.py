"""The products in plain XLA, as a CPU runs them fastest.

Every tile takes rows that lie evenly over the matrix (row i, row i + T, and so on for T tiles): so a matrix
that is divided by rows over devices is read where it lies.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Decode: TypeAlias = Callable[..., tuple[jax.Array, ...]]

UNROLLED = 16
"""Rows that one element of a matrix-vector product adds up: more need less memory, but XLA more time."""

FEW = 16
"""Up to so many rows of x, decoding a tile takes longer than multiplying it."""

SMALL_TILE, LARGE_TILE = 1 << 18, 1 << 20
"""Weights in a tile for few and for many rows of x: what fits in the cache of a core, or what keeps the sum of
products from being read and written too often."""


def dot(decode: Decode, x: jax.Array, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """x (P, B, K) times the matrix of the arrays: (B, N), in the dtype of x."""
    k = arrays[0].shape[0]
    if x.shape[1] == 1:
        return _in_rows(k, UNROLLED, functools.partial(_vector, decode), x, arrays)
    return _in_rows(k, _rows(decode, x.shape[1], arrays), functools.partial(_matrix, decode), x, arrays)


def dot_transposed(decode: Decode, y: jax.Array, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """y (B, N) times the transposed matrix: (P, B, K), in the dtype of y."""
    k = arrays[0].shape[0]
    size = _rows(decode, y.shape[0], arrays)
    main = k - k % size
    parts = [_transposed(decode, y, size, main, arrays)] if main else []
    if main < k:
        parts.append(_products(decode, y, _some(arrays, main, None)))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def _rows(decode: Decode, batch: int, arrays: tuple[jax.Array, ...]) -> int:
    """How many rows of the arrays make a tile."""
    width = len(jax.eval_shape(decode, *arrays)) * arrays[0].shape[-1] or 1
    rows = (SMALL_TILE if batch <= FEW else LARGE_TILE) // width
    return max(1, min(rows, arrays[0].shape[0]))


def _in_rows(k: int, size: int, product: Callable[..., jax.Array], x: jax.Array, arrays: Any) -> jax.Array:
    """The product in tiles of so many rows, and that of the rows that are left over."""
    if not k or not x.shape[1]:
        return jnp.zeros((x.shape[1], arrays[0].shape[-1]), x.dtype)
    main = k - k % size
    if main in (0, k):
        return product(x, k if main == 0 else size, arrays)
    rest = product(x[..., main:], k - main, _some(arrays, main, None))
    return product(x[..., :main], size, _some(arrays, 0, main)) + rest


def _vector(decode: Decode, x: jax.Array, size: int, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """One row of x: weights are decoded in the registers that multiply and add them up.

    XLA would store the decoded matrix for a product, and it adds up a fused reduction one number at a time;
    a sum that is written out becomes one loop over columns, which is vectorized and divided among the cores.
    """
    parts = arrays[0].shape[0] // size
    x = x.reshape(x.shape[0], parts, size)
    cut = _cut(arrays, parts, size)
    terms = (
        x[p, :, j, None] * w.astype(x.dtype)
        for j in range(size)
        for p, w in enumerate(decode(*(_take(a, j, 1) for a in cut)))
    )
    total = functools.reduce(jnp.add, terms)
    return total if parts == 1 else _multiply(jnp.ones((1, parts), x.dtype), total)  # a sum would be fused


def _matrix(decode: Decode, x: jax.Array, size: int, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """Some rows of x: a loop over tiles, each decoded and multiplied."""
    tiles = arrays[0].shape[0] // size
    x = x.reshape(*x.shape[:2], size, tiles)
    cut = _cut(arrays, size, tiles)

    def add(i: Any, total: jax.Array | None) -> jax.Array:
        rows = decode(*(_take(a, i, 1) for a in cut))
        for p, w in enumerate(rows):
            y = _multiply(_take(x[p], i, 2), w.astype(x.dtype))
            total = y if total is None else total + y
        assert total is not None
        return total

    first = add(0, None)
    return first if tiles == 1 else lax.fori_loop(1, tiles, add, first)


def _transposed(decode: Decode, y: jax.Array, size: int, k: int, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """The first k columns of the product with the transposed matrix, tile by tile."""
    tiles = k // size
    cut = _cut(_some(arrays, 0, k), size, tiles)
    if tiles == 1:
        return _products(decode, y, tuple(_take(a, 0, 1) for a in cut))
    found = lax.map(lambda i: _products(decode, y, tuple(_take(a, i, 1) for a in cut)), jnp.arange(tiles))
    return jnp.moveaxis(found, 0, -1).reshape(found.shape[1], y.shape[0], k)


def _products(decode: Decode, y: jax.Array, tile: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([_multiply(y, w.astype(y.dtype), 1) for w in decode(*tile)])


def _some(arrays: tuple[jax.Array, ...], start: int, end: int | None) -> tuple[jax.Array, ...]:
    """Some rows of the arrays."""
    return tuple(a if _is_shared(a, arrays) else a[start:end] for a in arrays)


def _cut(arrays: tuple[jax.Array, ...], *sizes: int) -> list[jax.Array]:
    """The arrays with two axes in place of rows; with one and one where all rows share a row."""
    return [a.reshape(*((1, 1) if _is_shared(a, arrays) else sizes), *a.shape[1:]) for a in arrays]


def _is_shared(a: jax.Array, arrays: tuple[jax.Array, ...]) -> bool:
    return a.shape[0] != arrays[0].shape[0]


def _take(a: jax.Array, i: Any, axis: int) -> jax.Array:
    i = 0 if a.shape[axis] == 1 else i
    return lax.dynamic_index_in_dim(a, i, axis, keepdims=False)


def _multiply(x: jax.Array, w: jax.Array, axis: int = 0) -> jax.Array:
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    return lax.dot_general(x, w, dims, precision=lax.Precision.HIGHEST, preferred_element_type=x.dtype)
