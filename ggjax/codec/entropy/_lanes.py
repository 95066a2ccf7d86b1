"""How the tokens of a part are cut into chunks, and those of a chunk dealt out to lanes.

Token i of a chunk of n goes to lane i mod L, as number i div L of it, where L = min(32, ceil(n / 8192)).
"""

from typing import Any

import numpy as np

from ggjax.codec.entropy._rans import LANES, STEPS

CHUNK = LANES * STEPS
"""Tokens in a chunk; only the last chunk of a part has fewer."""


LANE_BITS = 64
"""About what a lane takes besides the entropy of its tokens: its state, its count, the end of its words."""


def overhead_bits(size: int) -> int:
    """About what the lanes of so many tokens take besides the entropy of these."""
    return LANE_BITS * -(-size // STEPS)


def chunk_sizes(size: int) -> list[int]:
    """The tokens of every chunk of a part of so many."""
    full, rest = divmod(size, CHUNK)
    return [CHUNK] * full + [rest] * (rest > 0)


def number_of_chunks(size: int) -> int:
    """The chunks of a part of so many tokens."""
    return -(-size // CHUNK)


def lanes(size: int) -> int:
    """The lanes of a chunk of so many tokens."""
    return min(-(-size // STEPS), LANES)


def lane_lengths(size: int) -> np.ndarray:
    """The tokens of each lane of a chunk of so many, int32 (lanes,)."""
    number = lanes(size)
    steps, rest = divmod(size, number)
    return (steps + (np.arange(number) < rest)).astype(np.int32)


def to_lanes(tokens: np.ndarray, tile: np.ndarray) -> None:
    """Deal the tokens of a chunk out to the first columns of a tile (STEPS, LANES)."""
    number = lanes(len(tokens))
    steps, rest = divmod(len(tokens), number)
    tile[:steps, :number] = tokens[: steps * number].reshape(steps, number)
    tile[steps : steps + 1, :rest] = tokens[steps * number :]


def from_lanes(tile: Any, size: int) -> Any:
    """The tokens of a chunk of so many, from the first columns of a tile. NumPy or JAX arrays."""
    number = lanes(size)
    return tile[: -(-size // number), :number].reshape(-1)[:size]
