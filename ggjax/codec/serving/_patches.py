"""The few weights of an array that its small form has no number for: kept beside it, as they are.

Columns have as many slots as the one with most of these weights, so that a product takes them a slot of all
columns at a time: on a CPU ten to a hundred times faster than one by one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import mesh


class Patches(NamedTuple):
    """Weights by their rows. Both are of the shape of the array, with slots in place of the axis of rows."""

    rows: jax.Array  # int32; those of empty slots lie outside of the array
    values: jax.Array  # the weights: float32, or uint16, the bits of bfloat16


def slots_of(where: np.ndarray, axis: int) -> int:
    """How many slots the weights need that a mask tells."""
    return int(np.count_nonzero(where, axis).max(initial=0))


def of_mask(where: np.ndarray, values: np.ndarray, axis: int) -> Patches | None:
    """Patches for weights on the host.

    Args:
      where: bool, of the shape of the array.
      values: of these weights, in order.
      axis: the one of rows.
    """
    slots = slots_of(where, axis)
    if not slots:
        return None
    shape = list(where.shape)
    shape[axis] = slots
    rows, found = np.full(shape, where.shape[axis], np.int32), np.zeros(shape, values.dtype)
    places = np.nonzero(where)
    rest = [n for i, n in enumerate(where.shape) if i != axis]
    column = np.ravel_multi_index([p for i, p in enumerate(places) if i != axis], rest)
    order = np.argsort(column, kind="stable")
    before = np.empty_like(order)  # how many of its column come before each
    before[order] = np.arange(len(order)) - np.searchsorted(column[order], column[order])
    at = (*places[:axis], before, *places[axis + 1 :])
    rows[at], found[at] = places[axis], values
    return Patches(jax.device_put(rows), jax.device_put(found))


def put_in(x: jax.Array, patches: Patches | None, axis: int) -> jax.Array:
    """An array of the dtype of the values, with its patches in it."""
    if patches is None:
        return x

    def put(x: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
        places = list(jnp.indices(rows.shape, sparse=True))
        places[axis] = rows
        return x.at[tuple(jnp.broadcast_arrays(*places))].set(values, mode="drop")

    return mesh.elementwise(put, x, *patches)


def regrouped(patches: Patches | None, shape: Sequence[int], groups: Any, axis: int) -> Patches | None:
    """The patches (batch, slots, columns) of an array that becomes matrices, see ``Matrices``. The axis is one
    of the group of rows, which may have others."""
    if patches is None:
        return None
    rows = jnp.zeros_like(patches.rows)
    for a in groups[1]:
        here = patches.rows if a == axis else lax.broadcasted_iota(jnp.int32, rows.shape, a)
        rows = rows * shape[a] + here
    size = int(np.prod([shape[a] for a in groups[1]], dtype=np.int64))
    rows = jnp.where(patches.rows < shape[axis], rows, size)
    order = [a for group in groups for a in group]
    new = [int(np.prod([rows.shape[a] for a in group], dtype=np.int64)) for group in groups]
    return Patches(*(a.transpose(order).reshape(new) for a in (rows, patches.values)))


def add_products(y: jax.Array, x: jax.Array, patches: Patches | None, transposed: bool) -> jax.Array:
    """The product of x with a matrix that has 0 where its patches are, and theirs.

    Args:
      y: the product with the matrix (K, N), (B, N); or (B, K) where it is transposed.
      x: (B, K) or (B, N).
      patches: of the matrix, (slots, N).
    """
    if patches is None:
        return y
    add = _add_transposed if transposed else _add
    return mesh.elementwise(add, y, x, *patches)


def _add(y: jax.Array, x: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    columns = x.T.astype(y.dtype)  # so that what belongs to a row lies together

    def one(i: Any, total: jax.Array) -> jax.Array:
        found = columns.at[_take(rows, i)].get(mode="fill", fill_value=0)
        return total + found * _floats(_take(values, i)).astype(y.dtype)[:, None]

    return y + lax.fori_loop(0, rows.shape[0], one, jnp.zeros_like(y.T)).T


def _add_transposed(y: jax.Array, x: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    columns = x.T.astype(y.dtype)

    def one(i: Any, total: jax.Array) -> jax.Array:
        found = columns * _floats(_take(values, i)).astype(y.dtype)[:, None]
        return total.at[_take(rows, i)].add(found, mode="drop")

    return y + lax.fori_loop(0, rows.shape[0], one, jnp.zeros_like(y.T)).T


def _take(a: jax.Array, i: Any) -> jax.Array:
    return lax.dynamic_index_in_dim(a, i, 0, keepdims=False)


def _floats(values: jax.Array) -> jax.Array:
    if values.dtype != jnp.uint16:
        return values
    return lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)
