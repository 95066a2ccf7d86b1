"""RF8 beside other ways to keep a weight: ``python -m tests.benchmarks.bench_rf8 FILE``.

FILE is a .safetensors checkpoint. Its floating tensors of two and more dimensions are counted, each kept by
itself. For every way the table shows

- SNR: 10 log10(sum w^2 / sum (w - w^)^2) over all weights, in dB;
- bits: the entropy of the codes per weight, with one table of probabilities a tensor, and what exponents (8
  bits each) or scales (32 bits each) add to it;
- uniform: the entropy of plain rounding to multiples of one step for the whole file, the step chosen so that
  the SNR is the same.

Beside them stand SNR and bits of the kernels of the demo's language model (Adam, seed 1; trained in some
minutes unless --lm-cache has its weights), its loss with these weights on the test split, in bits per byte,
and how far its predictions move from those of the float weights (the mean divergence, in thousandths of a
bit): one training and one text do not tell differences of the loss well, those of the divergence they do.
With feedback, errors are made good by the weights after them, as a sensitivity from 10 batches says
(``rf8.tree_encode(sensitivity=)``).

Channels are outputs: rows of FILE, as PyTorch keeps kernels as (out, in), and columns of the language model.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from ggjax import rf8, sensitivity
from ggjax._internal import trees
from tests.benchmarks.calibrated import lm
from tests.benchmarks.calibrated.subject import Subject

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


def by_int8(w: np.ndarray, axis: tuple[int, ...]) -> Kept:
    top = np.abs(w).max(axis, keepdims=True)
    scale = np.where(top > 0, top / np.float32(127), np.float32(1))
    codes = np.rint(w / scale).astype(np.int8)
    return Kept(codes * scale, codes, 32 * scale.size)


Way = Callable[[np.ndarray, tuple[int, ...]], Kept]
"""Of a tensor, and the axes along which channels lie."""

WAYS: dict[str, Way] = {
    "RF8, digits, per tensor": lambda w, axis: by_rf8(w),
    "RF8, nearest, per tensor": lambda w, axis: by_rf8(w, rounding="nearest"),
    "RF8, digits, per channel": lambda w, axis: by_rf8(w, axis=axis),
    "RF8, nearest, per channel": lambda w, axis: by_rf8(w, axis=axis, rounding="nearest"),
    "float8_e4m3fn, plain cast": lambda w, axis: by_cast(w, E4M3),
    "float8_e4m3fn, scaled per tensor": lambda w, axis: by_cast(w, E4M3, scaled=True),
    "float8_e5m2, plain cast": lambda w, axis: by_cast(w, E5M2),
    "int8, per channel": by_int8,
    "bfloat16": lambda w, axis: by_cast(w, jnp.bfloat16),
}

FEEDBACK: dict[str, dict[str, Any]] = {
    "RF8, digits, with feedback": {"rounding": "digits"},
    "RF8, nearest, with feedback": {"rounding": "nearest"},
}
"""Per tensor, with a sensitivity."""


class Measure(NamedTuple):
    """What a way makes of some weights."""

    snr: float  # dB
    bits: float
    noise: float  # the sum of squared errors


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


def measure(weights: list[np.ndarray], kept: list[Kept]) -> Measure:
    """The error and the bits of float32 tensors that were kept so."""
    noise = power = bits = 0.0
    for w, k in zip(weights, kept, strict=True):
        power += float(np.square(w, dtype=np.float64).sum())
        noise += float(np.square(k.values - w, dtype=np.float64).sum())
        bits += entropy_bits(k.codes) + k.side_bits
    return Measure(10 * math.log10(power / noise), bits / sum(w.size for w in weights), noise)


def of_file(path: str) -> Iterator[tuple[str, str]]:
    """(way, three cells) for the tensors of a file."""
    tensors = load_file(path).values()
    weights = [x.astype(np.float32) for x in tensors if jnp.issubdtype(x.dtype, np.floating) and x.ndim >= 2]
    for name, keep in WAYS.items():
        found = measure(weights, [keep(w, tuple(range(1, w.ndim))) for w in weights])
        yield name, f"{found.snr:.1f} | {found.bits:.2f} | {uniform_bits(weights, found.noise):.2f}"


def of_model(subject: Subject) -> Iterator[tuple[str, str]]:
    """(way, four cells) for the language model."""
    flat = trees.flatten(subject.params, subject.mask)
    weights = [np.asarray(w) for w in flat.weights()]

    def judged(kept: list[Kept]) -> str:
        quality = subject.quality(flat.replace([jnp.asarray(k.values) for k in kept]), "test")
        found = measure(weights, kept)
        loss, divergence = (quality[name] / math.log(2) for name in ("loss", "kl"))
        return f"{found.snr:.1f} | {found.bits:.2f} | {loss:.4f} | {1000 * divergence:.2f}"

    for name, keep in WAYS.items():
        yield name, judged([keep(w, tuple(range(w.ndim - 1))) for w in weights])
    known = sensitivity.estimate(
        subject.apply, subject.params, list(subject.batches(10)), key=jax.random.key(0)
    )
    for name, how in FEEDBACK.items():
        encoded = rf8.tree_encode(subject.params, mask=subject.mask, sensitivity=known, **how)
        codes = [q for q in jax.tree.leaves(encoded, is_leaf=_is_encoded) if _is_encoded(q)]
        yield name, judged([Kept(np.asarray(rf8.decode(q)), np.asarray(q.codes), 8) for q in codes])


def _is_encoded(x: Any) -> bool:
    return isinstance(x, rf8.RF8Array)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a .safetensors checkpoint")
    parser.add_argument(
        "--lm-cache",
        type=Path,
        default=lm.DEFAULT_CACHE,
        help="folder of the language model's weights (default: %(default)s)",
    )
    args = parser.parse_args()
    subject = lm.load("adam", 1, args.lm_cache)
    float_loss = subject.quality(subject.params, "test")["loss"] / math.log(2)
    print("| | SNR, dB | bits | uniform rounding, bits | SNR, dB | bits | loss | divergence |")
    print("|" + "---|" * 8)
    print(f"| float32 | | | | | | {float_loss:.4f} | |", flush=True)
    file = dict(of_file(args.file))
    for name, cells in of_model(subject):
        print(f"| {name} | {file.get(name, '| |')} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
