"""Feedback on both sides of a matrix: an experiment, not a part of the library.

With M_L^T M_L and M_R^T M_R the factors of rows and columns, the cost of an error E is |M_L E M_R^T|^2.
Element (i, j) of that product is made of the errors at i' <= i and j' <= j, so that a weight can be rounded to
make good what the rows before it and, in its own row, the columns before it owe. A row's targets are those of
the feedback along the rows; the feedback along the columns then goes through that row.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ggjax._internal import step_grid
from ggjax.sensitivity import Factors, Levels, _feedback, _plans, _search
from ggjax.sensitivity._views import View


class Plan(NamedTuple):
    """As the library's plan has it, with the triangles of both sides."""

    left: jax.Array  # (b, m, m)
    right: jax.Array  # (b, n, n)
    row_steps: jax.Array  # int8 (b, m), in eighths of a power of two
    column_steps: jax.Array  # int8 (b, n)
    step: jax.Array  # float32 ()


def plan(f: Factors, examples: float, arm: str = "both", damping: float = _search.DAMPING) -> Plan:
    """The plan for a leaf whose factors are both full."""
    b, m, n = f.view.sizes
    rows, columns, total = f.summed(slice(None))
    rows, columns = (_plans._normalised(x, total) for x in (rows, columns))
    (left, of_rows, _), (right, of_columns, _) = (
        _plans._way(x, y, damping) for x, y in ((rows, columns), (columns, rows))
    )
    c = jnp.maximum(total / (m * n) / examples, 1e-30)[:, None]
    row_steps, row_centre = _plans._in_eighths(-step_grid.FINENESS * jnp.log2(of_rows * jnp.sqrt(c)))
    column_steps, column_centre = _plans._in_eighths(-step_grid.FINENESS * jnp.log2(of_columns))
    return Plan(
        left, right, row_steps, column_steps, 2.0 ** ((row_centre + column_centre) / step_grid.FINENESS)
    )


@functools.partial(jax.jit, static_argnames="view")
def round_leaf(x: jax.Array, plan: Plan, constant: float, cap: float, view: View) -> Levels:
    """A leaf rounded by its plan; steps are capped at so many standard deviations of the leaf."""
    w = view.matrices(x.astype(jnp.float32))
    step = plan.step * constant
    limit = jnp.floor(step_grid.FINENESS * jnp.log2(cap * jnp.std(w, axis=(1, 2)) / step))
    limit = jnp.clip(limit, step_grid.LOWEST, step_grid.HIGHEST).astype(jnp.int32)
    sizes = step_grid.table_of(step)[step_grid.place_of(plan.row_steps, plan.column_steps, limit)]
    levels = jax.vmap(round_both)(w, plan.left, plan.right, sizes)
    return Levels(
        levels.astype(jnp.int32), plan.row_steps, plan.column_steps, step, limit, view, jnp.dtype(x.dtype)
    )


def round_both(w: jax.Array, left: jax.Array, right: jax.Array, steps: jax.Array) -> jax.Array:
    """The levels of a matrix, float32 (m, n), by the lower triangles of its rows and columns."""
    diagonal = jnp.diagonal(left)[:, None]
    before = jnp.tril(left, -1) / diagonal

    def row(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        errors, levels = state
        target = w[i] - before[i] @ errors
        # Rounding the target with feedback along the columns counts what the row owes along with its errors.
        level = _feedback.round_rows(target[:, None], right, steps[i][:, None])[:, 0]
        return errors.at[i].set(level * steps[i] - w[i]), levels.at[i].set(level)

    zeros: Any = jnp.zeros_like(w)
    return lax.fori_loop(0, len(w), row, (zeros, zeros))[1]
