"""How long files take: ``python -m tests.benchmarks.bench_loading [FILE]``.

With FILE, a .safetensors checkpoint: each command on it, the first time (nothing compiled yet) and the
second time, in seconds of the clock and of the processors.

Then a large checkpoint of bfloat16 weights drawn from a generalized Gaussian, made in a temporary folder:
how many megabytes (10^6 bytes) of it a second takes to compress and to decompress, beside zstd and pcodec.
ggjax goes from file to file and uses all cores, the others go from memory to memory on one; programs are
compiled before the clock runs. On a machine that others use too, megabytes per second of the processors
tell more than those of the clock. Needs the extra ``bench``; what is not installed is left out.
"""

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ggjax
from ggjax.codec.container import _safetensors
from tests.benchmarks import codec_peers

SHAPE = (4096, 8192)  # of a tensor: 67 MB
PEERS = ("zstd -1", "zstd -3", "pcodec, level 8, sign last")


class Took(NamedTuple):
    """Seconds."""

    clock: float
    processors: float  # of user and system, all of them together


def took(f: Callable[[], Any], who: int = resource.RUSAGE_SELF) -> Took:
    """What a call takes, in this process or in those that it starts."""

    def now() -> tuple[float, float]:
        usage = resource.getrusage(who)
        return time.perf_counter(), usage.ru_utime + usage.ru_stime

    begin = now()
    f()
    return Took(*(b - a for a, b in zip(begin, now(), strict=True)))


def commands(file: Path, folder: Path) -> Iterator[tuple[str, Took, Took]]:
    """(command, first run, second run) of every command on a checkpoint."""
    small, exact, back = folder / "small", folder / "exact", folder / "back"
    every = {
        "compress --bits 4": ("compress", file, "--bits", 4, "-f", "-o", small),
        "verify": ("verify", small),
        "decompress": ("decompress", small, "-f", "-o", back),
        "compress --lossless": ("compress", file, "--lossless", "-f", "-o", exact),
        "verify, lossless": ("verify", exact),
        "decompress, lossless": ("decompress", exact, "-f", "-o", back),
        "info": ("info", exact),
    }
    for name, arguments in every.items():
        with tempfile.TemporaryDirectory() as cache:
            env = {**os.environ, "XDG_CACHE_HOME": cache}
            run = [sys.executable, "-m", "ggjax.app", *map(str, arguments)]

            def once(run: list[str] = run, env: dict[str, str] = env) -> None:
                subprocess.run(run, env=env, check=True, stdout=subprocess.DEVNULL)

            yield name, took(once, resource.RUSAGE_CHILDREN), took(once, resource.RUSAGE_CHILDREN)


def make(path: Path, tensors: int) -> None:
    """A checkpoint of so many tensors, whose shapes and scales differ as those of layers do."""

    def drawn() -> Iterator[_safetensors.Tensor]:
        for i in range(tensors):
            shape, scale = 0.8 + 0.9 * (i % 8) / 8, 0.02 * 1.3 ** (i % 5)
            w = ggjax.gennorm.sample(jax.random.key(i), shape, SHAPE, scale=scale, dtype=jnp.bfloat16)
            w = np.asarray(w)
            yield _safetensors.Tensor(
                f"layers.{i}.weight", "BF16", w.shape, [w.view(np.uint8).reshape(-1).data]
            )

    _safetensors.write(path, drawn(), dict)


def ours(path: Path, folder: Path) -> Iterator[tuple[str, float, Took, Took]]:
    """(what, bytes, compressing, decompressing) of files."""
    target, back = folder / "compressed", folder / "plain"
    ways: dict[str, dict[str, Any]] = {
        "ggjax, lossless": {"lossless": True},
        "ggjax, bits=4": {"bits": 4},
    }
    if importlib.util.find_spec("zstandard"):
        ways["ggjax, lossless, coder zstd"] = {"lossless": True, "coder": "zstd"}
    for name, how in ways.items():

        def compress(how: dict[str, Any] = how) -> None:
            ggjax.compress_file(path, target, overwrite=True, **how)

        there = took(compress)
        yield (
            name,
            target.stat().st_size,
            there,
            took(lambda: ggjax.decompress_file(target, back, overwrite=True)),
        )


def theirs(path: Path) -> Iterator[tuple[str, float, Took, Took]]:
    """The same of other coders, in memory."""
    with _safetensors.opened(path) as f:
        flat = [_safetensors.read_array(f, n).reshape(-1).view(np.uint16) for n in f.header.entries]
    for p in codec_peers.of_bits(flat, "bfloat16", lambda _: True):
        if p.name in PEERS:
            data: list[Any] = []
            there = took(lambda p=p, data=data: data.append(p.encode()))
            yield p.name, p.nbytes(data[0]), there, took(lambda p=p, data=data: p.decode(data[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="a .safetensors checkpoint, for the commands")
    parser.add_argument(
        "--tensors", type=int, default=15, help="of 67 MB each; 0 for none (default: %(default)s)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.file:
            print(f"{args.file.stat().st_size / 1e6:.1f} MB; seconds by the clock (of the processors)\n")
            print(f"{'':<24} {'first run':>16} {'second run':>16}")
            for command, *runs in commands(args.file, folder):
                cells = (f"{t.clock:.2f} ({t.processors:.2f})" for t in runs)
                print(f"{command:<24} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)
        if not args.tensors:
            return
        first, path = folder / "first", folder / "model"
        make(first, 2)
        for _ in ours(first, folder):
            pass  # compiles
        make(path, args.tensors)
        size = path.stat().st_size / 1e6
        print(f"\n{size:,.0f} MB of bfloat16; MB/s by the clock (by the processors)\n")
        print(f"{'':<28} {'bits':>6} {'compress':>16} {'decompress':>16}")
        for rows in (ours(path, folder), theirs(path)):
            for name, nbytes, *ways in rows:
                cells = (f"{size / t.clock:.0f} ({size / t.processors:.0f})" for t in ways)
                bits = 16 * nbytes / 1e6 / size
                print(f"{name:<28} {bits:6.2f} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
