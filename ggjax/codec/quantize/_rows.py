"""Row classes: rows of like scale share a model.

The rows of a matrix often differ in scale (those of an embedding, or of a wide layer's outputs). One model for
all rows wastes what a model for each class of them saves: 1 % of the bits at 4 to 6 bits on tall matrices of a
pretrained encoder, nothing on square ones. So classes are made only where they pay for their tables, lanes and
the class of every row. A row lies along all axes but the first, or but the last.

In the lossless kind rows also differ in how many bits at their end are zero: rows of float16 values that are
kept as float32 have 13 such bits, which need not be stored.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec.entropy import _tokens
from ggjax.codec.quantize._quantizer import Prepared, Quantizer
from ggjax.codec.quantize._summary import spread_out

CLASSES = (4, 8)
MAX_CLASSES = 256
SAMPLE = 1 << 19
MIN_SIZE = 1 << 16
BAND = 136
"""Columns are taken from so many rows at a time, and put there: what is near in memory stays in the cache. No
power of two: strides of one would put everything in the same places of the cache."""

PART_BITS = 8 * 120
"""About what one more part takes besides its table: the last lanes and its place in the metadata."""


class Rows(NamedTuple):
    """How a leaf is cut into parts."""

    axis: int | None  # 0 or -1: the axis that counts the rows; None for one part
    classes: np.ndarray  # uint8 (rows,), the class of each row; empty for one part
    zeros: tuple[int, ...]  # for each class, the bits at the end that are zero (lossless)


def one_part(zeros: int = 0) -> Rows:
    """A leaf that is not cut."""
    return Rows(None, np.zeros(0, np.uint8), (zeros,))


def matrix(x: np.ndarray, axis: int) -> np.ndarray:
    """The rows of an array: a view (rows, row size)."""
    return x.reshape(x.shape[0], -1) if axis == 0 else x.reshape(-1, x.shape[-1]).T


def parts_of(x: np.ndarray, rows: Rows) -> Iterator[np.ndarray]:
    """The weights of every part, row after row."""
    if rows.axis is None:
        yield x.reshape(-1)
        return
    columns = _sorted_columns(x, rows.classes) if rows.axis == -1 else None
    end = 0
    for k in range(len(rows.zeros)):
        chosen = rows.classes == k
        begin, end = end, end + int(chosen.sum())
        part = matrix(x, 0)[chosen] if columns is None else columns[begin:end]
        yield part.reshape(-1)


def _sorted_columns(x: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The columns of an array, as rows, sorted by class."""
    flat, order = x.reshape(-1, x.shape[-1]), np.argsort(classes, kind="stable")
    out = np.empty(flat.shape[::-1], x.dtype)
    for i in range(0, len(flat), BAND):
        out[:, i : i + BAND] = flat[i : i + BAND].take(order, axis=1).T
    return out


def from_sorted_columns(columns: np.ndarray, classes: np.ndarray, out: np.ndarray) -> None:
    """Write columns (columns, size of each) that are sorted by class to their places in an array."""
    flat, place = out.reshape(-1, out.shape[-1]), np.argsort(np.argsort(classes, kind="stable"))
    for i in range(0, len(flat), BAND):
        flat[i : i + BAND] = columns[place, i : i + BAND].T


def plan(prepared: Prepared, quantizer: Quantizer) -> Rows:
    """The classes that code a leaf in the fewest bits, by a sample of every row."""
    x, settings = prepared.x, prepared.settings
    whole = one_part(int(quantizer.zeros_of(x.reshape(1, -1))[0]))
    if not quantizer.has_classes or x.ndim < 2 or x.size < MIN_SIZE:
        return whole
    best, least = whole, np.inf
    axes = [a for a in (0, -1) if 16 <= x.shape[a] <= x.size // 32]
    means = _row_means(x) if axes else ()
    for axis in axes:
        rows = x.shape[axis]
        m = matrix(x, axis)
        stride = min(max(x.size // SAMPLE, 1) | 1, m.shape[1])
        some = np.ascontiguousarray(m[:, ::stride])
        if least == np.inf:
            same = np.zeros(rows, np.uint8)
            least = x.size * _sample_cost(some, same, whole.zeros, quantizer, settings, x.size)
        zeros = quantizer.zeros_of(m)
        zeros[zeros < 4] = 0
        scale = np.log(means[axis] + 1e-30)
        for number in CLASSES if zeros.min() == zeros.max() else (1, *CLASSES):
            cut = _classes(scale, zeros, number)
            if not 1 < len(cut.zeros) <= MAX_CLASSES:
                continue
            bits = x.size * _sample_cost(some, cut.classes, cut.zeros, quantizer, settings, x.size)
            bits += rows * (len(cut.zeros) - 1).bit_length() + PART_BITS * (len(cut.zeros) - 1)
            if bits < least:
                best, least = cut._replace(axis=axis), bits
    return best


def _row_means(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean |x| of every row along axis 0, and along axis -1, float64, in little memory; infinities and NaN
    count as 0."""
    flat = x.reshape(-1, x.shape[-1])
    height = max((1 << 20) // flat.shape[1], 1)
    rows, columns = [], []
    for i in range(0, len(flat), height):
        size = np.abs(flat[i : i + height].astype(np.float32, copy=False))
        with np.errstate(invalid="ignore"):  # signaling NaN
            sums = size.sum(1, dtype=np.float64)
        if not np.isfinite(sums).all():
            size = np.where(np.isfinite(size), size, 0)
            sums = size.sum(1, dtype=np.float64)
        rows.append(sums)
        columns.append(size.sum(0, dtype=np.float64))
    number = x.size // x.shape[0]
    return np.concatenate(rows).reshape(len(x), -1).sum(1) / number, np.sum(columns, axis=0) / len(flat)


def _classes(scale: np.ndarray, zeros: np.ndarray, number: int) -> Rows:
    """Classes by the logarithm of a row's scale, in equal steps, and by its trailing zeros."""
    low, high = np.quantile(scale, [0.01, 0.99])
    by_scale = np.clip((scale - low) / max(high - low, 1e-9) * number, 0, number - 1).astype(np.int64)
    pairs, classes = np.unique(zeros * number + by_scale, return_inverse=True)
    return Rows(None, classes.astype(np.uint8), tuple(int(p) // number for p in pairs))


def _sample_cost(
    part: np.ndarray,
    classes: np.ndarray,
    zeros: tuple[int, ...],
    quantizer: Quantizer,
    settings: tuple[Any, ...],
    size: int,
) -> float:
    """Bits per weight, by a sample, when every class of an array of some size has its own window and table."""
    total = 0.0
    for k, z in enumerate(zeros):
        rows = part[classes == k]
        if rows.size:
            keys = sample_keys(rows, quantizer, settings, z, size=1 << 13)
            share = rows.size / part.size
            bins, bits = _tokens.choose_bins(keys, int(share * size), signed=quantizer.signed)
            if bins.atoms:  # few keys do not tell well enough how many are atoms: classes would seem to differ
                keys = quantizer.keys_of(rows, settings, np.uint32(z))
                bits = _tokens.bits_of(bins, keys, int(share * size))
            total += share * bits
    return total


def sample_keys(
    x: np.ndarray, quantizer: Quantizer, settings: tuple[Any, ...], zeros: int, size: int = 1 << 15
) -> np.ndarray:
    """Keys of at most ``size`` weights, evenly spread, on the host."""
    return quantizer.keys_of(spread_out(x, size), settings, np.uint32(zeros))
