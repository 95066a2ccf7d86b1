"""The table of the map: which place on the target every bin's edge goes to, by its rank."""

import jax
import jax.numpy as jnp

from ggjax.reshape._histogram import COUNT_BITS
from ggjax.reshape._kept import Bins, Kept
from ggjax.reshape._levels import MAX_LEVEL
from ggjax.reshape._target import cumulated


def unit_bits(number: int) -> int:
    """Ranks of so many weights are counted in units of 2 to this power, so that they fit into an int32."""
    return max((number - 1).bit_length() - COUNT_BITS, 0)


def ranks_of_edges(parts: list[jax.Array], mask: jax.Array, unit: int) -> jax.Array:
    """How many weights of the bins in the mask lie below every edge, in units of 2^unit, rounded down.

    The parts are counts to be added up, int32 (BINS,) each; the ranks are exact, int32 (BINS + 1,).
    """
    parts = [jnp.where(mask, c, 0) for c in parts]
    ranks = cumulated(sum((c >> unit for c in parts[1:]), parts[0] >> unit))
    if unit:
        rest = (1 << unit) - 1
        ranks = ranks + (cumulated(sum((c & rest for c in parts[1:]), parts[0] & rest)) >> unit)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), ranks])


def positions_of(ranks: jax.Array, ends: jax.Array, kept: Kept) -> jax.Array:
    """Where on the target each rank falls, float32: its level plus the part of the level that is used up."""
    i = jnp.searchsorted(ends, ranks, side="right").astype(jnp.int32)
    i = jnp.clip(i, MAX_LEVEL - kept.max_level, MAX_LEVEL + kept.max_level)
    start = jnp.where(i > 0, ends[i - 1], 0)
    used = (ranks - start).astype(jnp.float32) / jnp.maximum(ends[i] - start, 1).astype(jnp.float32)
    position = (i - MAX_LEVEL).astype(jnp.float32) + jnp.clip(used, 0, 1)
    position = kept.mu.astype(jnp.float32) + position
    end = (kept.mu + kept.max_level + 1).astype(jnp.float32)
    return jnp.minimum(position, jnp.nextafter(end, jnp.zeros_like(end) - jnp.inf))


def levels_after(positions: jax.Array, bins: Bins, kept: Kept) -> jax.Array:
    """The level that most weights of every bin have in the end, int32 (BINS,)."""
    middle = jnp.floor(0.5 * (positions[:-1] + positions[1:])).astype(jnp.int32)
    return jnp.where(kept.mask, middle, bins.level)
