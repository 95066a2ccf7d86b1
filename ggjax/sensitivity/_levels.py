"""The levels of a leaf, and the rounding to them by a plan."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ggjax._internal import step_grid
from ggjax.sensitivity import _feedback, _two_sides
from ggjax.sensitivity._plans import Plan
from ggjax.sensitivity._views import View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
    """A rounded leaf: whole numbers, and the steps that they are multiples of."""

    levels: jax.Array  # int32 (b, m, n): the leaf as b matrices of m rows and n columns
    row_steps: jax.Array  # int8 (b, m), in eighths of a power of two
    column_steps: jax.Array  # int8 (b, n)
    step: jax.Array  # float32 (), the step of a weight whose row and column have 0
    limit: jax.Array  # int32 (b,), in eighths of a power of two: no step is larger
    view: View = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def steps(self) -> jax.Array:
        """The step of every weight, float32 (b, m, n): step 2^(k / 8) with k the smaller of row_steps_i +
        column_steps_j and limit."""
        return step_grid.table_of(self.step)[step_grid.place_of(self.row_steps, self.column_steps, self.limit)]

    @property
    def values(self) -> jax.Array:
        """The weights: levels times steps, in the shape and dtype of the leaf."""
        return self.view.leaf(self.levels.astype(jnp.float32) * self.steps).astype(self.dtype)


@functools.partial(jax.jit, static_argnames="view")
def round_leaf(x: jax.Array, plan: Plan, cap: float, view: View) -> Levels:
    """A leaf rounded by its plan, with no step above so many standard deviations of its matrices (the cap)."""
    rows, columns, row_steps, column_steps, step = plan
    w = view.matrices(x.astype(jnp.float32))
    largest = cap * spread_of(x, view)
    # Where nothing is known, the step is infinite: every step is the largest.
    step = jnp.clip(jnp.minimum(step, largest.min() * 2.0**30), step_grid.SMALLEST, step_grid.LARGEST)
    limit = jnp.floor(step_grid.FINENESS * jnp.log2(largest / step))
    limit = jnp.clip(limit, step_grid.LOWEST, step_grid.HIGHEST).astype(jnp.int32)
    sizes = step_grid.table_of(step)[step_grid.place_of(row_steps, column_steps, limit)]
    levels = with_feedback(w, rows, columns, sizes, jnp.round)
    return Levels(levels.astype(jnp.int32), row_steps, column_steps, step, limit, view, jnp.dtype(x.dtype))


@functools.partial(jax.jit, static_argnames="view")
def spread_of(x: jax.Array, view: View) -> jax.Array:
    """float32 (b,): the standard deviations of the matrices of a leaf; the largest weight or 1 for 0."""
    w = view.matrices(x.astype(jnp.float32))
    spread = jnp.std(w, axis=(1, 2))
    return jnp.where(spread > 0, spread, jnp.maximum(jnp.abs(w).max((1, 2)), 1.0))


def with_feedback(
    w: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    sizes: jax.Array,
    snap: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The levels of matrices, float32 (b, m, n).

    Args:
      w: float32 (b, m, n).
      rows, columns: as a plan has them: errors are made good along those axes that have a triangle.
      sizes: of the steps, of the shape of w.
      snap: from numbers, in steps, to the levels that there are.
    """
    along_rows, along_columns = rows.shape[-1] > 1, columns.shape[-1] > 1
    if along_rows and along_columns:
        return jax.vmap(functools.partial(_two_sides.round_both, snap=snap))(w, rows, columns, sizes)
    if along_rows:
        return jax.vmap(functools.partial(_feedback.round_rows, snap=snap))(w, rows, sizes)
    if along_columns:
        return with_feedback(w.swapaxes(1, 2), columns, rows, sizes.swapaxes(1, 2), snap).swapaxes(1, 2)
    return snap(w / sizes)
