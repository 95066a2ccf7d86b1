"""Text from the demo's language model with weights in several forms: bytes in memory, bytes of text a second.

``python -m tests.benchmarks.bench_generate`` builds the model in a larger size, with random weights, and lets
it continue one text greedily, byte after byte, with a cache of what attention has seen: all weights are read
for every byte. The forms take turns in one run of the same program. Working memory is what the compiled program
needs beside the weights. The text must be that of the same weights decoded to floats. ``--quick`` takes a small
model.
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ggjax
from ggjax import codec, rf8, serve
from ggjax.app import _lm
from ggjax.app._generate import generate
from tests.benchmarks.bench_core import spread


class Way(NamedTuple):
    """A form of the weights: what is served, and floats that must give the same text."""

    params: Any
    floats: Any
    dtype: Any = None  # of the model's products
    most: int = 1 << 30  # bytes of text, where each takes long


def ways(params: Any) -> dict[str, Way]:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = {"float32": Way(params, params), "bfloat16": Way(half, half, jnp.bfloat16)}
    forms: dict[str, Any] = {
        "RF8": rf8.tree_encode(params),
        "levels, 8 bits": codec.resident(params, bits=8, mask=None),
        "levels, 4 bits": codec.resident(params, bits=4, mask=None),
        "bfloat16 in 12 bits": codec.resident(half, bits=12, mask=None),
        "entropy-coded, 4 bits": ggjax.compress(params, bits=4),
    }
    for name, small in forms.items():
        dtype, most = (jnp.bfloat16 if "bfloat16" in name else None), (4 if "entropy" in name else 1 << 30)
        found[name] = Way(small, serve.tree_decode(small), dtype, most)
    return found


def table(model: _lm.Model, count: int, repeats: int) -> None:
    params = _lm.init(model, 0)
    params["head"]["kernel"] *= 8  # no two bytes are almost as likely
    prompt = jnp.asarray(np.frombuffer(b"import ", np.uint8)[None])
    found = ways(params)
    models = {name: model.clone(dtype=way.dtype) for name, way in found.items()}
    counts = {name: min(count, way.most) for name, way in found.items()}
    programs = {
        n: generate.lower(models[n], way.params, prompt, counts[n]).compile() for n, way in found.items()
    }
    runs = {n: functools.partial(program, found[n].params, prompt) for n, program in programs.items()}
    seconds = [median for _, median, _ in spread(*runs.values(), repeats=repeats)]
    size = sum(x.size for x in jax.tree.leaves(params))
    print(
        f"{size:,} weights, {count} bytes of text, jax {jax.__version__} on {jax.devices()[0].platform}\n\n"
        f"{'weights':<24}{'MB':>8}{'':>9}{'working MB':>12}{'bytes/s':>9}{'':>8}  same text as decoded weights"
    )
    full, first = serve.nbytes(params), _speed(prompt, count, seconds[0])
    for (name, way), s in zip(found.items(), seconds, strict=True):
        speed = _speed(prompt, counts[name], s)
        same = bool((generate(models[name], way.floats, prompt, counts[name]) == runs[name]()).all())
        held, working = serve.nbytes(way.params), programs[name].memory_analysis().temp_size_in_bytes
        print(
            f"{name:<24}{held / 1e6:>8.1f}{held / full:>8.3f}x{working / 1e6:>12.1f}"
            f"{speed:>9.1f}{speed / first:>7.2f}x  {'yes' if same else 'NO'}",
            flush=True,
        )


def _speed(prompt: jax.Array, count: int, seconds: float) -> float:
    """How many times a second the model was applied."""
    return (prompt.shape[1] + count - 1) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, and less text")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=6)
    args = parser.parse_args()
    if args.quick:
        table(_lm.Model(width=128, depth=2), count=16, repeats=3)
    else:
        table(_lm.Model(width=args.width, depth=args.depth, heads=16), count=64, repeats=5)


if __name__ == "__main__":
    main()
