"""Histograms of all leaves together: integers, so that sharded weights give the counts of whole ones."""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ggjax._internal import mesh, trees
from ggjax.reshape import _levels as levels
from ggjax.reshape._levels import BINS, MAX_LEVEL, Grid
from ggjax.reshape._pieces import PIECE, over_pieces, varying_like

COUNT_BITS = 31
"""Bits of a count: the largest int32 is 2^31 - 1."""

_BEYOND, _LEFT_OUT, _ALL_BINS = BINS, BINS + 1, BINS + 2
"""Two more bins: for weights out of reach, and for those that are not to be counted."""


class Counting(NamedTuple):
    """How weights are counted: hashable, as it is static under jit."""

    keep_zeros: bool  # weights that are exactly 0 are not counted
    whole: bool  # every leaf lies on one device, so that it may be read in pieces
    axis_name: Hashable  # axis of shard_map or vmap to add the counts up over, or None


class Histogram(NamedTuple):
    """Counts of the bins of a grid."""

    parts: list[jax.Array]  # int32 (BINS,) each, to be added up: one per 2^31 weights
    beyond: jax.Array  # float32 (): weights out of reach, NaN and infinities among them

    def counts(self) -> jax.Array:
        """The counts in float32 (BINS,): exact up to 2^24."""
        return sum((p.astype(jnp.float32) for p in self.parts[1:]), self.parts[0].astype(jnp.float32))


def number_of(leaves: list[jax.Array], counting: Counting) -> int:
    """How many weights there are, on all devices of the axis together."""
    return trees.size(leaves) * (1 if counting.axis_name is None else lax.axis_size(counting.axis_name))


def histogram(leaves: list[jax.Array], grid: Grid, counting: Counting) -> Histogram:
    """Count the weights of all leaves by the bins of the grid."""

    def add(counts: jax.Array, x: jax.Array, fresh: jax.Array | bool, grid: Grid) -> jax.Array:
        q = levels.level_of(x, grid.step)
        if grid.per_level is None:  # levels as they are rounded: the sum in bin_of may shift a weight halfway
            i = q.astype(jnp.int32) + MAX_LEVEL
        else:
            i = levels.bin_of(x, grid)[0]
        i = jnp.where(levels.within(q, -grid.reach, grid.reach), i, _BEYOND)
        i = jnp.where(levels.takes_part(x, counting.keep_zeros) & fresh, i, _LEFT_OUT)
        return counts.at[i].add(1, mode="promise_in_bounds", wrap_negative_indices=False)

    def count(x: jax.Array, grid: Grid) -> jax.Array:
        return add(jnp.zeros(_ALL_BINS, jnp.int32), x, True, grid)

    parts = []
    for run in _runs(leaves, counting):
        counts = jnp.zeros(_ALL_BINS, jnp.int32)
        for x in run:
            if mesh.explicit_sharding(x) is not None:
                counts = counts + mesh.reduce(count, x, grid)
            elif counting.whole and x.size > PIECE:
                flat = x.ravel()
                start = varying_like(counts, flat, grid.reach)
                counts = over_pieces(x.size, lambda p, c, v=flat: add(c, p.read(v), p.fresh, grid), start)
            else:
                counts = add(counts, x, True, grid)
        parts.append(counts if counting.axis_name is None else lax.psum(counts, counting.axis_name))
    beyond = sum(p[_BEYOND].astype(jnp.float32) for p in parts)
    return Histogram([p[:BINS] for p in parts], jnp.asarray(beyond, jnp.float32))


def _runs(leaves: list[jax.Array], counting: Counting) -> Iterator[list[jax.Array]]:
    """The leaves in runs whose counts fit into int32 (as does a larger leaf's, unless it is all equal)."""
    run: list[jax.Array] = []
    for x in leaves:
        if run and number_of([*run, x], counting) >= 1 << COUNT_BITS:
            yield run
            run = []
        run.append(x)
    if run:
        yield run
