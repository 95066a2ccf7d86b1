"""Every leaf as a matrix: which of its axes are rows, which are columns, and which only stack layers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from ggjax._internal import names

BatchAxis: TypeAlias = int | tuple[int, ...] | Callable[[str, Any], int | tuple[int, ...]]
Split: TypeAlias = Callable[[str, Any], int | None]


class View(NamedTuple):
    """A leaf as a stack of matrices; hashable."""

    shape: tuple[int, ...]  # of the leaf
    batch: tuple[int, ...]  # axes along which layers are stacked
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(matrices, rows, columns)."""
        b, m, n = (math.prod(self.shape[a] for a in axes) for axes in (self.batch, self.rows, self.columns))
        return b, m, n

    def matrices(self, x: jax.Array) -> jax.Array:
        """A leaf as its matrices, (matrices, rows, columns)."""
        return x.transpose(self.batch + self.rows + self.columns).reshape(self.sizes)

    def leaf(self, x: jax.Array) -> jax.Array:
        """The leaf of its matrices."""
        order = self.batch + self.rows + self.columns
        back = sorted(range(len(order)), key=order.__getitem__)
        return x.reshape([self.shape[a] for a in order]).transpose(back)


def view_of(name: str, leaf: Any, batch_axis: BatchAxis, split: Split | None) -> View:
    """The view of a leaf.

    Args:
      name, leaf: the leaf, or anything with a shape.
      batch_axis: the axes along which layers are stacked, of every leaf that has more, or a function.
      split: how many axes (without the batch axes) are rows, by a function of name and leaf that gives None
        where the rule decides: the last axis of kernels of four and more axes (convolutions) is the columns; of
        three axes and of embeddings, the split whose matrix is most nearly square; a leaf of one axis is one
        column.

    Raises:
      ValueError: an axis that the leaf does not have, or a split that leaves it no rows or no columns.
    """
    shape = tuple(leaf.shape)
    given = batch_axis(name, leaf) if callable(batch_axis) else batch_axis
    axes = (given,) if isinstance(given, int) else tuple(given)
    if not callable(batch_axis) and len(shape) <= len(axes):
        axes = ()  # a single number for the whole tree: this leaf has too few axes to be stacked
    if any(not -len(shape) <= a < len(shape) for a in axes):
        raise ValueError(f"leaf {name!r} of shape {shape}: expected axes of it in batch_axis, got {given!r}")
    batch = tuple(sorted(a % len(shape) for a in axes))
    rest = tuple(a for a in range(len(shape)) if a not in batch)
    rows = split(name, leaf) if split is not None else None
    if rows is None:
        rows = _default_split(name, [shape[a] for a in rest])
    elif len(rest) > 1 and not 0 < rows < len(rest):
        raise ValueError(
            f"leaf {name!r} of shape {shape}: expected from 1 to {len(rest) - 1} axes of rows, got {rows!r}"
        )
    return View(shape, batch, rest[:rows], rest[rows:])


def _default_split(name: str, shape: list[int]) -> int:
    if len(shape) < 2:
        return len(shape)
    if len(shape) > 3 and names.kind_of(name) != "embedding":
        return len(shape) - 1
    return min(range(1, len(shape)), key=lambda i: abs(math.log(_ratio(shape[:i], shape[i:]))))


def _ratio(rows: list[int], columns: list[int]) -> float:
    return max(math.prod(rows), 1) / max(math.prod(columns), 1)
