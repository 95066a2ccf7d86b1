"""RF8 beside other ways to keep a weight: ``python -m tests.benchmarks.bench_rf8 FILE``.

FILE is a .safetensors checkpoint. Its floating tensors of two and more dimensions are counted, each kept by
itself. For every way the table shows

- SNR: 10 log10(sum w^2 / sum (w - w^)^2) over all weights, in dB;
- bits: the entropy of the codes per weight, with one table of probabilities a tensor, and what exponents (8
  bits each) or scales (32 bits each) add to it;
- uniform: the entropy of plain rounding to multiples of one step for the whole file, the step chosen so that
  the SNR is the same.

Channels are rows: PyTorch keeps the kernels of dense layers as (out, in).
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from ggjax import rf8

E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2


class Kept(NamedTuple):
    """A tensor as some format keeps it."""

    values: np.ndarray  # float32, of the shape of the tensor
    codes: np.ndarray  # integers
    side_bits: int  # of exponents or scales


def by_rf8(w: np.ndarray, **options: Any) -> Kept:
    q = rf8.tree_encode([w], **options)[0]
    return Kept(np.asarray(rf8.tree_decode([q])[0]), np.asarray(q.codes), 8 * q.exponents.size)


def by_cast(w: np.ndarray, dtype: Any, *, scaled: bool = False) -> Kept:
    """A cast, after dividing by the scale that takes the largest weight to the largest number, if asked."""
    top = np.abs(w).max() / float(jnp.finfo(dtype).max) if scaled else 1.0
    scale = np.float32(top or 1.0)
    low = (w / scale).astype(dtype)
    codes = low.view(np.uint8 if low.itemsize == 1 else np.uint16)
    return Kept(low.astype(np.float32) * scale, codes, 32 if scaled else 0)


def by_int8(w: np.ndarray) -> Kept:
    top = np.abs(w).max(tuple(range(1, w.ndim)), keepdims=True)
    scale = np.where(top > 0, top / np.float32(127), np.float32(1))
    codes = np.rint(w / scale).astype(np.int8)
    return Kept(codes * scale, codes, 32 * scale.size)


WAYS = {
    "RF8, digits, per tensor": lambda w: by_rf8(w),
    "RF8, nearest, per tensor": lambda w: by_rf8(w, rounding="nearest"),
    "RF8, digits, per channel": lambda w: by_rf8(w, axis=tuple(range(1, w.ndim))),
    "RF8, nearest, per channel": lambda w: by_rf8(w, axis=tuple(range(1, w.ndim)), rounding="nearest"),
    "float8_e4m3fn, plain cast": lambda w: by_cast(w, E4M3),
    "float8_e4m3fn, scaled per tensor": lambda w: by_cast(w, E4M3, scaled=True),
    "float8_e5m2, plain cast": lambda w: by_cast(w, E5M2),
    "int8, per channel": by_int8,
    "bfloat16": lambda w: by_cast(w, jnp.bfloat16),
}


class Row(NamedTuple):
    """A line of the table."""

    name: str
    snr: float  # dB
    bits: float
    uniform: float  # bits of uniform rounding at the same SNR

    def __str__(self) -> str:
        return f"{self.name:<34} {self.snr:>6.1f} {self.bits:>7.2f} {self.uniform:>10.2f}"


def entropy_bits(codes: np.ndarray) -> float:
    """Bits of all codes together, by the entropy of their counts."""
    counts = np.bincount((codes.astype(np.int64) - int(codes.min())).ravel())
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / codes.size)).sum())


def uniform_bits(weights: list[np.ndarray], noise: float) -> float:
    """Bits per weight of rounding to multiples of a step whose squared errors sum to ``noise``."""
    n = sum(w.size for w in weights)
    step = math.sqrt(12 * noise / n)  # the error is about uniform in [-step/2, step/2]
    for _ in range(8):
        got = sum(float(np.square(w - np.rint(w / step) * step, dtype=np.float64).sum()) for w in weights)
        step *= math.sqrt(noise / got)
        if abs(got / noise - 1) < 1e-3:  # 0.004 dB
            break
    return sum(entropy_bits(np.rint(w / step).astype(np.int32)) for w in weights) / n


def rows(weights: list[np.ndarray]) -> Iterator[Row]:
    """The lines of the table, for float32 tensors."""
    n = sum(w.size for w in weights)
    power = sum(float(np.square(w, dtype=np.float64).sum()) for w in weights)
    for name, keep in WAYS.items():
        noise, bits = 0.0, 0.0
        for w in weights:
            kept = keep(w)
            noise += float(np.square(kept.values - w, dtype=np.float64).sum())
            bits += entropy_bits(kept.codes) + kept.side_bits
        yield Row(name, 10 * math.log10(power / noise), bits / n, uniform_bits(weights, noise))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", help="a .safetensors checkpoint")
    tensors = load_file(parser.parse_args().file).values()
    weights = [x.astype(np.float32) for x in tensors if jnp.issubdtype(x.dtype, np.floating) and x.ndim >= 2]
    print(f"{sum(w.size for w in weights):,} weights in {len(weights)} tensors of two and more dimensions\n")
    print(f"{'':<34} SNR dB    bits    uniform")
    for row in rows(weights):
        print(row, flush=True)


if __name__ == "__main__":
    main()
