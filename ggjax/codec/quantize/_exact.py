"""Forms that lose nothing: what the cheapest of them takes.

Weights of few distinct values (pruned, ternary, taken back from integers) take fewer bits exactly than most
steps would give them: either all are multiples of one step, or their bits have little entropy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ggjax.codec.entropy import _lanes, _tokens
from ggjax.codec.quantize import _dictionary, _lossless, _uniform
from ggjax.codec.quantize._rates import bits_of, sort
from ggjax.codec.quantize._summary import PIECE, sample, spread_out

FEW = 1024
"""More distinct values than these are not looked through for a common step."""

SAMPLE = 1 << 12

_VALUE_BITS = 64.0
"""What a value in a list of few takes, and its entry in a table."""


class Exact(NamedTuple):
    """A form of a leaf that loses nothing."""

    bits: float  # per weight
    kind: str | None  # None: kept as it is
    step: float = 0.0  # of the kind "uniform": all weights are multiples of it


def cheapest(blocks: Sequence[np.ndarray], *, steps: bool) -> Exact:
    """The cheapest exact form of a leaf, by a sample of its weights.

    With ``steps``, for which all must be finite, they may also be multiples of one step. The sign of a zero
    does not count there.
    """
    x = next((x for x in blocks if x.size), np.zeros(1, np.float32))
    best = Exact(8.0 * x.dtype.itemsize, None)
    some = spread_out(x, SAMPLE)
    size = sum(y.size for y in blocks)
    if str(x.dtype) in _lossless.QUANTIZER.dtypes:
        zeros = _lossless.QUANTIZER.zeros_of(some[None])[0]
        keys = _lossless.QUANTIZER.keys_of(some, (), np.uint32(zeros))
        bits = _tokens.choose_bins(keys, size, signed=False)[1] + _lanes.overhead_bits(size) / size
        best = min(best, Exact(bits, "lossless"), key=lambda e: e.bits)
    few = _bits_of_few(blocks, some, size)
    if few < best.bits:
        best = Exact(few, "lossless")
    step = common_step(blocks) if steps else None
    if step is not None:
        t = np.concatenate([sample(y, (1 << 16) // len(blocks)) for y in blocks])
        best = min(Exact(bits_of(sort(t, size), step, 0.0), "uniform", step), best, key=lambda e: e.bits)
    return best


def _bits_of_few(blocks: Sequence[np.ndarray], some: np.ndarray, size: int) -> float:
    """Bits per weight of a leaf of few distinct values, by some of its weights; infinity for others."""
    dtype = _dictionary.bits_dtype(some.dtype)
    if str(some.dtype) not in _dictionary.QUANTIZER.dtypes:
        return np.inf
    values = [_dictionary.distinct(x.reshape(-1).view(dtype)) for x in blocks if x.size]
    number = sum(np.inf if v is None else len(v) for v in values)
    counts = np.unique(np.ascontiguousarray(some).view(dtype), return_counts=True)[1]
    return _tokens.entropy_bits(counts) / len(some) + (number * _VALUE_BITS + _lanes.overhead_bits(size)) / size


def common_step(blocks: Sequence[np.ndarray]) -> float | None:
    """A float32 that all weights are multiples of, as the decoder rounds them.

    None if there is none, or if they have more than ``FEW`` distinct values.
    """
    x = next((x for x in blocks if x.size), np.zeros(1, np.float32))
    values = np.unique(np.abs(np.concatenate([sample(y, SAMPLE) for y in blocks])))
    if len(values) > FEW:
        return None
    values = values[values > 0]
    if not len(values):
        candidates = [1.0]
    else:
        gaps = np.diff(values, prepend=0.0)
        least = float(gaps[gaps > values[-1] * 2.0**-16].min())
        candidates = [float(values[0]), least, _fitted(values, least), _fitted(values, float(values[0]))]
    for candidate in candidates:
        step = np.float32(candidate)
        if _uniform.SMALLEST <= step <= _uniform.LARGEST and _all_multiples([values], step, x.dtype):
            if _all_multiples(blocks, step, x.dtype):
                return float(step)
    return None


def _fitted(values: np.ndarray, step: float) -> float:
    """The step that values are best multiples of, near a first guess; the smallest values count first, since
    the guess is not good enough to number the large ones."""
    for end in (4, 32, len(values)):
        level = np.rint(values[:end] / step)
        step = float(level @ values[:end] / max(level @ level, 1.0)) or step
    return step


def _all_multiples(blocks: Sequence[np.ndarray], step: np.float32, dtype: np.dtype) -> bool:
    dtype = jnp.dtype(dtype)
    for x in blocks:
        flat = x.reshape(-1)
        for i in range(0, len(flat), PIECE):
            piece = flat[i : i + PIECE].astype(np.float32)
            level = np.rint(piece / step)
            if not (np.abs(level) < 2**24).all() or ((level * step).astype(dtype) != piece.astype(dtype)).any():
                return False
    return True
