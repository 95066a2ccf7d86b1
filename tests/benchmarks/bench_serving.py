"""Products with weights that stay small, against products with float weights.

``python -m tests.benchmarks.bench_serving`` prints, for 1, 8 and 64 rows of x, the time of each product as a
multiple of that with float32 weights. All are timed in turn in one run. There are two
columns: one matrix again and again, which a large cache may hold, and eight matrices one after another, as the
layers of a model are. Then a step that scans over as many layers of bfloat16: as they are, in 12 bits, and
entropy-coded, with the memory that each takes. Last, the memory of a process while it loads a compressed file.
"""

import argparse
import dataclasses
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import codec, rf8
from tests.benchmarks.bench_core import spread

MATRICES = 8


def float_product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.dot(x.astype(w.dtype), w, preferred_element_type=jnp.float32)


def ways(w: jax.Array) -> dict[str, tuple[Callable[[jax.Array, Any], jax.Array], Any]]:
    """A product, and what it keeps of the matrix, for every way to keep it."""
    half = w.astype(jnp.bfloat16)
    coded = codec.compress({"kernel": w}, step=float(w.std()) / 2.5)
    return {
        "float32": (float_product, w),
        "bfloat16": (float_product, half),
        "codec.dot, bfloat16 in 12 bits": (codec.dot, kept(half, bits=12)),
        "codec.dot, 8 bits": (codec.dot, kept(w, bits=8)),
        "codec.dot, 8 bits, limited steps": (codec.dot, limited(kept(w, bits=8))),
        "codec.dot, 4 bits": (codec.dot, kept(w, bits=4)),
        "codec.dot, 4 bits, some beside": (codec.dot, codec.resident(coded)["kernel"]),
        "rf8.dot, one exponent": (rf8.dot, rf8.encode(w)),
        "rf8.dot, one for each column": (rf8.dot, rf8.encode(w, axis=0)),
        "rf8.decode, then dot": (lambda x, q: x @ rf8.decode(q), rf8.encode(w)),
    }


def kept(w: jax.Array, bits: Literal[4, 8, 12]) -> Any:
    return codec.resident({"kernel": w}, bits=bits)["kernel"]


def limited(q: codec.LevelArray) -> codec.LevelArray:
    """With steps of rows and columns, some of which a limit makes smaller, as calibrated rounding has them."""
    rows = jnp.exp2(jnp.arange(q.shape[0], dtype=jnp.float32)[:, None] % 16 / 8)
    return dataclasses.replace(q, row_steps=rows, limit=jnp.full((1, 1), q.column_steps.mean() * 3))


def weights_of(q: Any) -> jax.Array:
    return rf8.decode(q) if isinstance(q, rf8.RF8Array) else q if isinstance(q, jax.Array) else q.decode()


def check(name: str, x: jax.Array, q: Any, y: jax.Array) -> None:
    """Fails unless the product is that with the weights as they are kept."""
    want = np.asarray(x, np.float64) @ np.asarray(weights_of(q), np.float64)
    error = np.linalg.norm(np.asarray(y, np.float64) - want) / np.linalg.norm(want)
    allowed = 0.005 if name == "bfloat16" else 1e-5  # x is rounded too
    assert error < allowed, f"{name}: relative error {error:.2g}"


def table(size: int, repeats: int) -> None:
    keys = jax.random.split(jax.random.key(0), MATRICES)
    matrices = [0.02 * jax.random.normal(key, (size, size)) for key in keys]
    forms: dict[str, tuple[Any, list[Any]]] = {}
    for w in matrices:
        for name, (product, q) in ways(w).items():
            forms.setdefault(name, (jax.jit(product), []))[1].append(q)
    print(f"{size} x {size}, jax {jax.__version__} on {jax.devices()[0].platform}\n")
    print(f"{'rows':>4} {'weights':<34} {'one matrix':>12} {'':>8} {f'{MATRICES} in turn':>12}")
    for batch in (1, 8, 64):
        x = jax.random.normal(jax.random.key(1), (batch, size))
        for name, (product, all_of_them) in forms.items():
            check(name, x, all_of_them[0], product(x, all_of_them[0]))

        def one(product: Any, of_all: list[Any], x: jax.Array = x) -> Any:
            return product(x, of_all[0])

        def in_turn(product: Any, of_all: list[Any], x: jax.Array = x) -> Any:
            return [jax.block_until_ready(product(x, q)) for q in of_all]

        figures = [
            [median for _, median, _ in spread(*(functools.partial(f, *k) for k in forms.values()), repeats=n)]
            for f, n in ((one, repeats), (in_turn, max(repeats // 4, 3)))
        ]
        for i, name in enumerate(forms):
            once, many = (f[i] for f in figures)
            print(
                f"{batch:>4} {name:<34} {once * 1e3:>9.2f} ms {once / figures[0][0]:>7.2f}x"
                f" {many / MATRICES * 1e3:>9.2f} ms {many / figures[1][0]:>7.2f}x",
                flush=True,
            )


def layers(size: int, repeats: int) -> None:
    """A step that scans over stacked layers, in what is lossless."""
    keys = jax.random.split(jax.random.key(0), MATRICES)
    stack = jnp.stack([size**-0.5 * jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys])
    x = jax.random.normal(jax.random.key(1), (1, size), jnp.bfloat16)
    forms = {
        "bfloat16": stack,
        "12 bits": codec.resident({"kernel": stack}, bits=12, batch_axis=0)["kernel"],
        "entropy-coded": codec.layers(stack),
    }

    @jax.jit
    def serve(x: jax.Array, w: Any) -> jax.Array:
        return jax.lax.scan(lambda x, w: (codec.dot(x, w), None), x, w)[0]

    print(f"\n{MATRICES} layers of {size} x {size} under lax.scan, 1 row of x, losslessly\n")
    want = np.asarray(serve(x, stack), np.float64)
    runs = [functools.partial(serve, x, w) for w in forms.values()]
    found = [median for _, median, _ in spread(*runs, repeats=repeats)]
    for (name, w), seconds in zip(forms.items(), found, strict=True):
        error = np.linalg.norm(np.asarray(serve(x, w), np.float64) - want) / np.linalg.norm(want)
        assert error < 0.02, f"{name}: relative error {error:.2g}"  # activations are rounded to bfloat16
        memory = serve.lower(x, w).compile().memory_analysis()
        held = sum(a.nbytes for a in jax.tree.leaves(w)) / stack.size
        print(
            f"{name:<14} {seconds * 1e3:>9.1f} ms {seconds / found[0]:>7.2f}x, {held:.2f} bytes a weight, "
            f"temporary {memory.temp_size_in_bytes / size**2:.1f} bytes a weight of one layer"
        )


def loading(size: int) -> None:
    """What files take in memory while they are loaded, each in a process of its own."""
    keys = jax.random.split(jax.random.key(0), MATRICES)
    tree = {f"layer_{i}": {"kernel": jax.random.normal(key, (size, size))} for i, key in enumerate(keys)}
    print(f"\nLoading {MATRICES} matrices of {size} x {size}, in bytes a weight\n")
    options: list[dict[str, Any]] = [{"step": 0.5}, {"rf8": True}]
    with tempfile.TemporaryDirectory() as folder:
        for how in options:
            path = f"{folder}/{next(iter(how))}.ggjax.safetensors"
            codec.save_file(tree, path, **how)
            for form in ("floats", "resident", "coded"):
                command = [sys.executable, "-m", __spec__.name, "--load", path, form]
                print(f"{next(iter(how)):<6}", subprocess.check_output(command, text=True), end="", flush=True)


def load(path: str, form: Any) -> None:
    """Loads a file in this process and prints what that took."""
    codec.resident({"kernel": jnp.ones((64, 64))}, bits=8)  # so that libraries are there
    before = _peak()
    leaves = jax.block_until_ready(jax.tree.leaves(codec.load_file(path, form=form)))
    size = sum(int(np.prod(t.shape)) for t in codec.inspect_file(path).tensors)
    held = sum(x.nbytes for x in leaves)
    print(f"{form:<9} peak {(_peak() - before) / size:.2f}, held {held / size:.2f}")


def _peak() -> int:
    """The most bytes that this process has had in memory."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--load", nargs=2, metavar=("FILE", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(*args.load)
        return
    table(args.size, args.repeats)
    layers(args.size // 2, max(args.repeats // 4, 3))
    loading(args.size // 2)


if __name__ == "__main__":
    main()
