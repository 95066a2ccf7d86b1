"""A scale for every row, chosen without data, beside one step for all: for ``bench_codec``.

Scales are chosen as EntQuant (arXiv 2601.22787) chooses them, by ``ggjax.baselines.entquant``. A row is what
lies along the last axis. The levels of a tensor are coded by one table, as those of ``bench_codec`` are, and
every scale takes 16 bits.
"""

from typing import NamedTuple

import numpy as np

from ggjax import baselines, codec
from tests.benchmarks.codec_peers import levels_size

RATES = (0.02, 0.1, 0.4)


class Result(NamedTuple):
    """What a way of rounding gives for all tensors."""

    bits: float  # per weight
    squared: float  # error, relative to the weights
    size: float  # error, likewise


def show(tensors: dict[str, np.ndarray]) -> None:
    """Print what both ways give at the same size."""
    n = sum(x.size for x in tensors.values())
    print(f"\nA scale for every row, as EntQuant has it, {n:,} weights; errors relative to the weights")
    print(f"{'':<34} {'bits':>8} {'squared':>10} {'absolute':>10}")
    for rate in RATES:
        scaled = by_rows(tensors, rate)
        for name, r in (
            (f"a scale for every row, rate {rate}", scaled),
            ("ggjax bits=", one_step(tensors, scaled.bits)),
        ):
            print(f"{name:<34} {r.bits:8.4f} {r.squared:10.6f} {r.size:10.6f}")


def one_step(tensors: dict[str, np.ndarray], bits: float) -> Result:
    """One step for all, of at most so many bits."""
    small = codec.compress(tensors, bits=bits, mask=None)
    back = codec.decompress(small)
    return _result(tensors, {k: np.asarray(x) for k, x in back.items()}, 8.0 * small.nbytes)


def by_rows(tensors: dict[str, np.ndarray], rate: float) -> Result:
    """A scale for every row."""
    bits, back = 0.0, {}
    for name, x in tensors.items():
        rows = x.reshape(-1, x.shape[-1])
        found = baselines.entquant({"rows": rows}, rate, axis=0, mask=None)
        back[name] = np.asarray(found.weights["rows"]).reshape(x.shape)
        bits += 8 * levels_size(np.asarray(found.levels["rows"])) + found.side_bits
    return _result(tensors, back, bits)


def _result(tensors: dict[str, np.ndarray], back: dict[str, np.ndarray], bits: float) -> Result:
    n = sum(x.size for x in tensors.values())
    sums = np.zeros((2, 2))
    for name, x in tensors.items():
        for i, y in enumerate((back[name] - x, x)):
            sums[i] += np.square(y, dtype=np.float64).sum(), np.abs(y).sum(dtype=np.float64)
    return Result(bits / n, *(sums[0] / sums[1]))
