"""Counting levels outside jit: every leaf's range is looked at first, so that any range is counted exactly."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees
from ggjax.rate import _codes, _histogram

_SMALL = 1 << 18
"""Leaves of fewer weights are counted on the host, a copy of at most 2 MB at a time: on the device, every new
shape would need programs of its own, which take longer to compile than the leaf to count."""

_TABLE_LEVELS = 1 << 22
"""The widest range of levels that is counted on the device; leaves of a wider one are counted on the host."""

_SMALLEST_ROOM = 1 << 10
"""Tables have room for this many levels or a power of 4 times as many, so that few programs are compiled."""


class Counted(NamedTuple):
    """The levels of one leaf or tree in rising order with their counts, and moments of the weights."""

    levels: np.ndarray  # int64 (k,)
    counts: np.ndarray  # int64 (k,), positive
    size: int
    summary: _histogram.Summary  # Python floats; of the weights over the step


def count_leaves(names: Sequence[str], leaves: Sequence[Any], step: float) -> list[Counted]:
    """The levels of every leaf; sharded leaves stay where they are, except small ones.

    Raises:
      ValueError: a NaN or infinite weight, or a level beyond int32.
    """
    large = [not _is_small(x) for x in leaves]
    summaries = jax.device_get(
        [_histogram.summarize(x, step) if it_is else None for x, it_is in zip(leaves, large, strict=True)]
    )
    return [
        _count_on_device(name, x, step, _histogram.Summary(*map(float, s)))
        if s
        else _count_on_host(name, x, step)
        for name, x, s in zip(names, leaves, summaries, strict=True)
    ]


def merge(parts: Sequence[Counted]) -> Counted:
    """The counts and moments of all leaves together."""
    none = np.zeros(0, np.int64)
    levels, where = np.unique(np.concatenate([none, *(p.levels for p in parts)]), return_inverse=True)
    counts = np.zeros(len(levels), np.int64)
    np.add.at(counts, where, np.concatenate([none, *(p.counts for p in parts)]))
    size = sum(p.size for p in parts)
    mean = sum(p.summary.mean * p.size for p in parts) / max(size, 1)
    spread = sum(p.summary.spread + p.size * (p.summary.mean - mean) ** 2 for p in parts)
    first, second = sum(p.summary.first for p in parts), sum(p.summary.second for p in parts)
    low, high = (levels[0], levels[-1]) if len(levels) else (0, 0)
    summary = _histogram.Summary(float(low), float(high), first, second, mean, spread)
    return Counted(levels, counts, size, summary)


def rates_of(counted: Counted, codes: Sequence[_codes.Code]) -> tuple[float, dict[_codes.Code, float]]:
    """The fitted shape nu, and the rates in the order of the codes; all 0 bits when there are no weights.

    "huffman" is worked out here, the others by the program that runs under jit too.
    """
    s, k = counted.summary, len(counted.levels)
    pad = (0, room(k) - k)
    # The counts are finite and so are the rates: jax_debug_nans would only stumble on the NaN that jax itself
    # writes into the program of gammainc.
    with jax.debug_nans(False):
        nu, rates = jax.device_get(
            _codes.measure(
                np.pad(counted.levels, pad).astype(np.int32),
                np.pad(counted.counts, pad).astype(np.float32),
                (int(s.low), int(s.high)),
                (s.first, s.second),
                float(max(counted.size, 1)),
                codes=tuple(c for c in codes if c != "huffman"),
            )
        )
    if not counted.size:
        return float(nu), dict.fromkeys(codes, 0.0)
    if "huffman" in codes:
        rates["huffman"] = _codes.huffman_bits(counted.counts.tolist()) / counted.size
    return float(nu), {c: float(rates[c]) for c in codes}


def room(width: int) -> int:
    """A table size for so many levels."""
    size = _SMALLEST_ROOM
    while size < width:
        size *= 4
    return size


def _is_small(x: Any) -> bool:
    """Whether the leaf is small and all here: another process's part of an array cannot be copied."""
    return x.size < _SMALL and getattr(x, "is_fully_addressable", True)


def _count_on_device(name: str, x: Any, step: float, summary: _histogram.Summary) -> Counted:
    low, high = _check_range(name, x, step, summary.low, summary.high)
    width = high - low + 1
    if width > _TABLE_LEVELS:
        return _count_on_host(name, x, step)
    counts = _histogram.whole(np.asarray(_histogram.count(x, step, low, _histogram.empty(room(width)))))
    used = np.flatnonzero(counts)
    return Counted(used + low, counts[used], x.size, summary)


def _count_on_host(name: str, x: Any, step: float) -> Counted:
    if not x.size:
        none = np.zeros(0, np.int64)
        return Counted(none, none, 0, _histogram.Summary(*[0.0] * 6))
    dtype = np.dtype(trees.wide_dtype(jnp.result_type(x)))
    with np.errstate(all="ignore"):
        steps = np.asarray(x).astype(dtype).ravel() / dtype.type(step)
    rounded = np.rint(steps)
    low, high = _check_range(name, x, step, rounded.min(), rounded.max())
    levels = rounded.astype(np.int64)
    if high - low < len(levels):  # a table is quicker than sorting, unless most of it stays empty
        counts = np.bincount(levels - low)
        levels = np.flatnonzero(counts)
        levels, counts = levels + low, counts[levels]
    else:
        levels, counts = np.unique(levels, return_counts=True)
    steps = steps.astype(np.float64)
    mean = steps.mean()
    moments = np.abs(steps).sum(), np.square(steps).sum(), mean, np.square(steps - mean).sum()
    return Counted(
        levels, counts, len(steps), _histogram.Summary(float(low), float(high), *map(float, moments))
    )


def _check_range(name: str, x: Any, step: float, low: float, high: float) -> tuple[int, int]:
    """The smallest and the largest level, whole numbers.

    Raises:
      ValueError: a NaN or infinite weight, or a level beyond int32.
    """
    if low > -(2.0**31) and high < 2.0**31:
        return int(low), int(high)
    trees.check_finite([name], [x])
    raise ValueError(
        f"leaf {name!r}: levels run from {low:.4g} to {high:.4g} at step {step:.4g}, "
        "expected levels between -2^31 and 2^31: take a larger step"
    )
