"""What rounding weights to a step will take and lose, predicted from a sample of them.

The sample is sorted once, so that each step asked about costs a search for the edges of its levels.
"""

from typing import NamedTuple

import numpy as np

from ggjax.codec.entropy import _lanes
from ggjax.codec.entropy._tokens import (
    ATOM_BITS,
    ATOM_SHARE,
    BINS,
    ESCAPE_BITS,
    TABLE_ENTRY_BITS,
    WORTH,
)

MOST_BINS = 1 << 12
"""Finer levels than these are counted several together."""


class Sorted(NamedTuple):
    """A sorted sample of a leaf, with the sums up to each weight of it."""

    t: np.ndarray  # float64 (n,)
    sums: np.ndarray  # float64 (n + 1,)
    squares: np.ndarray  # float64 (n + 1,)
    size: int  # of the leaf


def sort(sample: np.ndarray, size: int) -> Sorted:
    """The sorted sample of a leaf of some size."""
    t = np.sort(sample)
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (t, t * t))
    return Sorted(t, sums, squares, size)


def bits_of(s: Sorted, step: float, dead_zone: float) -> float:
    """Bits per weight of a leaf that is rounded: tokens, raw bits, exceptions, table, lanes.

    The zeros are an atom where that pays; of other atoms a sample of sorted weights tells too little.
    """
    n = len(s.t)
    rare = n // 1000
    low, high = _level(s.t[[rare, n - 1 - rare]], step, dead_zone)
    if not np.isfinite([low, high]).all():
        return np.inf
    shift = max(int(np.ceil(np.log2((high - low + 1) / BINS))), 0)
    first, last = _level(s.t[[0, -1]], step, dead_zone)
    if last - first + 1 <= BINS:
        low, shift = first, 0
    edges = _edges(low + np.arange(BINS + 1.0) * 2.0**shift, step, dead_zone)
    counts = np.diff(np.searchsorted(s.t, edges)).astype(np.float64)
    outside = n - counts.sum()
    bits = _bits(s, np.append(counts, outside), shift, outside)
    of_zero = _edges(np.arange(2.0), step, dead_zone)
    zeros = int(np.diff(np.searchsorted(s.t, of_zero))[0])
    if shift and zeros >= ATOM_SHARE * n:
        bin_ = int(-low // 2.0**shift)
        if 0 <= bin_ < BINS:
            counts[bin_] -= zeros
        else:
            outside -= zeros
        with_atom = _bits(s, np.append(counts, (outside, zeros)), counts.sum() * shift / n, outside)
        with_atom += ATOM_BITS / s.size
        bits = with_atom if with_atom <= WORTH * bits else bits
    return bits + _lanes.overhead_bits(s.size) / s.size


def _bits(s: Sorted, counts: np.ndarray, raw: float, outside: float) -> float:
    """Bits per weight of tokens that occur so often in a sample, of raw bits, so many per weight, and of
    exceptions."""
    n = len(s.t)
    p = counts[counts > 0] / n
    bits = -(p * np.log2(p)).sum() + raw + ESCAPE_BITS * outside / n + TABLE_ENTRY_BITS * len(p) / s.size
    if n < s.size:
        bits += (len(p) - 1) / (2 * np.log(2) * n)  # what the entropy of a sample is too low by (Miller, Madow)
    return float(bits)


def noise_of(s: Sorted, step: float, dead_zone: float, centroids: bool) -> float:
    """The mean squared error of weights that are rounded."""
    low, high = _level(s.t[[0, -1]], step, dead_zone)
    if not high - low < MOST_BINS:
        return step**2 * (1 / 12 + (0 if centroids else dead_zone**2))
    levels = np.arange(low, high + 2)
    place = np.searchsorted(s.t, _edges(levels, step, dead_zone))
    place[-1] = len(s.t)
    count, total, square = (np.diff(x[place]) for x in (np.arange(len(s.t) + 1.0), s.sums, s.squares))
    value = levels[:-1] * step
    if centroids:
        value = np.where(value != 0, total / np.maximum(count, 1), 0)
    return max(float((square - 2 * value * total + value**2 * count).sum()), 0.0) / len(s.t)


def _level(t: np.ndarray, step: float, dead_zone: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.sign(t) * np.floor(np.abs(t) / step + 0.5 - dead_zone)


def _edges(levels: np.ndarray, step: float, dead_zone: float) -> np.ndarray:
    """Where levels begin."""
    return (levels - 0.5 + np.where(levels > 0, dead_zone, -dead_zone)) * step
