"""What is known of the weights of a leaf to choose its step by: a sample, their range and their moments."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SAMPLE = 1 << 18

PIECE = 1 << 15
"""Weights that are looked at together: few enough that they stay in a core's own cache."""


class Summary(NamedTuple):
    """What is known of the weights of a leaf. Arrays, so that processes can share it."""

    sample: np.ndarray  # float64
    size: np.ndarray  # of the leaf
    mean: np.ndarray
    spread: np.ndarray  # sum of (weight - mean)^2
    low: np.ndarray  # the smallest weight, NaN if one is
    high: np.ndarray

    @property
    def largest(self) -> float:
        """The largest magnitude of a weight."""
        return max(abs(float(self.low)), abs(float(self.high)))

    @property
    def power(self) -> float:
        """The mean square of the weights."""
        return float(self.spread / self.size + self.mean**2)


def summarize(blocks: Sequence[np.ndarray], size: int = SAMPLE) -> Summary:
    """The summary of weights in one or more blocks, with a sample of so many; with none, of their range
    alone."""
    blocks = [x for x in blocks if x.size] or [np.zeros(1, np.float32)]
    if not size:
        with np.errstate(invalid="ignore"):  # NaN
            low, high = np.min([x.min() for x in _wide(blocks)]), np.max([x.max() for x in _wide(blocks)])
        n = sum(x.size for x in blocks)
        return Summary(np.zeros(0), *map(np.array, (float(n), 0.0, 0.0, low, high)))
    t = np.concatenate([sample(x, size // len(blocks)) for x in blocks])
    with np.errstate(invalid="ignore", over="ignore"):  # NaN, infinities, squares beyond float64
        return _merged(t, np.array([_moments(piece.astype(np.float64)) for piece in _wide(blocks)]))


def merge(parts: Sequence[Summary]) -> Summary:
    """The summary of all weights of several."""
    moments = np.array([[float(v) for v in p[1:]] for p in parts])
    return _merged(np.concatenate([p.sample for p in parts]), moments)


def summary_of_all(blocks: list[np.ndarray], size: int = 1 << 14) -> Summary:
    """The summary of the blocks of all processes, the same in each."""
    from jax.experimental.multihost_utils import process_allgather

    s = summarize(blocks, size)
    fields = np.concatenate([[len(s.sample)], [float(v) for v in s[1:]], np.resize(s.sample, size)])
    with jax.enable_x64(True):
        gathered = np.asarray(process_allgather(fields)).reshape(jax.process_count(), -1)
    return merge([Summary(g[6 : 6 + int(g[0])], *(np.array(v) for v in g[1:6])) for g in gathered])


def sample(x: np.ndarray, size: int = SAMPLE) -> np.ndarray:
    """Up to ``size`` weights of an array, evenly spread, as float64."""
    return spread_out(x, size).astype(np.float64)


def spread_out(x: np.ndarray, size: int) -> np.ndarray:
    """Up to ``size`` elements of an array, evenly spread, as a vector."""
    flat = x.reshape(-1)
    stride = max(len(flat) // size, 1) | 1  # odd, so that it does not keep to a few columns
    return flat[::stride][:size]


def _wide(blocks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The weights piece by piece, in a dtype that NumPy is fast in."""
    for x in blocks:
        flat = x.reshape(-1)
        for i in range(0, len(flat), PIECE):
            piece = flat[i : i + PIECE]
            narrow = piece.dtype.itemsize < 4 or piece.dtype == jnp.bfloat16
            yield piece.astype(np.float32) if narrow else piece


def _moments(t: np.ndarray) -> tuple[float, ...]:
    """(size, mean, spread, lowest, highest) of some weights, float64, which are changed."""
    low, high, mean = t.min(), t.max(), t.mean()
    t -= mean
    np.square(t, out=t)  # not a product of BLAS, whose threads would wait for one another
    return float(len(t)), float(mean), float(t.sum()), float(low), float(high)


def _merged(t: np.ndarray, moments: np.ndarray) -> Summary:
    """The summary of a sample and of the moments of some pieces."""
    sizes, means, spreads, lows, highs = moments.T
    size = sizes.sum()
    mean = sizes @ means / size
    spread = spreads.sum() + sizes @ (means - mean) ** 2
    return Summary(t, *map(np.array, (size, mean, spread, lows.min(), highs.max())))
