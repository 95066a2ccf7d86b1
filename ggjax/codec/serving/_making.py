"""From levels on the host to a ``LevelArray``: in how few bits, and which weights are kept beside it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec.serving import _nibbles, _patches
from ggjax.codec.serving._array import LevelArray, step_of
from ggjax.codec.serving._pieces import Piece

SLOTS = 64
"""Of so many rows one may be a slot of patches: that adds an eighth of a byte a weight at most, and some tenths
to the time of a product."""


def level_array(piece: Piece, dtype: Any, axis: int, *, is_table: bool = False) -> LevelArray:
    """The array in the fewest bits.

    Args:
      piece: levels of at most 16 bits.
      dtype: of the weights.
      axis: the one of rows.
      is_table: rows are looked up: two never share a byte, and no weights are kept beside the levels.
    """
    levels = piece.levels
    room = 0 if is_table else levels.shape[axis] // SLOTS
    widths = [(_nibbles.LOWEST, _nibbles.HIGHEST)] if not is_table and levels.shape[axis] % 2 == 0 else []
    for low, high in (*widths, (-128, 127)):
        beyond = (levels < low) | (levels > high)
        if _patches.slots_of(beyond, axis) <= room:
            return _made(piece, beyond, dtype, axis, np.int8, packed=high < 127)
    return _made(piece, np.zeros(levels.shape, bool), dtype, axis, np.int16, packed=False)


def _made(piece: Piece, beyond: np.ndarray, dtype: Any, axis: int, narrow: Any, packed: bool) -> LevelArray:
    patches = None
    levels = piece.levels.astype(narrow)  # what is beyond is replaced
    if beyond.any():
        patches = _patches.of_mask(beyond, _weights(piece, beyond), axis)
        levels[beyond] = 0
    if packed:
        levels = _nibbles.pack(levels, axis)
    return LevelArray(
        levels=jax.device_put(np.ascontiguousarray(levels)),
        row_steps=jax.device_put(piece.row_steps),
        column_steps=jax.device_put(piece.column_steps),
        limit=None if piece.limit is None else jax.device_put(piece.limit),
        patches=patches,
        dtype=jnp.dtype(jax.dtypes.canonicalize_dtype(dtype)),
        axis=axis - levels.ndim,
    )


def _weights(piece: Piece, where: np.ndarray) -> np.ndarray:
    """Some weights, float32, as ``LevelArray.decode`` would compute them."""
    places = np.nonzero(where)

    def own(numbers: np.ndarray) -> np.ndarray:
        return np.broadcast_to(numbers, where.shape)[places]

    limit = None if piece.limit is None else own(piece.limit)
    step = step_of(own(piece.row_steps), own(piece.column_steps), limit)
    return piece.levels[places].astype(np.float32) * step
