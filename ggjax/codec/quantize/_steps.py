"""The quantization step of a leaf, from what its user asks for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ggjax._internal import trees
from ggjax.codec.quantize._quantizers import QUANTIZERS
from ggjax.codec.quantize._uniform import LARGEST, SMALLEST

SAMPLE = 1 << 18
CENTROIDS = 15

MOST_LEVELS = 2.0**31 - 128
"""A level is below this, the largest float32 number that is an int32."""


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


class Summary(NamedTuple):
    """What is known of the weights of a leaf, to choose its step by. Arrays, so that processes can share it."""

    sample: np.ndarray  # float64
    size: np.ndarray  # of the leaf
    mean: np.ndarray
    spread: np.ndarray  # sum of (weight - mean)^2
    low: np.ndarray  # the smallest weight, NaN if one is
    high: np.ndarray


def summarize(blocks: Sequence[np.ndarray], size: int = SAMPLE) -> Summary:
    """The summary of weights in one or more blocks, with a sample of so many; with none, of their range
    alone."""
    blocks = [x for x in blocks if x.size] or [np.zeros(1, np.float32)]
    t = np.concatenate([sample(x, size // len(blocks)) for x in blocks]) if size else np.zeros(0)
    with np.errstate(invalid="ignore"):  # NaN
        low, high = min(float(x.min()) for x in blocks), max(float(x.max()) for x in blocks)
        nan = any(np.isnan(float(x.min())) for x in blocks)
    n = sum(x.size for x in blocks)
    pieces = [piece for x in blocks for piece in _pieces(x)]
    mean = spread = 0.0
    if size and np.isfinite([low, high]).all() and not nan:
        mean = sum(float(p.astype(np.float64).sum()) for p in pieces) / n
        spread = sum(float(np.square(p.astype(np.float64) - mean).sum()) for p in pieces)
    numbers = (float(n), mean, spread, np.nan if nan else low, np.nan if nan else high)
    return Summary(t, *(np.array(v) for v in numbers))


def _pieces(x: np.ndarray) -> list[np.ndarray]:
    flat = x.reshape(-1)
    return [flat[i : i + (1 << 20)] for i in range(0, len(flat), 1 << 20)]


def merge(parts: Sequence[Summary]) -> Summary:
    """The summary of all weights of several."""
    size = sum(float(p.size) for p in parts)
    mean = sum(float(p.size * p.mean) for p in parts) / size
    spread = sum(float(p.spread + p.size * (p.mean - mean) ** 2) for p in parts)
    low, high = np.min([p.low for p in parts]), np.max([p.high for p in parts])
    return Summary(np.concatenate([p.sample for p in parts]), *map(np.array, (size, mean, spread, low, high)))


def step_for(
    name: str, blocks: list[np.ndarray], kind: str, want: Want, *, everywhere: bool = False
) -> np.float32:
    """The step for a leaf; 0 where its kind has none.

    Args:
      name: of the leaf.
      blocks: its weights.
      kind: what is kept of them.
      want: what is asked of the step.
      everywhere: the leaf has other blocks in other processes, which call this too.

    Raises:
      ValueError: a weight is not finite, or beyond float32, or too many or too small a step away from 0.
    """
    quantizer = QUANTIZERS[kind]
    if not quantizer.is_finite:
        return np.float32(0)
    chosen = quantizer.has_step and want.step is None
    s = _summary_of_all(blocks) if everywhere else summarize(blocks, SAMPLE if chosen else 0)
    if not np.isfinite([s.low, s.high]).all():
        trees.check_finite([name] * len(blocks), blocks)
        raise ValueError(f"leaf {name!r}: expected finite weights, another process has others")
    largest = max(abs(float(s.low)), abs(float(s.high)))
    if largest > float(np.finfo(np.float32).max):
        raise ValueError(f"leaf {name!r}: its largest weight is {largest:.4g}, expected the range of float32")
    if not quantizer.has_step:
        return np.float32(0)
    try:
        step = choose(s, want)
    except ValueError as e:
        raise ValueError(f"leaf {name!r}: {e}") from None
    if largest / float(step) >= MOST_LEVELS:
        raise ValueError(
            f"leaf {name!r}: its largest weight is {largest:.4g}, {largest / float(step):.4g} steps of "
            f"{step:.4g}, expected fewer than 2^31: take a larger step"
        )
    return step


def _summary_of_all(blocks: list[np.ndarray]) -> Summary:
    """The summary of the blocks of all processes, the same in each."""
    from jax.experimental.multihost_utils import process_allgather

    most = 1 << 14
    s = summarize(blocks, most)
    fields = np.concatenate([[len(s.sample)], [float(v) for v in s[1:]], np.resize(s.sample, most)])
    with jax.enable_x64(True):
        gathered = np.asarray(process_allgather(fields)).reshape(jax.process_count(), -1)
    parts = [Summary(g[6 : 6 + int(g[0])], *(np.array(v) for v in g[1:6])) for g in gathered]
    return merge(parts)


def choose(s: Summary, want: Want) -> np.float32:
    """The step for a leaf, a float32 from ``SMALLEST`` to ``LARGEST``.

    ``bits`` and ``snr_db`` are met on the sample; a leaf of equal weights, where neither these nor a standard
    deviation have a meaning, gets a step of its largest weight (or 1).

    Raises:
      ValueError: the weights are so small that their step would be below ``SMALLEST``.
    """
    if want.step is not None:
        return np.float32(want.step)
    largest = max(abs(float(s.low)), abs(float(s.high)))
    if s.low == s.high:
        return _usable(largest or 1.0, largest)
    if want.step_per_std is not None:
        return _usable(want.step_per_std * float(s.spread / s.size) ** 0.5, largest)
    if want.bits is not None:
        # At fine steps a sample has too few weights a level; there a bit more is a step half as wide.
        bits = min(want.bits, 8.0)
        few = s.sample[:: max(len(s.sample) >> 17, 1)]
        step = _bisect(lambda step: _entropy(few, step) > bits, largest)
        return _usable(step * 2.0 ** (bits - want.bits), largest)
    power = float(s.spread / s.size + s.mean**2)
    noise = power * 10 ** (-want.snr_db / 10)  # type: ignore[operator]
    t = s.sample
    step = _bisect(lambda step: float(np.mean((t - np.rint(t / step) * step) ** 2)) < noise, largest)
    return _usable(min(step, 4 * (12 * noise) ** 0.5), largest)


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


def _usable(step: float, largest: float) -> np.float32:
    if step < SMALLEST:
        raise ValueError(
            f"its largest weight is {largest:.4g}, its step would be {step:.4g}, expected at least 2^-120: "
            "scale the weights, or give a larger step"
        )
    return np.float32(min(step, LARGEST))
