"""Which steps the rows and columns of each matrix get, and along which of the two errors are made good.

At high rates the fewest bits for a given rise of the loss are reached when every weight contributes the same to
it (reverse water-filling). With feedback along the rows, row i contributes M_ii^2 s^2 / 12 (``_feedback``), so
that the step of weight (i, j) is in proportion to 1 / (sqrt(c) M_ii sqrt(R_jj)), with one constant for the
whole tree; with feedback on both sides (``_two_sides``), to 1 / (sqrt(c) M_L,ii M_R,jj).

Two things are added to the diagonals of the factors, relative to their mean (the damping):

- What they do not know. Of few examples their small eigenvalues are too small. The share of noise in a factor
  is known from its two halves, and is shrunk away towards the identity as Ledoit and Wolf do it (2004).
- At low rates an error cannot become larger than the weight itself (the water level). With theta the error of
  a step over the variance of the weights, a direction of curvature lambda then counts as lambda + theta: the
  error there, theta / (lambda + theta) of the variance, is small beside 1 or about 1, and no step grows beyond
  sqrt(12) standard deviations by much.
"""

import functools
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ggjax._internal.step_grid import FINENESS
from ggjax.sensitivity import _feedback
from ggjax.sensitivity._state import Factors, diagonal

Sides: TypeAlias = Literal["both", "rows", "columns", "none"]
"""What makes errors good: later rows and columns, or one of them; with "none" there is one step for all."""

WATER = 2.0
LEAST = 1e-4
"""Less damping than this is beyond what float32 can tell."""
MOST_NOISE = 0.9
MOST_THETA = 100.0
"""Where all steps are about the spread of the weights. Whoever asks for fewer bits still gets coarser ones."""


class Plan(NamedTuple):
    """How the matrices of a leaf are to be rounded; b matrices of m rows and n columns."""

    rows: jax.Array  # (b, m, m), the M of the rows; (b, 1, 1) where errors are not made good along them
    columns: jax.Array  # (b, n, n) or (b, 1, 1)
    row_steps: jax.Array  # int8 (b, m), in eighths of a power of two
    column_steps: jax.Array  # int8 (b, n)
    step: jax.Array  # float32 (), the step where both are 0; infinite where nothing is known


class _Axis(NamedTuple):
    """The rows or the columns."""

    triangle: jax.Array  # (b, k, k), or (b, 1, 1) without feedback
    cost: jax.Array  # (b, k), the root of the share that an error has there, where later ones make it good


@functools.partial(jax.jit, static_argnames="sides")
def plan(
    f: Factors,
    examples: jax.Array,
    constant: jax.typing.ArrayLike,
    spread: jax.Array,
    damping: jax.typing.ArrayLike,
    sides: Sides = "both",
) -> Plan:
    """The plan for a leaf.

    Args:
      f: its factors.
      examples: float32 (2,), how many examples each of their halves is a sum over; 0 for one that is not to be
        used.
      constant: of the tree: at high rates a weight adds constant^2 / 24 to the rise of the loss.
      spread: float32 (b,), the standard deviation of the weights of each matrix.
      damping: how far to distrust the factors, as a multiple of what their halves say of their noise.
      sides: along which axes errors are made good; never along one with a diagonal factor.
    """
    b, m, n = f.view.sizes
    if sides == "none":
        alone = jnp.ones((b, 1, 1), jnp.float32)
        rows, columns = (jnp.zeros((b, k), jnp.int8) for k in (m, n))
        return Plan(alone, alone, rows, columns, jnp.asarray(constant, jnp.float32))
    used = (examples > 0).astype(jnp.float32)
    total = jnp.tensordot(used, _traces(f.columns), 1)  # (b,)
    c = total / (m * n) / examples.sum()
    theta = WATER * constant**2 / 12 / jnp.maximum(c * jnp.square(spread), 1e-30)
    # So that what both factors together say of their mean is 1 + theta.
    level = jnp.sqrt(1 + jnp.minimum(theta, MOST_THETA)) - 1
    first = _axis(f.rows, used, level, damping, sides != "columns")
    second = _axis(f.columns, used, level, damping, sides != "rows")
    known = (c > 0)[:, None]
    exact = -FINENESS * jnp.log2(first.cost) - FINENESS / 2 * jnp.log2(jnp.where(known, c[:, None], 1))
    row_steps, row_centre = _in_eighths(jnp.where(known, exact, jnp.nan))
    column_steps, column_centre = _in_eighths(-FINENESS * jnp.log2(second.cost))
    step = jnp.where(known.any(), constant * 2.0 ** ((row_centre + column_centre) / FINENESS), jnp.inf)
    return Plan(first.triangle, second.triangle, row_steps, column_steps, step)


def _traces(x: jax.Array) -> jax.Array:
    """(2, b) from a factor."""
    return jnp.trace(x, axis1=2, axis2=3) if x.ndim == 4 else x.sum(-1)


def _axis(
    x: jax.Array, used: jax.Array, level: jax.Array, damping: jax.typing.ArrayLike, feedback: bool
) -> _Axis:
    """An axis by its factor (2, b, k, k) or (2, b, k), with damping in it."""
    factor, noise = _of_halves(x, used)
    added = damping * noise / (1 - noise) + level + LEAST  # (b,)
    if factor.ndim == 2 or not feedback:
        alone = diagonal(factor) + added[:, None]
        return _Axis(jnp.ones((len(alone), 1, 1), jnp.float32), jnp.sqrt(alone))
    triangle = jax.vmap(_feedback.factor_of)(factor, added)
    return _Axis(triangle, jnp.diagonal(triangle, axis1=1, axis2=2))


def _of_halves(x: jax.Array, used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(b, k, k) or (b, k), the factor of a mean diagonal of 1; (b,), the share of noise in what it says.

    The share is the expected square of the noise over the square of the distance from the identity, which the
    factor is where nothing is known.
    """
    axes, size = tuple(range(2, x.ndim)), x.shape[-1]
    identity = jnp.eye(size, dtype=jnp.float32) if x.ndim == 4 else jnp.ones(size, jnp.float32)

    def unit(x: jax.Array, traces: jax.Array) -> jax.Array:
        traces = traces.reshape(*traces.shape, *(1,) * len(axes))
        scaled = x * (size / jnp.where(traces > 0, traces, 1))
        return jnp.where(traces > 0, scaled, jnp.expand_dims(identity, tuple(range(x.ndim - len(axes)))))

    traces = _traces(x) * used[:, None]  # (2, b)
    factor = unit(jnp.einsum("h,h...->...", used, x), traces.sum(0))
    halves = unit(x, _traces(x))
    share = traces / jnp.maximum(traces.sum(0, keepdims=True), 1e-30)
    noise = jnp.square(share).sum(0) * jnp.square(halves[0] - halves[1]).sum([a - 1 for a in axes]) / 2
    distance = jnp.square(factor - identity[None]).sum([a - 1 for a in axes])
    return factor, jnp.clip(noise / jnp.maximum(distance, 1e-12), 0, MOST_NOISE)


def _in_eighths(exact: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whole eighths of an octave as int8 about their centre, and that centre; the largest for NaN."""
    centre = jnp.round((jnp.nanmax(exact) + jnp.nanmin(exact)) / 2)
    known = ~jnp.isnan(exact)
    return jnp.where(known, jnp.clip(jnp.round(exact - centre), -127, 127), 127).astype(jnp.int8), centre
