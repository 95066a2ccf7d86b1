"""The quantization step of a leaf, from what its user asks for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ggjax._internal import trees
from ggjax.codec.quantize._quantizers import QUANTIZERS
from ggjax.codec.quantize._summary import SAMPLE, Summary, sample, summarize, summary_of_all
from ggjax.codec.quantize._uniform import LARGEST, SMALLEST

CENTROIDS = 15

MOST_LEVELS = 2.0**31 - 128
"""A level is below this, the largest float32 number that is an int32."""


TOO_SMALL = "weights too small for a step"


class Unfit(ValueError):
    """Weights that cannot be rounded. ``why`` says in a few words what is wrong with them."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class Want(NamedTuple):
    """What is asked of the step: one of the four is not None."""

    step: float | None = None
    bits: float | None = None  # bits per parameter, by entropy
    snr_db: float | None = None  # decibels
    step_per_std: float | None = None


def check_want(want: Want) -> None:
    """Raise ValueError unless just one is given, and positive."""
    given = [name for name, value in want._asdict().items() if value is not None]
    if len(given) != 1:
        names = ", ".join(want._fields)
        raise ValueError(f"give one of {names}, rf8=True or lossless=True; got {' and '.join(given) or 'none'}")
    trees.check_positive(given[0], getattr(want, given[0]))
    if want.step is not None and not SMALLEST <= want.step <= LARGEST:
        raise ValueError(f"step must be from 2^-120 to 2^100, got {want.step!r}")


def step_for(
    name: str,
    blocks: list[np.ndarray],
    kind: str,
    want: Want,
    *,
    everywhere: bool = False,
    least: float = 0.0,
) -> np.float32:
    """The step for a leaf; 0 where its kind has none.

    Args:
      name: of the leaf.
      blocks: its weights.
      kind: what is kept of them.
      want: what is asked of the step.
      everywhere: the leaf has other blocks in other processes, which call this too.
      least: what the largest weight must be at least, unless all are 0.

    Raises:
      Unfit: a weight is not finite, or beyond float32, or too many steps away from 0, or all are too small.
    """
    quantizer = QUANTIZERS[kind]
    if not quantizer.is_finite:
        return np.float32(0)
    chosen = quantizer.has_step and want.step is None
    s = summary_of_all(blocks) if everywhere else summarize(blocks, SAMPLE if chosen else 0)
    check_range(name, s, blocks, least)
    if not quantizer.has_step:
        return np.float32(0)
    step, largest = choose(name, s, want), s.largest
    if largest / float(step) >= MOST_LEVELS:
        raise Unfit(
            f"leaf {name!r}: its largest weight is {largest:.4g}, {largest / float(step):.4g} steps of "
            f"{step:.4g}, expected fewer than 2^31: take a larger step",
            "weights of 2^31 steps and more",
        )
    return step


def check_range(name: str, s: Summary, blocks: list[np.ndarray], least: float = 0.0) -> None:
    """Raise ``Unfit`` unless all weights of a leaf are finite, in float32 too, and one is as large as ``least``
    or all are 0."""
    if not np.isfinite([s.low, s.high]).all():
        message = f"leaf {name!r}: expected finite weights, another process has others"
        try:
            trees.check_finite([name] * len(blocks), blocks)
        except ValueError as e:
            message = str(e)
        raise Unfit(message, "NaN or infinite weights")
    message = f"leaf {name!r}: its largest weight is {s.largest:.4g}"
    if s.largest > float(np.finfo(np.float32).max):
        raise Unfit(f"{message}, expected the range of float32", "weights beyond float32")
    if 0 < s.largest < least:
        raise Unfit(f"{message}, expected at least {least:.4g}", TOO_SMALL)


def choose(name: str, s: Summary, want: Want) -> np.float32:
    """The step for a leaf, a float32 from ``SMALLEST`` to ``LARGEST``.

    ``bits`` and ``snr_db`` are met on the sample; a leaf of equal weights, where neither these nor a standard
    deviation have a meaning, gets a step of its largest weight (or 1).

    Raises:
      Unfit: the weights are so small that their step would be below ``SMALLEST``.
    """
    if want.step is not None:
        return np.float32(want.step)
    largest = s.largest
    if s.low == s.high:
        return usable(name, largest or 1.0, largest)
    if want.step_per_std is not None:
        return usable(name, want.step_per_std * float(s.spread / s.size) ** 0.5, largest)
    if want.bits is not None:
        # At fine steps a sample has too few weights a level; there a bit more is a step half as wide.
        bits = min(want.bits, 8.0)
        few = s.sample[:: max(len(s.sample) >> 17, 1)]
        step = _bisect(lambda step: _entropy(few, step) > bits, largest)
        return usable(name, step * 2.0 ** (bits - want.bits), largest)
    noise = s.power * 10 ** (-want.snr_db / 10)  # type: ignore[operator]
    t = s.sample
    step = _bisect(lambda step: float(np.mean((t - np.rint(t / step) * step) ** 2)) < noise, largest)
    return usable(name, min(step, 4 * (12 * noise) ** 0.5), largest)


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


def _bisect(finer_than_wanted: Callable[[float], bool], largest: float) -> float:
    """The coarsest step that is still finer than wanted, to a relative 5e-4.

    At least 2^-24 of the largest weight: a few distinct weights never take the bits that are wanted.
    """
    least, most = largest * 2.0**-24, largest * 4
    low = high = largest / 16
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


def usable(name: str, step: float, largest: float) -> np.float32:
    """The step as a float32, if it is one that keeps all digits."""
    if step < SMALLEST:
        raise Unfit(
            f"leaf {name!r}: its largest weight is {largest:.4g}, its step would be {step:.4g}, "
            "expected at least 2^-120: scale the weights, or give a larger step",
            TOO_SMALL,
        )
    return np.float32(min(step, LARGEST))
