"""The law that weights are reshaped to, on whole levels, as the rank at which every level ends."""

import jax
import jax.numpy as jnp
from jax import lax

from ggjax.reshape._levels import MAX_LEVEL

_ROWS = 512
"""Sums of the tables, of about 2^17 entries, run in so many rows at once: as long as the rows are many."""


def target_ends(number: jax.Array, nu: jax.Array, scale: jax.Array, max_level: jax.Array) -> jax.Array:
    """How many of the ranks lie up to and in each level, int32 (2 MAX_LEVEL + 1,), about the centre.

    Of the discrete law exp(-(|k| / scale)^nu) on the levels -max_level to max_level. It is symmetric: its tail
    is summed from the outside in, to keep small ranks accurate.
    """
    distance = jnp.arange(MAX_LEVEL, -1, -1, dtype=jnp.int32)
    z = distance.astype(jnp.float32) / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
    density = jnp.where(distance <= max_level, jnp.exp(-(z**nu)), 0)
    tail = cumulated(density)[:-1]  # the levels below the centre
    total = 2 * tail[-1] + density[-1]
    left = jnp.round(number.astype(jnp.float32) * (tail / total)).astype(jnp.int32)
    left = jnp.clip(left, 0, number // 2)
    return jnp.concatenate([left, number - left[::-1], number[None]])


def cumulated(x: jax.Array) -> jax.Array:
    """Cumulated sums by plain additions in order: quick to compile, and never falling, in floats too."""
    rows = jnp.pad(x, (0, -x.size % _ROWS)).reshape(_ROWS, -1)
    inner = _cumulated_rows(rows.T)
    sums = _cumulated_rows(inner[-1])
    before = jnp.concatenate([jnp.zeros(1, x.dtype), sums[:-1]])
    return (inner.T + before[:, None]).ravel()[: x.size]


def _cumulated_rows(rows: jax.Array) -> jax.Array:
    """Every row plus those above it. By index, as ``lax.scan`` takes minutes under ``jax.disable_jit``."""

    def add(i: jax.Array, sums: jax.Array) -> jax.Array:
        above, row = (lax.dynamic_index_in_dim(sums, k, keepdims=False) for k in (i - 1, i))
        return lax.dynamic_update_index_in_dim(sums, above + row, i, 0)

    return lax.fori_loop(1, rows.shape[0], add, rows)
