"""The quantization step of a leaf, from what its user asks for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ggjax import _tree

SAMPLE = 1 << 18
CENTROIDS = 15

SMALLEST, LARGEST = 2.0**-100, 2.0**100
"""The range of a step: far from where float32 loses digits, in the step and in what is computed with it."""


class Want(NamedTuple):
    """What is asked of the step: one of the four is not None."""

    step: float | None = None
    bits: float | None = None  # bits per parameter, by entropy
    snr_db: float | None = None  # decibels
    step_per_std: float | None = None


def check(want: Want) -> None:
    """Raise ValueError unless just one is given, and positive."""
    given = [name for name, value in want._asdict().items() if value is not None]
    if len(given) != 1:
        names = ", ".join(want._fields)
        raise ValueError(f"give one of {names}, rf8=True or lossless=True; got {' and '.join(given) or 'none'}")
    _tree.check_positive(given[0], getattr(want, given[0]))
    if want.step is not None and not SMALLEST <= want.step <= LARGEST:
        raise ValueError(f"step must be from 2^-100 to 2^100, got {want.step!r}")


def choose(blocks: Sequence[np.ndarray], want: Want) -> np.float32:
    """The step for a leaf in one or more blocks, a positive float32.

    ``bits`` and ``snr_db`` are met on a sample of up to 2^18 weights, spread over the leaf; a leaf of equal
    or of no weights, where neither has a meaning, gets a step of its largest weight (or 1).

    Args:
      blocks: finite weights, any shapes.
      want: see ``Want``.
    """
    if want.step is not None:
        return _usable(want.step)
    blocks = [x for x in blocks if x.size]
    if not blocks:
        return np.float32(1)
    largest = max(max(abs(float(x.max())), abs(float(x.min()))) for x in blocks) or 1.0
    if want.step_per_std is not None:
        return _usable(want.step_per_std * _std(blocks) or largest)
    t = np.concatenate([sample(x, SAMPLE // len(blocks)) for x in blocks])
    if not np.ptp(t):
        return _usable(largest)
    if want.bits is not None:
        # At fine steps a sample has too few weights a level; there a bit more is a step half as wide.
        bits = min(want.bits, 8.0)
        few = t[:: max(len(t) >> 17, 1)]
        step = _bisect(lambda s: _entropy(few, s) > bits, few)
        return _usable(step * 2.0 ** (bits - want.bits))
    power = float(np.mean(t * t))
    noise = power * 10 ** (-want.snr_db / 10)  # type: ignore[operator]
    return _usable(_bisect(lambda s: float(np.mean((t - np.rint(t / s) * s) ** 2)) < noise, t))


def centroids(blocks: Sequence[np.ndarray], step: np.float32, dead_zone: float) -> tuple[float, ...]:
    """How far, in steps, the mean |w| of the weights of level q lies from |q| step, for |q| = 1, ..., 15.

    The last number is for all levels from 15 on. By a sample, as ``choose``, to four decimals; 0 for levels
    that fewer than 16 weights of it have.
    """
    t = np.abs(np.concatenate([np.zeros(0), *(sample(x, SAMPLE // len(blocks)) for x in blocks)])) / float(step)
    level = np.floor(t + 0.5 - dead_zone)
    index = np.minimum(level, CENTROIDS).astype(np.int64)
    counts = np.bincount(index, minlength=CENTROIDS + 1)[1:]
    sums = np.bincount(index, t - level, minlength=CENTROIDS + 1)[1:]
    means = np.where(counts >= 16, np.clip(sums / np.maximum(counts, 1), -1, 1), 0).round(4)
    used = int(np.max(np.flatnonzero(means), initial=-1)) + 1
    if 0 < used < CENTROIDS:
        used += 1  # a zero at the end: rarer levels stay as they are
    return tuple(means[:used].tolist())


def sample(x: np.ndarray, size: int = SAMPLE) -> np.ndarray:
    """Up to ``size`` weights of an array, evenly spread, as float64."""
    flat = x.reshape(-1)
    stride = max(len(flat) // size, 1) | 1  # odd, so that it does not keep to a few columns
    return flat[::stride][:size].astype(np.float64)


def _bisect(finer_than_wanted: Callable[[float], bool], t: np.ndarray) -> float:
    """The coarsest step that is still finer than wanted, to a relative 5e-4.

    At least 2^-24 of the largest weight: a few distinct weights never take the bits that are wanted.
    """
    least, most = float(np.abs(t).max()) * 2.0**-24, float(np.abs(t).max()) * 4
    low = high = float(np.clip(np.sqrt(np.mean(t * t)), least, most))
    while finer_than_wanted(high) and high < most:
        low, high = high, min(4 * high, most)
    while not finer_than_wanted(low) and low > least:
        low, high = max(low / 4, least), low
    while high > low * (1 + 5e-4):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if finer_than_wanted(middle) else (low, middle)
    return low


def _entropy(t: np.ndarray, step: float) -> float:
    """Bits per weight of rounded weights."""
    levels = np.rint(t * (1 / step))
    low = levels.min()
    if levels.max() - low < 1 << 16:
        counts = np.bincount((levels - low).astype(np.int64))
    else:
        counts = np.unique(levels, return_counts=True)[1]
    p = counts[counts > 0] / len(t)
    return float(-(p * np.log2(p)).sum())


def _std(blocks: Sequence[np.ndarray]) -> float:
    first = second = 0.0
    for x in blocks:
        flat = x.reshape(-1)
        for i in range(0, len(flat), 1 << 20):
            piece = flat[i : i + (1 << 20)].astype(np.float64)
            first, second = first + float(piece.sum()), second + float(piece @ piece)
    n = sum(x.size for x in blocks)
    return max(second / n - (first / n) ** 2, 0.0) ** 0.5


def _usable(step: float) -> np.float32:
    return np.float32(min(max(float(step), SMALLEST), LARGEST))
