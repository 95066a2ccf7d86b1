"""Where everything lies: the one walk over the parts and chunks of a coded array.

Encoder, decoders, the file format and its checks all go by ``layout_of``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ggjax.codec._coded import Coded, Meta
from ggjax.codec.entropy import _lanes, _planes
from ggjax.codec.entropy._chunks import Code
from ggjax.codec.entropy._coders import CODERS


class Piece(NamedTuple):
    """A chunk, and its place in the streams."""

    part: int
    start: int  # its first weight, counted within the part
    size: int  # weights
    states: slice
    counts: slice
    raw: slice  # bytes
    binned: int  # tokens that have raw bits: all, where the part has no atoms


class Layout(NamedTuple):
    """The places of all chunks, and the lengths of the streams."""

    parts: tuple[tuple[Piece, ...], ...]  # the chunks of every part
    exceptions: tuple[slice, ...]  # those of every part
    classes: int  # bytes
    steps: int

    @property
    def chunks(self) -> list[Piece]:
        """All chunks, in order."""
        return [c for part in self.parts for c in part]

    @property
    def lengths(self) -> dict[str, int]:
        """The length of every stream but words, whose length is the sum of the counts."""
        last = self.parts[-1][-1]
        return {
            "states": last.states.stop,
            "counts": last.counts.stop,
            "raw": last.raw.stop,
            "exceptions": self.exceptions[-1].stop,
            "classes": self.classes,
            "steps": self.steps,
        }


def number_of_chunks(meta: Meta) -> int:
    """How many chunks an array has, counted without listing them."""
    return sum(_lanes.number_of_chunks(p.size) for p in meta.parts)


def side_lengths(meta: Meta) -> tuple[int, int]:
    """(bytes of the classes, number of exceptions)."""
    classes = sum(meta.grid.class_bytes) if meta.grid else _planes.nbytes(meta.rows, meta.class_bits)
    return classes, sum(p.exceptions for p in meta.parts)


def layout_of(meta: Meta) -> Layout:
    """The layout of an array."""
    coder = CODERS[meta.coder]
    parts, exceptions = [], []
    state = count = byte = exception = number = 0
    for k, p in enumerate(meta.parts):
        chunks = []
        for i, n in enumerate(_lanes.chunk_sizes(p.size)):
            states = slice(state, state + coder.states(n))
            counts = slice(count, count + coder.counts(n))
            binned = meta.binned[number] if meta.binned else n
            raw = slice(byte, byte + _planes.nbytes(binned, p.shift))
            chunks.append(Piece(k, i * _lanes.CHUNK, n, states, counts, raw, binned))
            number += 1
            state, count, byte = states.stop, counts.stop, raw.stop
        parts.append(tuple(chunks))
        exceptions.append(slice(exception, exception + p.exceptions))
        exception += p.exceptions
    return Layout(tuple(parts), tuple(exceptions), side_lengths(meta)[0], meta.side)


def codes_of(c: Coded, layout: Layout) -> Iterator[tuple[Piece, Code]]:
    """The entropy code of every chunk of an array on the host."""
    word = 0
    for chunk in layout.chunks:
        counts = c.counts[chunk.counts]
        end = word + int(counts.sum(dtype=np.int64))
        yield chunk, Code(c.words[word:end], c.states[chunk.states], counts)
        word = end
