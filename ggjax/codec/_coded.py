"""The coded form of one array: a pytree of streams, and what the decoder has to know of them."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ggjax.codec._grid import Grid
from ggjax.codec.entropy import _models, _side, _tokens
from ggjax.codec.entropy._coders import CODERS


class Part(NamedTuple):
    """A run of weights with one window of keys and one model."""

    size: int  # weights, at least 1
    base: int
    shift: int
    zeros: int
    table: int  # row of ``Coded.tables``
    exceptions: int  # how many of the weights
    atoms: tuple[int, ...] = ()  # keys that have tokens of their own

    @property
    def bins(self) -> _tokens.Bins:
        return _tokens.Bins(self.base, self.shift, self.atoms)


class Meta(NamedTuple):
    """What a decoder has to know besides the streams; hashable."""

    shape: tuple[int, ...]
    dtype: str
    kind: str  # the quantizer
    params: Any  # those of the quantizer
    parts: tuple[Part, ...]
    axis: int | None = None  # 0 or -1: which axis the row classes count
    coder: str = "rans"  # or "zstd"
    grid: Grid | None = None  # in place of the axis, where columns have classes too
    beyond: tuple[int, ...] = ()  # how many exceptions every chunk has; empty where this is not known
    binned: tuple[int, ...] = ()  # where a part has atoms: how many tokens of every chunk have raw bits

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def step(self) -> float:
        """The step, 0 for a quantizer that has none."""
        return getattr(self.params, "step", 0.0)

    @property
    def side(self) -> int:
        """How many steps of rows and columns it has."""
        return getattr(self.params, "side", 0)

    @property
    def row_steps(self) -> int:
        """How many of these are steps of rows: they come first."""
        return len(self.params.limits) * self.params.rows if self.side else 0

    @property
    def rows(self) -> int:
        """How many rows have a class."""
        return self.shape[self.axis] if self.axis is not None else 0

    @property
    def class_bits(self) -> int:
        """Bits of the class of a row."""
        return (len(self.parts) - 1).bit_length() if self.axis is not None else 0


STREAMS = {
    "words": np.uint16,
    "states": np.uint32,
    "counts": np.uint16,
    "raw": np.uint8,
    "exceptions": np.uint32,
    "tables": np.uint16,
    "classes": np.uint8,
    "steps": np.int8,
}
"""The streams of a coded array and their dtypes (with coder "rans")."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Coded:
    """One coded array: a pytree of its streams, so it passes through jit and checkpoints.

    Chunks stand in order, part by part; lanes in order within a chunk. A stream that is empty is no leaf of the
    tree, since checkpoint libraries refuse arrays without elements.

    - words: uint16, the words of all lanes, one lane after another (with coder "zstd": uint8, one frame a
      chunk)
    - states: uint32 (lanes,), where each lane's decoder starts ("zstd": empty)
    - counts: uint16 (lanes,), the words of each lane ("zstd": uint32 (chunks,), the bytes of each frame)
    - raw: uint8, the raw bits of all chunks
    - exceptions: uint32, the keys outside the windows, in order
    - tables: uint16 (tables, 256), frequencies that sum to 2^14 ("zstd": no tables)
    - classes: uint8, the class of each row of the array, packed in ``meta.class_bits`` bits; empty for one
      part; with a grid the classes of rows, then those of columns
    - steps: int8, the steps of rows and columns in eighths of an octave, where each has its own
    """

    words: Any
    states: Any
    counts: Any
    raw: Any
    exceptions: Any
    tables: Any
    classes: Any
    steps: Any
    meta: Meta

    @property
    def streams(self) -> tuple[Any, ...]:
        """The streams, in order."""
        return tuple(getattr(self, name) for name in STREAMS)

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
        return self.stream_bytes + sum(_models.packed_size(t) for t in np.asarray(self.tables))

    @property
    def stream_bytes(self) -> int:
        """The bytes of its tensor in a file."""
        streams = [self.words, self.states, self.raw, self.exceptions, self.classes]
        if CODERS[self.meta.coder].has_tables:  # otherwise the table of chunks in the metadata has the counts
            streams.append(self.counts)
        return sum(s.nbytes for s in streams) + len(_side.pack(self.steps, self.meta.row_steps))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The streams that are not empty, for JAX."""
        held = tuple(n for n, x in zip(STREAMS, self.streams, strict=True) if getattr(x, "size", 1) != 0)
        children = tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in held)
        return children, (held, self.meta)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "Coded":
        """A coded array of some streams, the others empty, for JAX."""
        held, meta = aux
        shape = {"tables": (0, _models.TOKENS)}
        empty = {n: np.zeros(shape.get(n, (0,)), d) for n, d in STREAMS.items() if n not in held}
        return cls(**empty, **dict(zip(held, children, strict=True)), meta=meta)
