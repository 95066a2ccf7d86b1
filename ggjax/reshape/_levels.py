"""The grid that weights are reshaped on: their levels, and the finer bins that a level is divided into."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ggjax._internal import trees

MAX_LEVEL = 1 << 16
"""Levels farther from 0 than this one (a weight of 8 at the default step) are never reshaped."""

BINS = 2 * MAX_LEVEL + 1
"""Bins of a histogram: one for every level from -MAX_LEVEL to MAX_LEVEL, or several for each of fewer."""


class Grid(NamedTuple):
    """Which levels a histogram counts, and how finely."""

    step: jax.Array  # (): distance of the levels, in the units of the weights; float32, or float64
    reach: jax.Array  # int32 (): levels from -reach to reach are counted
    per_level: jax.Array | None  # int32 (): bins per level, an odd number; None: one, whatever the reach


def takes_part(x: jax.Array, keep_zeros: bool) -> jax.Array:
    """Which weights are counted and moved, bools like x: all of them, or those that are not exactly 0."""
    return trees.wide(x) != 0 if keep_zeros else jnp.ones_like(x, bool)


def level_of(x: jax.Array, step: jax.Array) -> jax.Array:
    """The level of every weight, a whole number in float32 (in float64 for float64 weights)."""
    t = trees.wide(x)
    return jnp.round(t / step.astype(t.dtype))


def bin_of(x: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """The bin of every weight, int32, and where in the bin it lies, from 0 to 1.

    Rises with x. Weights out of reach get the nearest bin.
    """
    assert grid.per_level is not None
    t = trees.wide(x)
    z = t / grid.step.astype(t.dtype) + (grid.reach.astype(t.dtype) + 0.5)
    z = jnp.clip(z * grid.per_level.astype(t.dtype), 0, BINS)
    i = jnp.minimum(z.astype(jnp.int32), BINS - 1)
    return i, z - i.astype(z.dtype)


def within(q: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Whether levels lie between two others, both included; never so for NaN."""
    return (q >= low.astype(q.dtype)) & (q <= high.astype(q.dtype))


def value_of(q: jax.Array, x: jax.Array, step: jax.Array) -> jax.Array:
    """The weight of level q in the dtype of x, the largest one where that is beyond the dtype's range.

    Where a float has too few digits for the level, the weight x itself comes back.
    """
    exact = 2.0 ** (jnp.finfo(q.dtype).nmant + 1)  # whole numbers below this one are all floats
    largest = float(jnp.finfo(x.dtype).max)
    small = jnp.abs(q) < exact
    value = jnp.where(small, q, 0) * step.astype(q.dtype)
    return jnp.where(small, jnp.clip(value, -largest, largest), trees.wide(x)).astype(x.dtype)
