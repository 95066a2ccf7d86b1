"""Which steps the rows and columns of each matrix get, and along which of the two errors are made good.

At high rates the fewest bits for a given rise of the loss are reached when every weight contributes the same to
it (reverse water-filling). With feedback along the rows, row i contributes M_ii^2 s^2 / 12 (``_feedback``), so
that the step of weight (i, j) is in proportion to 1 / (sqrt(c) M_ii sqrt(R_jj)), with one constant for the
whole tree; with feedback on both sides (``_two_sides``), to 1 / (sqrt(c) M_L,ii M_R,jj).
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ggjax._internal.step_grid import FINENESS
from ggjax.sensitivity import _feedback
from ggjax.sensitivity._state import Factors

Sides: TypeAlias = Literal["both", "one"]
"""Errors are made good by later rows and later columns, or along the axis that gains more by it."""


class Plan(NamedTuple):
    """How the matrices of a leaf are to be rounded; b matrices of m rows and n columns."""

    rows: jax.Array  # (b, m, m), the M of the rows; (b, 1, 1) where errors are not made good along them
    columns: jax.Array  # (b, n, n) or (b, 1, 1)
    row_steps: jax.Array  # int8 (b, m), in eighths of a power of two
    column_steps: jax.Array  # int8 (b, n)
    step: jax.Array  # float32 (), the step where both are 0, up to the constant of the tree; infinite where
    # nothing is known


class _Axis(NamedTuple):
    """The rows or the columns: what an error costs there, by the root of the share of each."""

    triangle: jax.Array  # (b, k, k), or (b, 1, 1) of a diagonal factor
    alone: jax.Array  # (b, k), the roots of the diagonal
    made_good: jax.Array  # (b, k), where later ones make it good

    @property
    def gain(self) -> jax.Array:
        """How many bits a weight the feedback saves."""
        return (jnp.log2(self.alone) - jnp.log2(self.made_good)).mean()


def plan(f: Factors, examples: float, damping: float, which: slice, sides: Sides = "both") -> Plan:
    """The plan for a leaf.

    Args:
      f: its factors, of which the halves in ``which`` count.
      examples: how many examples these halves are sums over.
      damping: what is added to the diagonal of a factor, relative to its mean.
      sides: along which axes errors are made good; never along one with a diagonal factor.
    """
    b, m, n = f.view.sizes
    rows, columns, total = f.summed(which)
    first, second = (_axis(_normalised(x, total), damping) for x in (rows, columns))
    if sides == "one":
        if float(first.gain) >= float(second.gain):
            second = _without_feedback(second)
        else:
            first = _without_feedback(first)
    c = total / (m * n) / examples  # (b,)
    known = (c > 0)[:, None]
    exact = -FINENESS * jnp.log2(first.made_good) - FINENESS / 2 * jnp.log2(jnp.where(known, c[:, None], 1))
    row_steps, row_centre = _in_eighths(jnp.where(known, exact, jnp.nan))
    column_steps, column_centre = _in_eighths(-FINENESS * jnp.log2(second.made_good))
    step = jnp.where(known.any(), 2.0 ** ((row_centre + column_centre) / FINENESS), jnp.inf)
    return Plan(first.triangle, second.triangle, row_steps, column_steps, step)


def plain(f: Factors) -> Plan:
    """The plan of one step for all weights, without feedback."""
    b, m, n = f.view.sizes
    rows, columns = jnp.zeros((b, m), jnp.int8), jnp.zeros((b, n), jnp.int8)
    without = jnp.ones((b, 1, 1))
    return Plan(without, without, rows, columns, jnp.ones(()))


def _normalised(x: jax.Array, total: jax.Array) -> jax.Array:
    """A factor with a mean diagonal of 1; the identity for one of zeros."""
    size = x.shape[-1]
    unit = jnp.where(total > 0, total, 1) / size
    identity = jnp.ones(size) if x.ndim == 2 else jnp.eye(size)
    unit = unit.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where((total > 0).reshape(unit.shape), x / unit, identity[None])


def _axis(x: jax.Array, damping: float) -> _Axis:
    """An axis by its factor, with damping in it."""
    if x.ndim == 2:
        alone = jnp.sqrt(x + damping)
        return _Axis(jnp.ones((len(x), 1, 1)), alone, alone)
    triangle = jax.vmap(_feedback.factor_of, (0, None))(x, damping)
    alone, made_good = (jnp.diagonal(a, axis1=1, axis2=2) for a in (x, triangle))
    return _Axis(triangle, jnp.sqrt(alone + damping), made_good)


def _without_feedback(axis: _Axis) -> _Axis:
    return _Axis(jnp.ones((len(axis.alone), 1, 1)), axis.alone, axis.alone)


def _in_eighths(exact: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whole eighths of an octave as int8 about their centre, and that centre; the largest for NaN."""
    centre = jnp.round((jnp.nanmax(exact) + jnp.nanmin(exact)) / 2)
    known = ~jnp.isnan(exact)
    return jnp.where(known, jnp.clip(jnp.round(exact - centre), -127, 127), 127).astype(jnp.int8), centre
