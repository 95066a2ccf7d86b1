"""The codec beside its peers, on the same symbols in one run: ``python -m tests.benchmarks.bench_codec
[FILE]``.

Without FILE: weights drawn from a generalized Gaussian. With FILE, a .safetensors checkpoint: all its floating
tensors of 1024 weights and more. Needs the extra ``bench``, which has all peers but zipnn and lmzip; those that
are not installed are left out.

Sizes are in bits per parameter, with everything that a decoder needs (our file: its whole header). Rates are in
millions of symbols a second, the best of several runs taken in turn, for the entropy coder alone: symbols to
bytes and bytes to symbols; lossless rates are those of all the work, and lmzip's from file to file. Every peer
must give its input back before it is timed.

A table of its own compares one step for all weights with a scale for every row, as ``row_scales`` tells;
another one has lossless sizes of weights of which those of the smallest magnitude are pruned.
"""

import argparse
import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from ggjax import codec, gennorm, rate
from ggjax.codec import quantize
from ggjax.codec.container import _safetensors
from tests.benchmarks import row_scales
from tests.benchmarks.codec_peers import Peer, measured, of_bits, of_levels, show

FLOATS = ("F32", "BF16", "F16")


def weights_of(path: str | None, size: int) -> dict[str, np.ndarray]:
    """The tensors to code, by name."""
    if path is None:
        key = jax.random.key(0)
        return {"gg": np.asarray(gennorm.sample(key, 0.8, (size // 1000, 1000), scale=0.02))}
    with _safetensors.opened(path) as f:
        chosen = [n for n, e in f.header.entries.items() if math.prod(e.shape) >= 1024 and e.dtype in FLOATS]
        return {name: _safetensors.read_array(f, name).astype(np.float32) for name in chosen}


def file_size(tensors: dict[str, np.ndarray], **options: Any) -> int:
    """The bytes of our file, header and all."""
    with tempfile.TemporaryDirectory() as folder:
        return codec.save_file(tensors, os.path.join(folder, "x"), **options)


def lossy(
    tensors: dict[str, np.ndarray], name: str, step_of: Callable[[np.ndarray], float], **options: Any
) -> None:
    """Sizes and rates of all coders of levels, and the size of our file."""
    weights = list(tensors.values())
    n, steps = sum(x.size for x in weights), list(map(step_of, weights))
    rows = measured(list(of_levels(weights, steps)), n)
    show(f"Levels at {name}", rows, n, "constriction ANS, fitted GG")
    entropy = sum(
        x.size * rate.report({"x": x}, step, codes=("entropy",)).total.bits["entropy"]
        for x, step in zip(weights, steps, strict=True)
    )
    bits = 8 * file_size(tensors, **options) / n
    share = bits / (entropy / n)
    print(
        f"our file, row classes and header included: {bits:.4f} bits, {share:.5f} of the entropy of each "
        f"tensor ({entropy / n:.4f})"
    )


def lossless(tensors: dict[str, np.ndarray], dtype: Any) -> None:
    """Lossless sizes and whole times: weights to bytes and back."""
    arrays = {k: x.astype(dtype) for k, x in tensors.items()}
    flat = [x.reshape(-1).view(f"u{x.dtype.itemsize}") for x in arrays.values()]
    n = sum(x.size for x in flat)

    def ours() -> codec.Compressed:
        return codec.compress(arrays, lossless=True)

    def same(got: Any) -> bool:
        pairs = zip(got, flat, strict=True)
        return all(np.array_equal(np.asarray(a).reshape(-1).view(b.dtype), b) for a, b in pairs)

    whole = Peer(
        "ggjax lossless, all of it",
        ours,
        lambda c: jax.tree.leaves(codec.decompress(c)),
        lambda _: file_size(arrays, lossless=True),
        same,
    )
    peers = [whole, *of_bits(flat, str(np.dtype(dtype)), same)]
    show(f"Lossless {np.dtype(dtype)}", measured(peers, n), n, "zipnn")


def pruned(tensors: dict[str, np.ndarray]) -> None:
    """Lossless sizes where the smallest weights of each tensor are 0."""
    n = sum(x.size for x in tensors.values())
    print(
        f"\nLossless, pruned by magnitude, {n:,} weights: bits of our file, and of zstd -19 where it is there"
    )
    for dtype in (jnp.float32, jnp.bfloat16):
        for share in (0.5, 0.8, 0.95):
            cuts = {k: np.quantile(np.abs(x), share) for k, x in tensors.items()}
            arrays = {k: np.where(np.abs(x) < cuts[k], 0, x).astype(dtype) for k, x in tensors.items()}
            bits = [8 * file_size(arrays, lossless=True) / n]
            with contextlib.suppress(ImportError):
                import zstandard

                coder = zstandard.ZstdCompressor(level=19)
                bits.append(8 * sum(len(coder.compress(x.tobytes())) for x in arrays.values()) / n)
            print(f"{np.dtype(dtype)!s:<10} {share:4.0%} {'  '.join(f'{b:8.3f}' for b in bits)}")


def compilations(leaves: int = 200) -> None:
    """How many programs a checkpoint of many shapes takes, and how long they take to compile."""
    rng = np.random.default_rng(0)
    tree = {f"w{i}": rng.normal(size=(40 + 3 * i, 50 + 7 * i)).astype(np.float32) for i in range(leaves)}
    jax.clear_caches()
    events: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: events.append(seconds) if name.endswith("backend_compile_duration") else None
    )
    start = time.perf_counter()
    small = codec.compress(tree, bits=4)
    middle = time.perf_counter()
    encode = len(events), sum(events)
    codec.decompress(small)
    end = time.perf_counter()
    print(
        f"\n{leaves} leaves of different shapes, {sum(x.size for x in tree.values()):,} weights: compress "
        f"{middle - start:.1f} s with {encode[0]} compilations of {encode[1]:.1f} s in all; decompress "
        f"{end - middle:.1f} s with {len(events) - encode[0]} of {sum(events) - encode[1]:.1f} s"
    )


def memory(megabytes: int) -> None:
    """The peak memory of the command on a file of eight tensors, less that of the command on a small one."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        peaks = {}
        for name, size in (("small", 1 << 11), ("large", megabytes * (1 << 18))):
            path = os.path.join(folder, name)
            drawn = ((f"w{i}", rng.normal(size=size).astype(np.float32)) for i in range(8))
            tensors = (
                _safetensors.Tensor(n, "F32", (size // 256, 256), [_safetensors.as_bytes(x)]) for n, x in drawn
            )
            _safetensors.write(path, tensors, dict)
            code = (
                "import sys; from ggjax.app import cli; cli.main(sys.argv[1:]);"
                "status = dict(line.split(':', 1) for line in open('/proc/self/status'));"
                "print(1024 * int(status['VmHWM'].split()[0]))"
            )
            out = path + ".out"
            for what, argv in {
                "compress": ["compress", path, "--lossless", "-o", out, "-q"],
                "decompress": ["decompress", out, "-o", path + ".back", "-q"],
            }.items():
                command = [sys.executable, "-c", code, *argv]
                peaks[what, name] = int(subprocess.run(command, capture_output=True, check=True).stdout)
        tensor = megabytes * (1 << 20)
        for what in ("compress", "decompress"):
            grown = peaks[what, "large"] - peaks[what, "small"]
            print(
                f"{what} of a file of {8 * tensor / 1e6:.0f} MB: {peaks[what, 'large'] / 1e6:.0f} MB "
                f"at the peak, {grown / 1e6:.0f} MB more than for a small file: {grown / tensor:.1f}x its "
                "largest tensor (at most 6x, and the file besides)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a .safetensors checkpoint (default: drawn weights)")
    parser.add_argument("--size", type=int, default=10_000_000, help="weights to draw (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the sizes: does it run at all?")
    args = parser.parse_args()
    scale = 100 if args.quick else 1
    print(f"jax {jax.__version__} on {jax.devices()[0].platform}, {os.cpu_count()} cores")
    tensors = weights_of(args.file, args.size // scale)
    lossy(
        tensors,
        "a quarter of the standard deviation",
        lambda x: float(quantize.step_for("", [x], "uniform", quantize.Want(step_per_std=0.25))),
        step_per_std=0.25,
    )
    lossy(tensors, "2^-8", lambda x: 2.0**-8, step=2.0**-8)

    row_scales.show(tensors)
    lossless(tensors, jnp.bfloat16)
    lossless(tensors, jnp.float32)
    pruned({k: x.reshape(-1, x.shape[-1])[: max(10**6 // x.shape[-1], 1)] for k, x in tensors.items()})
    compilations(200 // min(scale, 10))
    memory(64 // min(scale, 16))


if __name__ == "__main__":
    main()
