"""Boxes of arrays (a slice of each axis, as shards are), and which chunks of a stream have their elements."""

import math
from collections.abc import Sequence

import numpy as np

from ggjax.codec.entropy import _lanes

Box = tuple[slice, ...]
"""A slice with a start and a stop for every axis, not empty."""


def of_index(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """The box of slices that may be open."""
    return tuple(slice(*i.indices(n)[:2]) for i, n in zip(index, shape, strict=True))


def of_block(start: Sequence[int], shape: Sequence[int]) -> Box:
    """The box of a block that begins somewhere."""
    return tuple(slice(i, i + n) for i, n in zip(start, shape, strict=True))


def shape_of(box: Box) -> tuple[int, ...]:
    """The shape of what is in a box."""
    return tuple(s.stop - s.start for s in box)


def start_of(box: Box) -> tuple[int, ...]:
    """Where a box begins."""
    return tuple(s.start for s in box)


def common(a: Box, b: Box) -> Box | None:
    """What two boxes have in common, if anything."""
    out = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return out if all(s.start < s.stop for s in out) else None


def bounding(boxes: Sequence[Box]) -> Box:
    """The smallest box that has all of these in it."""
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)


def inside(box: Box, outer: Box) -> Box:
    """A box as one of the array that another box of the same array is."""
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[a + 1 :]) for a in range(len(shape))]


def span(shape: Sequence[int], box: Box) -> tuple[int, int]:
    """(the first element of a box, the one after its last) among those of an array row by row."""
    pairs = list(zip(box, _strides(shape), strict=True))
    return sum(s.start * n for s, n in pairs), 1 + sum((s.stop - 1) * n for s, n in pairs)


def view(flat: np.ndarray, shape: Sequence[int], box: Box) -> np.ndarray:
    """The box of an array, of the elements in its ``span``; no copy."""
    strides = [n * flat.itemsize for n in _strides(shape)]
    return np.lib.stride_tricks.as_strided(flat, shape_of(box), strides, writeable=False)


def chunks(shape: Sequence[int], box: Box) -> np.ndarray:
    """The numbers of the chunks that have elements of a box, where those of the array come row by row.

    In time that grows with the number of chunks: along an axis whose steps are no longer than a chunk, no chunk
    between the first and the last is without them.
    """
    starts, length = np.zeros(1, np.int64), 1
    for s, n in zip(box, _strides(shape), strict=True):
        if n > _lanes.CHUNK:
            starts = (starts[:, None] + n * np.arange(s.start, s.stop)).reshape(-1)
        else:
            starts, length = starts + n * s.start, length + n * (s.stop - 1 - s.start)
    number = _lanes.number_of_chunks(math.prod(shape))
    begun = np.bincount(starts // _lanes.CHUNK, minlength=number + 1)
    ended = np.bincount((starts + length - 1) // _lanes.CHUNK + 1, minlength=number + 1)
    return np.flatnonzero(np.cumsum(begun - ended)[:number])
