"""Which steps the rows and columns of each matrix get, and along which of the two errors are made good.

At high rates the fewest bits for a given rise of the loss are reached when every weight contributes the same to
it (reverse water-filling). With feedback along the rows, row i contributes M_ii^2 s^2 / 12 (``_feedback``), so
that the step of weight (i, j) is in proportion to 1 / (sqrt(c) M_ii sqrt(R_jj)), with one constant for the
whole tree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ggjax._internal.step_grid import FINENESS
from ggjax.sensitivity import _feedback
from ggjax.sensitivity._state import Factors


class Plan(NamedTuple):
    """How the matrices of a leaf are to be rounded; b matrices of m rows and n columns."""

    along_rows: bool  # whether errors are made good by later rows, or by later columns
    triangle: jax.Array  # (b, m, m) or (b, n, n), the M of the rows or columns; (b, 1, 1) without feedback
    row_steps: jax.Array  # int8 (b, m), in eighths of a power of two
    column_steps: jax.Array  # int8 (b, n)
    step: jax.Array  # float32 (), the step where both are 0, up to the constant of the tree; infinite where
    # nothing is known


def plan(f: Factors, examples: float, damping: float, which: slice) -> Plan:
    """The plan for a leaf.

    Args:
      f: its factors, of which the halves in ``which`` count.
      examples: how many examples these halves are sums over.
      damping: what is added to the diagonal of a factor, relative to its mean.
    """
    b, m, n = f.view.sizes
    rows, columns, total = f.summed(which)
    rows, columns = (_normalised(x, total) for x in (rows, columns))
    ways = [_way(rows, columns, damping)]
    if columns.ndim == 3:
        ways.append(_way(columns, rows, damping))
    # The mean logarithm of what the steps of a way may be: the more, the fewer bits.
    gains = [-(jnp.log2(first).mean() + jnp.log2(second).mean()) for _, first, second in ways]
    best = max(range(len(ways)), key=lambda i: float(gains[i]))
    triangle, first, second = ways[best]
    own = (first, second) if best == 0 else (second, first)
    c = total / (m * n) / examples  # (b,)
    rows, columns = (-FINENESS * jnp.log2(x) for x in own)
    known = (c > 0)[:, None]
    rows = jnp.where(known, rows - FINENESS / 2 * jnp.log2(jnp.where(known, c[:, None], 1)), jnp.nan)
    (row_steps, row_centre), (column_steps, column_centre) = _in_eighths(rows), _in_eighths(columns)
    step = jnp.where(known.any(), 2.0 ** ((row_centre + column_centre) / FINENESS), jnp.inf)
    return Plan(best == 0, triangle, row_steps, column_steps, step)


def plain(f: Factors) -> Plan:
    """The plan of one step for all weights, without feedback."""
    b, m, n = f.view.sizes
    rows, columns = jnp.zeros((b, m), jnp.int8), jnp.zeros((b, n), jnp.int8)
    return Plan(True, jnp.ones((b, 1, 1)), rows, columns, jnp.ones(()))


def _normalised(x: jax.Array, total: jax.Array) -> jax.Array:
    """A factor with a mean diagonal of 1; the identity for one of zeros."""
    size = x.shape[-1]
    unit = jnp.where(total > 0, total, 1) / size
    identity = jnp.ones(size) if x.ndim == 2 else jnp.eye(size)
    unit = unit.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where((total > 0).reshape(unit.shape), x / unit, identity[None])


def _way(first: jax.Array, second: jax.Array, damping: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(M of the first factor, its diagonal, the roots of the diagonal of the second), with damping in each."""
    if first.ndim == 3:
        triangle = jax.vmap(_feedback.factor_of, (0, None))(first, damping)
        diagonal = jnp.diagonal(triangle, axis1=1, axis2=2)
    else:
        triangle, diagonal = jnp.ones((len(first), 1, 1)), jnp.sqrt(first + damping)
    other = second if second.ndim == 2 else jnp.diagonal(second, axis1=1, axis2=2)
    return triangle, diagonal, jnp.sqrt(other + damping)


def _in_eighths(exact: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whole eighths of an octave as int8 about their centre, and that centre; the largest for NaN."""
    centre = jnp.round((jnp.nanmax(exact) + jnp.nanmin(exact)) / 2)
    known = ~jnp.isnan(exact)
    return jnp.where(known, jnp.clip(jnp.round(exact - centre), -127, 127), 127).astype(jnp.int8), centre
