"""The coded form of one array: a pytree of streams, and what the decoder has to know of them."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ggjax.codec.entropy import _planes, _rans, _tokens
from ggjax.codec.quantize._keys import Kind

MIN_SIZE = 1024
"""Arrays with fewer elements are kept as they are."""


class Part(NamedTuple):
    """A run of weights with one window of keys and one model."""

    size: int  # weights, at least 1
    base: int
    shift: int
    zeros: int
    table: int  # row of ``Coded.tables``
    exceptions: int  # how many of the weights

    @property
    def bins(self) -> _tokens.Bins:
        return _tokens.Bins(self.base, self.shift)


class Meta(NamedTuple):
    """What a decoder has to know besides the streams; hashable."""

    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    parts: tuple[Part, ...]
    step: float = 0.0  # "uniform": a float32
    centroids: tuple[float, ...] = ()  # "uniform": float32 numbers, in steps
    exponent: int = 0  # "rf8"
    axis: int | None = None  # 0 or -1: which axis the row classes count
    coder: str = "rans"  # or "zstd"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def class_bits(self) -> int:
        """Bits of the class of a row."""
        return (len(self.parts) - 1).bit_length() if self.axis is not None else 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coded:
    """One coded array: a pytree of seven arrays, so it passes through jit and checkpoints.

    Chunks stand in order, part by part; lanes in order within a chunk.

    - words: uint16, the words of all lanes, one lane after another (with coder "zstd": uint8, one frame a
      chunk)
    - states: uint32 (lanes,), where each lane's decoder starts ("zstd": empty)
    - counts: uint16 (lanes,), the words of each lane ("zstd": uint32 (chunks,), the bytes of each frame)
    - raw: uint8, the raw bits of all chunks
    - exceptions: uint32, the keys outside the windows, in order
    - tables: uint16 (tables, 256), frequencies that sum to 2^14
    - classes: uint8, the class of each row of the array, packed in ``meta.class_bits`` bits; empty for one part
    """

    words: Any
    states: Any
    counts: Any
    raw: Any
    exceptions: Any
    tables: Any
    classes: Any
    meta: Meta = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.meta.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array."""
        return jax.dtypes.canonicalize_dtype(self.meta.dtype)

    @property
    def size(self) -> int:
        """The number of elements of the array."""
        return self.meta.size

    @property
    def nbytes(self) -> int:
        """The bytes that the streams and the tables take in a file, without the metadata of the file."""
        return self.stream_bytes + table_bytes(np.asarray(self.tables))

    @property
    def stream_bytes(self) -> int:
        """The bytes of its tensor in a file."""
        streams = [self.words, self.states, self.raw, self.exceptions, self.classes]
        if self.meta.coder == "rans":
            streams.append(self.counts)
        return sum(s.nbytes for s in streams)


def table_bytes(tables: np.ndarray) -> int:
    """The bytes that tables take in a file."""
    from ggjax.codec.entropy import _models

    return sum(len(_models.pack(t)) for t in tables)


def chunk_sizes(size: int) -> list[int]:
    """The symbols of every chunk of a part."""
    full, rest = divmod(size, _tokens.CHUNK)
    return [_tokens.CHUNK] * full + [rest] * (rest > 0)


def lanes(size: int) -> int:
    """The lanes of a chunk of so many symbols: symbol i is number i // lanes of lane i % lanes."""
    return min(-(-size // _rans.STEPS), _rans.LANES)


def raw_bytes(size: int, shift: int) -> int:
    """The bytes of the raw bits of a chunk."""
    return _planes.nbytes(size, shift)
