"""Levels on the host, with their steps as floats: of coded arrays, and of what calibrated rounding makes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ggjax._internal import step_grid
from ggjax.codec import _decode
from ggjax.codec._coded import Coded
from ggjax.codec.quantize import _levels, _scaled
from ggjax.sensitivity._levels import Levels
from ggjax.sensitivity._views import View

_PIECE = 1 << 20
"""Weights that are looked through at a time, about."""


class Piece(NamedTuple):
    """An array on levels, or a block of one; steps and limits have as many axes, of size 1 where one counts for
    all."""

    levels: np.ndarray  # whole numbers
    row_steps: np.ndarray  # float32
    column_steps: np.ndarray
    limit: np.ndarray | None  # None where it makes no weight smaller
    axis: int | None  # the last one of the rows, if it is known


def is_on_levels(c: Any) -> bool:
    """Whether a coded array is levels and steps, and nothing else."""
    return isinstance(c, Coded) and c.meta.kind in _levels.KINDS and not getattr(c.meta.params, "centroids", ())


def of_coded(coded: Sequence[Coded]) -> list[Piece | None]:
    """The pieces of coded arrays that are on levels; None for one whose levels take more than 16 bits."""
    found = _decode.arrays([dataclasses.replace(c, meta=c.meta._replace(kind="levels")) for c in coded])
    return [_of_one(c, levels) for c, levels in zip(coded, found, strict=True)]


def _of_one(c: Coded, levels: np.ndarray) -> Piece | None:
    if levels.size and max(-int(levels.min()), int(levels.max())) >= _levels.MOST:
        return None
    params = c.meta.params
    if c.meta.kind == "uniform":
        one = np.ones((1,) * levels.ndim, np.float32)
        return Piece(levels, one, one * np.float32(params.step), None, None)
    rows, columns = _scaled.steps_of(params, np.asarray(c.steps))
    view = _view_of(params)
    limits = np.array(params.limits, np.int32)
    return _of_matrices(levels.reshape(view.sizes), rows, columns, np.float32(params.step), limits, view)


def of_levels(q: Levels) -> Piece:
    """The piece of a leaf of calibrated rounding."""
    levels, rows, columns, step, limit = jax.device_get(
        (q.levels, q.row_steps, q.column_steps, q.step, q.limit)
    )
    return _of_matrices(levels, rows, columns, step, limit, q.view)


def _view_of(params: _scaled.Scaled) -> View:
    """Which axes of an array count matrices, rows and columns."""
    order = list(params.order or range(len(params.shape)))
    groups: list[tuple[int, ...]] = []
    for size in (len(params.limits), params.rows):
        n = next(i for i in range(len(order) + 1) if math.prod(params.shape[a] for a in order[:i]) == size)
        groups.append(tuple(order[:n]))
        order = order[n:]
    return View(params.shape, groups[0], groups[1], tuple(order))


def _of_matrices(
    levels: np.ndarray, rows: np.ndarray, columns: np.ndarray, step: Any, limits: np.ndarray, view: View
) -> Piece:
    """The piece of levels (b, m, n), with steps of their rows int8 (b, m) and columns (b, n)."""
    powers, table = step_grid.table_of(np.float32(1)), step_grid.table_of(np.float32(step))

    def numbers(steps: np.ndarray, table: np.ndarray, without: tuple[int, ...]) -> np.ndarray:
        """Numbers for matrices and rows, or columns, with as many axes as the leaf."""
        narrow = view._replace(shape=tuple(1 if a in without else n for a, n in enumerate(view.shape)))
        out: Any = narrow.leaf(table[steps.astype(np.int32) - step_grid.LOWEST])  # type: ignore[arg-type]
        return out

    leaf: Any = view.leaf(levels)  # type: ignore[arg-type]
    limit = (
        numbers(limits, table, view.rows + view.columns) if _is_limited(levels, rows, columns, limits) else None
    )
    of_rows, of_columns = numbers(rows, powers, view.columns), numbers(columns, table, view.rows)
    return Piece(leaf, of_rows, of_columns, limit, view.rows[-1] if view.rows else None)


def _is_limited(levels: np.ndarray, rows: np.ndarray, columns: np.ndarray, limits: np.ndarray) -> bool:
    """Whether the limit of a matrix makes any weight smaller."""
    height = max(_PIECE // max(levels.shape[2], 1), 1)
    for b, limit in enumerate(limits):
        most = limit - columns[b].astype(np.int32)  # what a step of a row may be
        near = np.flatnonzero(rows[b] > most.min(initial=step_grid.HIGHEST))
        for i in range(0, len(near), height):
            some = near[i : i + height]
            if ((rows[b, some].astype(np.int32)[:, None] > most) & (levels[b, some] != 0)).any():
                return True
    return False
