"""What a product reads of an array in a small form: matrices in few bits, how they decode, and their scales."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ggjax._internal import shared, tiled, trees
from ggjax._internal.tiled import Decode
from ggjax.codec.serving import _patches
from ggjax.codec.serving._patches import Patches

Groups = Sequence[Sequence[int]]
"""Of all axes of an array: those that count matrices, those of rows, those of columns."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrices:
    """b matrices of m rows and n columns. ``matrices[i]`` is one of them, without the first axes."""

    arrays: tuple[jax.Array, ...]  # (b, m / P, ..., n), see ``tiled``
    rows: jax.Array | None  # float32 (b, m), what rows are multiplied by
    columns: jax.Array | None  # float32 (b, n)
    patches: Patches | None  # (b, slots, n)
    decode: Decode = dataclasses.field(metadata={"static": True})
    cut: tuple[int, int, int] | None = dataclasses.field(metadata={"static": True})
    """For P = 2: the rows are (before, size, after), and neighbours along the second axis share a place."""
    exact: bool = dataclasses.field(metadata={"static": True})
    """Whether bfloat16 holds everything that is decoded,"""
    powers: bool = dataclasses.field(default=False, metadata={"static": True})
    """and rows and columns are multiplied by powers of 2."""

    def __getitem__(self, index: Any) -> "Matrices":
        return jax.tree.map(lambda a: a[index], self)


def product(x: jax.Array, w: Matrices, transposed: bool) -> jax.Array:
    """x (B, m) times one matrix (m, n), or (B, n) times its transposed; float32 or wider."""
    before, after = (w.columns, w.rows) if transposed else (w.rows, w.columns)
    given = x
    keeps = before is None or (w.powers and x.dtype == jnp.bfloat16)  # powers of 2 may be beyond float16
    if not w.exact or not keeps:
        x = x.astype(trees.wide_dtype(x.dtype))
    if before is not None:
        x = x * before.astype(x.dtype)[None]
    if transposed:
        y = _joined(tiled.dot_transposed(w.decode, x, w.arrays), w.cut)
    else:
        y = tiled.dot(w.decode, apart(x, w.cut), w.arrays)
    if after is not None:
        y = y * after.astype(y.dtype)[None]
    return _patches.add_products(y, given, w.patches, transposed)


def apart(x: jax.Array, cut: tuple[int, int, int] | None) -> jax.Array:
    """(B, m) as (P, B, m / P)."""
    if cut is None:
        return x[None]
    before, size, after = cut
    x = x.reshape(-1, before, size // 2, 2, after)
    return jnp.moveaxis(x, 3, 0).reshape(2, -1, before * size // 2 * after)


def _joined(y: jax.Array, cut: tuple[int, int, int] | None) -> jax.Array:
    """(P, B, m / P) as (B, m)."""
    if cut is None:
        return y[0]
    before, size, after = cut
    y = y.reshape(2, -1, before, size // 2, after)
    return jnp.moveaxis(y, 0, 3).reshape(-1, before * size * after)


def scales(
    steps: Sequence[jax.Array], shape: Sequence[int], groups: Groups
) -> tuple[jax.Array | None, jax.Array | None] | None:
    """(what rows, what columns are multiplied by), of numbers that weights share; None where a product of the
    two is not what weights are multiplied by."""
    batch = math.prod(shape[a] for a in groups[0])
    found: list[jax.Array | None] = [None, None]
    for numbers in steps:
        g = shared.grouped(numbers, shape, groups)
        if g.shape[1] > 1 and g.shape[2] > 1:
            return None
        axis = 0 if g.shape[1] > 1 else 1
        own = jnp.broadcast_to(g[:, :, 0] if axis == 0 else g[:, 0, :], (batch, g.shape[axis + 1]))
        known = found[axis]
        found[axis] = own if known is None else known * own
    return found[0], found[1]


def one_each(numbers: jax.Array, shape: Sequence[int], groups: Groups) -> jax.Array | None:
    """One number for every matrix, (b,), of numbers that weights share; None where a matrix has several."""
    g = shared.grouped(numbers, shape, groups)
    if g.shape[1] > 1 or g.shape[2] > 1:
        return None
    return jnp.broadcast_to(g[:, 0, 0], (math.prod(shape[a] for a in groups[0]),))


def reshaped(array: jax.Array, groups: Groups) -> jax.Array:
    """An array with one axis for every group of its axes."""
    order = [a for group in groups for a in group]
    return array.transpose(order).reshape([math.prod(array.shape[a] for a in group) for group in groups])


def cut_of(shape: Sequence[int], rows: Sequence[int], axis: int) -> tuple[int, int, int]:
    """The ``cut`` of rows that are a group of axes, one of which has two neighbours in a place."""
    at = list(rows).index(axis)
    return math.prod(shape[a] for a in rows[:at]), shape[axis], math.prod(shape[a] for a in rows[at + 1 :])


def as_they_are(weights: jax.Array) -> tuple[jax.Array]:
    """The decoding of floats."""
    return (weights.astype(jnp.float32),)
