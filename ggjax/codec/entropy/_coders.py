"""The entropy coders: each takes chunks of tokens to words, and words to chunks of tokens."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec.entropy import _chunks, _lanes, _zstd


class Coder(NamedTuple):
    """What differs between coders."""

    encode: Callable[[Sequence[tuple[np.ndarray, Any]]], list[_chunks.Code]]  # of (tokens, table) pairs
    decode: Callable[[Sequence[_chunks.Chunk]], list[np.ndarray]]
    check: Callable[[], Any]  # raises where the coder cannot run
    has_tables: bool
    states: Callable[[int], int]  # how many states a chunk of so many tokens has
    counts: Callable[[int], int]  # how many counts


CODERS = {
    "rans": Coder(_chunks.encode, _chunks.decode, lambda: None, True, _lanes.lanes, _lanes.lanes),
    "zstd": Coder(_zstd.encode, _zstd.decode, _zstd.library, False, lambda size: 0, lambda size: 1),
}
