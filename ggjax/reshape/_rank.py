"""Placing weights by sorting all of them: exact and slow, the reference for the table."""

import jax
import jax.numpy as jnp
from jax import lax

from ggjax._internal import trees
from ggjax.reshape import _levels as levels
from ggjax.reshape._histogram import COUNT_BITS
from ggjax.reshape._kept import Kept
from ggjax.reshape._levels import MAX_LEVEL


def place_by_rank(
    leaves: list[jax.Array], step: jax.Array, kept: Kept, ends: jax.Array, keep_zeros: bool
) -> list[jax.Array]:
    """The weights that are kept, sorted (equal ones in tree order), fill the target's levels in order."""
    n = trees.size(leaves)
    if n >= 1 << COUNT_BITS:
        raise ValueError(f'method="rank" sorts fewer than 2^31 weights, got {n}: use method="histogram"')
    dtype = trees.wide_dtype(*(x.dtype for x in leaves))
    flat = jnp.concatenate([x.ravel().astype(dtype) for x in leaves])
    q = jnp.concatenate([levels.level_of(x, step).ravel().astype(dtype) for x in leaves])
    moves = levels.within(q, kept.low, kept.high) & levels.takes_part(flat, keep_zeros)
    key = jnp.where(moves, _sort_key(flat), _last_key(flat.dtype))
    order = lax.sort((key, jnp.arange(n, dtype=jnp.int32)), num_keys=1, is_stable=True)[1]
    level = jnp.searchsorted(ends, jnp.arange(n, dtype=jnp.int32), side="right").astype(jnp.int32)
    # A weight halfway between two levels may count as kept here and not in the histogram that ends comes from.
    level = jnp.clip(level - MAX_LEVEL, -kept.max_level, kept.max_level)
    level = (kept.mu + level).astype(dtype)
    new = jnp.where(moves, jnp.zeros(n, dtype).at[order].set(level, unique_indices=True), q)
    out, start = [], 0
    for x in leaves:
        q_x = new[start : start + x.size].reshape(x.shape).astype(trees.wide_dtype(x.dtype))
        out.append(levels.value_of(q_x, x, step))
        start += x.size
    return out


def _sort_key(x: jax.Array) -> jax.Array:
    """Integers in the order of the floats, 0 and -0 alike: XLA sorts floats ten times slower on a CPU."""
    integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0, x), integer)
    sign = bits >> (jnp.iinfo(integer).bits - 1)  # -1 for negative numbers, whose bits fall as they rise
    return bits ^ (sign & jnp.iinfo(integer).max)


def _last_key(dtype: jax.typing.DTypeLike) -> int:
    return int(jnp.iinfo(jnp.int64 if dtype == jnp.float64 else jnp.int32).max)
