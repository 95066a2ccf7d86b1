"""The kept range: which levels are reshaped, and the law of the weights that decides where they go."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ggjax import gennorm
from ggjax.gennorm import _fit
from ggjax.reshape._levels import BINS, MAX_LEVEL

_WEIGHTS_PER_COUNT = 100_000
"""The chosen ``min_count`` is the number of weights over this one: the published 1000 is for some 10^8."""

_LEAST_FALL = 200
"""But at most the count of the levels next to 0 over this number, however fine the step.

A Laplace law has 1/200 of its weights beyond the level that holds 1/200 of the central count; a GG of shape
1/2, 3 %.
"""


class Scan(NamedTuple):
    """What the count of every level says about the range to keep; scalars, int32 where not said otherwise."""

    min_count: jax.Array  # as given or as chosen, float32
    beside_zero: jax.Array  # mean count of the levels 1 and -1, float32
    cut: jax.Array  # bool: whether a rare level ends the range
    edge: jax.Array  # the fit takes weights within so many levels of 0, where the range is cut
    lowest: jax.Array
    highest: jax.Array  # lowest and highest level that occur
    reach: jax.Array  # the levels to be reshaped lie between -reach and reach
    inside: jax.Array  # float32: how many weights lie within edge levels of 0, but not in level 0
    outside: jax.Array  # float32: how many lie farther from 0 than that


class Bins(NamedTuple):
    """Where the bins of a histogram lie, as arrays (BINS,)."""

    level: jax.Array  # int32: the level that the bin is part of
    centre: jax.Array  # float32: its middle, in levels


class Kept(NamedTuple):
    """The levels that are reshaped, mu - max_level to mu + max_level, and the law fitted to the weights."""

    law: gennorm.Fit  # its scale in levels
    mu: jax.Array  # int32 ()
    max_level: jax.Array  # int32 ()
    low: jax.Array  # int32 ()
    high: jax.Array  # int32 (): the lowest and highest level among these that can occur
    mask: jax.Array  # bool (BINS,): bins of levels that are kept


def chosen_min_count(number: jax.Array, beside_zero: jax.Array) -> jax.Array:
    """``min_count`` for so many weights, so many of them in a level next to 0; it is 0 for a small model."""
    return jnp.floor(jnp.minimum(number / _WEIGHTS_PER_COUNT, beside_zero / _LEAST_FALL))


def scan_levels(counts: jax.Array, beyond: jax.Array, min_count: jax.Array | None) -> Scan:
    """Find the rare level that ends the kept range, from counts of all levels -MAX_LEVEL to MAX_LEVEL."""
    beside_zero = 0.5 * (counts[MAX_LEVEL - 1] + counts[MAX_LEVEL + 1])
    total = counts.sum() + beyond
    min_count = chosen_min_count(total, beside_zero) if min_count is None else jnp.floor(min_count)
    level = jnp.arange(-MAX_LEVEL, MAX_LEVEL + 1, dtype=jnp.int32)
    rare = (counts > 0) & (counts <= min_count) & (level > 0)
    cut = rare.any()
    lowest = jnp.argmax(counts > 0).astype(jnp.int32) - MAX_LEVEL
    highest = MAX_LEVEL - jnp.argmax(counts[::-1] > 0).astype(jnp.int32)
    farthest = jnp.where(counts.any(), jnp.maximum(highest, -lowest), 0)
    edge = jnp.where(cut, jnp.argmax(rare).astype(jnp.int32) - MAX_LEVEL, farthest)
    near = jnp.where(jnp.abs(level) <= edge, counts, 0)
    mean = moments(near, level.astype(jnp.float32)).mean
    reach = jnp.where(cut, jnp.minimum(edge + jnp.abs(mean).astype(jnp.int32) + 1, MAX_LEVEL), farthest)
    inside, outside = near.sum() - counts[MAX_LEVEL], total - near.sum()
    return Scan(min_count, beside_zero, cut, edge, lowest, highest, reach, inside, outside)


def bins_per_level(reach: jax.Array) -> jax.Array:
    """As many bins a level as a histogram has room for, an odd number: one lies in the middle of the level."""
    fit = jnp.int32(BINS) // (2 * reach + 1)
    return fit - 1 + fit % 2


def bins(reach: jax.Array, per_level: jax.Array) -> Bins:
    """The bins of levels -reach to reach."""
    i = jnp.arange(BINS, dtype=jnp.int32)
    level = i // per_level - reach
    part = i % per_level - per_level // 2
    return Bins(level, level.astype(jnp.float32) + part.astype(jnp.float32) / per_level.astype(jnp.float32))


def kept_range(found: Scan, bins: Bins, counts: jax.Array, dtype: jax.typing.DTypeLike) -> Kept:
    """Fit the law to the counts of the bins, and centre the range on it."""
    fitted = ~found.cut | (jnp.abs(bins.centre) <= found.edge.astype(jnp.float32))
    m = moments(jnp.where(fitted, counts, 0), bins.centre)
    mu = jnp.trunc(m.mean).astype(jnp.int32)
    # Where nothing is cut, the levels lie in [-reach, reach] and mu between them.
    to_farthest = jnp.minimum(jnp.maximum(found.highest - mu, mu - found.lowest), MAX_LEVEL)
    max_level = jnp.where(counts.any(), jnp.where(found.cut, found.edge, to_farthest), 0)
    low = jnp.maximum(mu - max_level, -found.reach)
    high = jnp.minimum(mu + max_level, found.reach)
    return Kept(law(m, dtype), mu, max_level, low, high, jnp.abs(bins.level - mu) <= max_level)


class Moments(NamedTuple):
    """Sums over a histogram, float32 scalars."""

    first: jax.Array  # sum of |x|
    second: jax.Array  # sum of x^2
    mean: jax.Array  # of x, 0 where there is none
    number: jax.Array


def moments(counts: jax.Array, x: jax.Array) -> Moments:
    """The moments of a histogram whose bins lie at x."""
    number = counts.sum()
    mean = jnp.sum(counts * x) / jnp.maximum(number, 1)
    return Moments(jnp.sum(counts * jnp.abs(x)), jnp.sum(counts * x * x), mean, number)


def law(m: Moments, dtype: jax.typing.DTypeLike) -> gennorm.Fit:
    """The law of these moments about 0, in this dtype."""
    fit = _fit.from_moments(m.first.astype(dtype), m.second.astype(dtype), m.number.astype(dtype))
    return gennorm.Fit(*(v.astype(dtype) for v in fit))
