"""Placing weights by the table: one look-up each, wherever they lie."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ggjax._internal import mesh
from ggjax.reshape import _levels as levels
from ggjax.reshape._levels import Grid
from ggjax.reshape._pieces import Piece, over_pieces, varying_like


class Table(NamedTuple):
    """The monotone map from weights to their new levels."""

    positions: jax.Array  # float32 (BINS + 1,): where the edges of the grid's bins go
    grid: Grid
    low: jax.Array  # int32 (): the levels from low
    high: jax.Array  # int32 (): to high are reshaped, the others rounded


def place(x: jax.Array, table: Table, keep_zeros: bool, in_pieces: bool) -> jax.Array:
    """The weights x reshaped, in their dtype, and sharded as they are."""
    if not in_pieces:
        return mesh.elementwise(lambda x, table: _place(x, table, keep_zeros), x, table)

    # In a loop: XLA would else compute the result anew, in a program of its own, for each slice of it.
    def step(piece: Piece, flat: jax.Array) -> jax.Array:
        old = piece.read(flat)
        return piece.write(flat, jnp.where(piece.fresh, _place(old, table, keep_zeros), old))

    return over_pieces(x.size, step, varying_like(x.ravel(), table.positions)).reshape(x.shape)


def _place(x: jax.Array, table: Table, keep_zeros: bool) -> jax.Array:
    """Between the places of the edges of their bin weights go in proportion."""
    q = levels.level_of(x, table.grid.step)
    i, part = levels.bin_of(x, table.grid)
    left, right = (
        table.positions.at[edge].get(mode="promise_in_bounds", wrap_negative_indices=False).astype(part.dtype)
        for edge in (i, i + 1)
    )
    new = jnp.floor(jnp.minimum(left + part * (right - left), right))
    moves = levels.within(q, table.low, table.high) & levels.takes_part(x, keep_zeros)
    return levels.value_of(jnp.where(moves, new, q), x, table.grid.step)
