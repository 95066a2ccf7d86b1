"""Classes of the rows and columns of levels: where levels scatter alike they share a model.

With steps of rows and columns, levels of one matrix scatter very differently. How widely those of row i and
column j do is about a product, of what the row and what the column has: so parts are made of the crossings of
classes whose logarithms have one sum. Rows and columns are sorted into classes by their mean |level|, in half
octaves, and parts that are too much alike are put together again.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ggjax.codec.entropy import _lanes
from ggjax.codec.entropy._tokens import TABLE_ENTRY_BITS

MOST = 12
"""Classes of rows, and of columns, at most."""

GRAINS = (1, 2, MOST)
"""In half octaves: how finely they are sorted; the last one puts all into one class."""

PART_BITS = 8 * 24
"""About what one more part takes besides its table and its lanes: its place in the metadata."""

_LEVELS = 256


class Crossings(NamedTuple):
    """How levels are cut into parts."""

    rows: np.ndarray  # uint8, the class of every row
    columns: np.ndarray
    parts: list[int]  # of every pair of classes, the class of the column counted fastest


def plan(levels: np.ndarray) -> Crossings:
    """The classes that code a matrix of levels, int32 (rows, columns), in the fewest bits."""
    size = np.abs(levels.astype(np.float32))  # that of -2^31 too
    rows, columns = (_classes(size.sum(axis, dtype=np.float64)) for axis in (1, 0))
    counts = _counts(levels, size, rows, columns)
    best, least = None, np.inf
    for grains in itertools.product(GRAINS, GRAINS):
        own = [np.unique(c // g, return_inverse=True)[1] for c, g in zip((rows, columns), grains, strict=True)]
        number = [int(c.max()) + 1 for c in own]
        sums = np.add.outer(*(np.arange(n) * (g % MOST) for n, g in zip(number, grains, strict=True)))
        # Which of the new pairs each of the finest pairs belongs to.
        fine = [np.zeros(MOST, np.int64), np.zeros(MOST, np.int64)]
        for f, c, o in zip(fine, (rows, columns), own, strict=True):
            f[c] = o
        values, which = np.unique(sums, return_inverse=True)
        group = which.reshape(sums.shape)[np.ix_(*fine)]
        table = np.zeros((len(values), _LEVELS), np.int64)
        np.add.at(table, group, counts)
        merged, bits = _merged(table)
        bits += sum(len(c) * (n - 1).bit_length() for c, n in zip(own, number, strict=True))
        if bits < least:
            parts = merged[which.reshape(-1)]
            best, least = Crossings(own[0].astype(np.uint8), own[1].astype(np.uint8), parts.tolist()), bits
    assert best is not None
    return best


def _classes(sums: np.ndarray) -> np.ndarray:
    """Half octaves below the largest, those of nothing in the last class; the largest number is the widest."""
    top = sums.max(initial=0)
    with np.errstate(divide="ignore"):
        below = np.round(2 * np.log2(top / sums)) if top else np.zeros(len(sums))
    return (MOST - 1 - np.minimum(below, MOST - 1)).astype(np.int64)


def _counts(levels: np.ndarray, size: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How often each level occurs at the crossings of each pair of the finest classes."""
    usual = int(np.quantile(size[:: max(size.shape[0] // 64, 1)], 0.999)) if size.size else 0
    shift = max((2 * usual // _LEVELS).bit_length(), 0)
    out = np.zeros((MOST, MOST, _LEVELS), np.int64)
    for a in np.unique(rows):  # a band at a time, which bounds the memory
        band = np.clip((levels[rows == a] >> shift) + _LEVELS // 2, 0, _LEVELS - 1)
        index = columns[None, :] * _LEVELS + band
        out[a] = np.bincount(index.reshape(-1), minlength=MOST * _LEVELS).reshape(MOST, _LEVELS)
    return out


def _merged(table: np.ndarray) -> tuple[np.ndarray, float]:
    """(the part of every row of counts, the bits of all): neighbours together where that takes fewer bits."""
    groups = [[i] for i in range(len(table))]
    counts = [*table]
    bits = [_bits(c) for c in counts]
    while len(groups) > 1:
        gains = [bits[i] + bits[i + 1] - _bits(counts[i] + counts[i + 1]) for i in range(len(groups) - 1)]
        i = int(np.argmax(gains))
        if gains[i] <= 0:
            break
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
        counts[i : i + 2] = [counts[i] + counts[i + 1]]
        bits[i : i + 2] = [_bits(counts[i])]
    part = np.zeros(len(table), np.int64)
    for k, group in enumerate(groups):
        part[group] = k
    return part, sum(bits)


def _bits(counts: np.ndarray) -> float:
    """About what a part takes."""
    used = counts[counts > 0].astype(np.float64)
    n = used.sum()
    entropy = float(n * np.log2(n) - (used * np.log2(used)).sum()) if n else 0.0
    return entropy + TABLE_ENTRY_BITS * len(used) + _lanes.overhead_bits(int(n)) + PART_BITS
