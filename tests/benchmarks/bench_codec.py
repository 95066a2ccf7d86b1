"""The codec beside its peers, on the same symbols in one run: ``python -m tests.benchmarks.bench_codec
[FILE]``.

Without FILE: weights drawn from a generalized Gaussian. With FILE, a .safetensors checkpoint: all its floating
tensors of 1024 weights and more. Needs the extra ``bench``; peers that are not installed are left out.

Sizes are in bits per parameter, with everything that a decoder needs (our file: its whole header). Rates are in
millions of symbols a second, the best of several runs taken in turn, for the entropy coder alone: symbols to
bytes and bytes to symbols. Every peer must give its input back before it is timed.
"""

import argparse
import contextlib
import io
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from ggjax import codec, gennorm, rate
from ggjax.codec import _decode, _encode
from ggjax.codec.container import _safetensors
from ggjax.codec.entropy import _models, _tokens
from ggjax.codec.quantize import _steps

REPEATS = 5
FLOATS = ("F32", "BF16", "F16")
SLOW = 2.0
"""Peers that take more seconds are timed once."""


class Row(NamedTuple):
    name: str
    bits: float
    encode: float  # seconds
    decode: float


class Peer(NamedTuple):
    """A coder of symbols: bytes of them, and symbols of those."""

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    nbytes: Callable[[Any], int]
    check: Callable[[Any], bool]


def weights_of(path: str | None, size: int) -> dict[str, np.ndarray]:
    """The tensors to code, by name."""
    if path is None:
        key = jax.random.key(0)
        return {"gg": np.asarray(gennorm.sample(key, 0.8, (size // 1000, 1000), scale=0.02))}
    with _safetensors.opened(path) as f:
        chosen = [n for n, e in f.header.entries.items() if math.prod(e.shape) >= 1024 and e.dtype in FLOATS]
        return {name: _safetensors.read_array(f, name).astype(np.float32) for name in chosen}


def measured(peers: list[Peer], n: int) -> list[Row]:
    """Check all peers, then time them in turn."""
    coded = []
    for p in peers:
        data = p.encode()
        assert p.check(p.decode(data)), f"{p.name} does not give its input back"
        coded.append(data)
    best = [[np.inf, np.inf] for _ in peers]
    for _ in range(REPEATS):
        for p, data, b in zip(peers, coded, best, strict=True):
            if SLOW < max(b) < np.inf:
                continue  # once is enough
            start = time.perf_counter()
            p.encode()
            middle = time.perf_counter()
            p.decode(data)
            b[0], b[1] = min(b[0], middle - start), min(b[1], time.perf_counter() - middle)
    return [Row(p.name, 8 * p.nbytes(d) / n, *b) for p, d, b in zip(peers, coded, best, strict=True)]


def show(title: str, rows: list[Row], n: int, baseline: str) -> None:
    print(f"\n{title}, {n:,} symbols")
    print(f"{'':<34} {'bits':>8} {'encode M/s':>11} {'decode M/s':>11} {'against ' + baseline:>24}")
    base = next((r for r in rows if r.name == baseline), None)
    for r in rows:
        ratio = f"{base.encode / r.encode:10.2f}x {base.decode / r.decode:10.2f}x" if base else ""
        print(f"{r.name:<34} {r.bits:8.4f} {n / r.encode / 1e6:11.1f} {n / r.decode / 1e6:11.1f} {ratio:>24}")


def symbols(tensors: dict[str, np.ndarray], step_of: Callable[[np.ndarray], float]) -> list[np.ndarray]:
    return [np.rint(x / np.float32(step_of(x))).astype(np.int32).reshape(-1) for x in tensors.values()]


def lossy_peers(tensors: dict[str, np.ndarray], levels: list[np.ndarray]) -> Iterator[Peer]:
    """Coders of int32 levels, tensor by tensor."""

    def same(got: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(got, levels, strict=True))

    low = [int(q.min()) for q in levels]
    high = [int(q.max()) for q in levels]
    tokens, beyond = zip(*(tokens_of(q) for q in levels), strict=True)
    tables = [_models.frequencies(np.bincount(t, minlength=256)) for t in tokens]
    jobs = [
        (t[i : i + _tokens.CHUNK], table)
        for t, table in zip(tokens, tables, strict=True)
        for i in range(0, len(t), _tokens.CHUNK)
    ]

    def decode(streams: Any) -> list[np.ndarray]:
        chunks = [_decode.Stream("", len(t), table, *s) for (t, table), s in zip(jobs, streams, strict=True)]
        return _decode.decode_chunks(chunks)

    extra = 4 * sum(beyond) + sum(len(_models.pack(t)) for t in tables)
    yield Peer(
        "ggjax rANS, one table a tensor",
        lambda: _encode.encode_chunks(jobs),
        decode,
        lambda s: extra + sum(a.nbytes for c in s for a in c),
        lambda got: all(np.array_equal(a, t) for a, (t, _) in zip(got, jobs, strict=True)),
    )
    with contextlib.suppress(ImportError):
        import constriction

        models = []
        for x, s, h in zip(tensors.values(), low, high, strict=True):
            law = gennorm.fit(x)
            step = float(np.float32(_STEP[0](x)))
            edges = (np.arange(s, h + 2) - 0.5) * step
            p = np.diff([float(v) for v in gennorm.cdf(edges, law.nu, law.scale)])
            p = np.maximum(p, 1e-9).astype(np.float32)
            models.append(constriction.stream.model.Categorical(p / p.sum(), perfect=False))
        shifted = [q - s for q, s in zip(levels, low, strict=True)]

        def encode() -> list[np.ndarray]:
            out = []
            for q, m in zip(shifted, models, strict=True):
                coder = constriction.stream.stack.AnsCoder()
                coder.encode_reverse(q, m)
                out.append(coder.get_compressed())
            return out

        def undo(data: list[np.ndarray]) -> list[np.ndarray]:
            return [
                constriction.stream.stack.AnsCoder(d).decode(m, len(q)) + s
                for d, m, q, s in zip(data, models, levels, low, strict=True)
            ]

        yield Peer("constriction ANS, fitted GG", encode, undo, lambda d: sum(a.nbytes + 8 for a in d), same)
    with contextlib.suppress(ImportError):
        from pcodec import ChunkConfig, standalone

        for level in (8, 12):
            config = ChunkConfig(compression_level=level)
            yield Peer(
                f"pcodec, level {level}",
                lambda config=config: [standalone.simple_compress(q, config) for q in levels],
                lambda d: [standalone.simple_decompress(b) for b in d],
                lambda d: sum(map(len, d)),
                same,
            )
    with contextlib.suppress(ImportError):
        import zstandard

        for level in (1, 3, 19):
            yield Peer(
                f"zstd -{level} of 8-bit tokens",
                lambda level=level: [zstandard.ZstdCompressor(level=level).compress(t) for t in tokens],
                lambda d: [np.frombuffer(zstandard.ZstdDecompressor().decompress(b), np.uint8) for b in d],
                lambda d: 4 * sum(beyond) + sum(map(len, d)),
                lambda got: all(np.array_equal(a, t) for a, t in zip(got, tokens, strict=True)),
            )


def tokens_of(levels: np.ndarray) -> tuple[np.ndarray, int]:
    """The tokens of levels as the codec has them without raw bits, and how many are exceptions."""
    bin_ = levels - (int(np.median(levels)) - _tokens.BINS // 2)
    tokens = np.where((bin_ >= 0) & (bin_ < _tokens.BINS), bin_ + 1, 0).astype(np.uint8)
    return tokens, int((tokens == 0).sum())


_STEP: list[Callable[[np.ndarray], float]] = []


def file_size(tensors: dict[str, np.ndarray], **options: Any) -> int:
    """The bytes of our file, header and all."""
    with tempfile.TemporaryDirectory() as folder:
        return codec.save_file(tensors, os.path.join(folder, "x"), **options)


def lossy(
    tensors: dict[str, np.ndarray], name: str, step_of: Callable[[np.ndarray], float], **options: Any
) -> None:
    """Sizes and rates of all coders of levels, and the size of our file."""
    n = sum(x.size for x in tensors.values())
    _STEP[:] = [step_of]
    levels = symbols(tensors, step_of)
    rows = measured(list(lossy_peers(tensors, levels)), n)
    show(f"Levels at {name}", rows, n, "constriction ANS, fitted GG")
    entropy = sum(
        x.size * rate.report({"x": x}, float(step_of(x)), codes=("entropy",)).total.bits["entropy"]
        for x in tensors.values()
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

    peers = [
        Peer(
            "ggjax lossless, all of it",
            ours,
            lambda c: jax.tree.leaves(codec.decompress(c)),
            lambda _: file_size(arrays, lossless=True),
            same,
        )
    ]
    with contextlib.suppress(ImportError):
        from pcodec import ChunkConfig, standalone

        width = 8 * flat[0].dtype.itemsize
        for level in (8, 12):
            config = ChunkConfig(compression_level=level)
            peers.append(
                Peer(
                    f"pcodec, level {level}, sign last",
                    lambda config=config: [
                        standalone.simple_compress(x << 1 | x >> (width - 1), config) for x in flat
                    ],
                    lambda d: [(y >> 1 | y << (width - 1)) for y in map(standalone.simple_decompress, d)],
                    lambda d: sum(map(len, d)),
                    same,
                )
            )
    with contextlib.suppress(ImportError):
        import zstandard

        for level in (1, 3, 19):
            peers.append(
                Peer(
                    f"zstd -{level}",
                    lambda level=level: [zstandard.ZstdCompressor(level=level).compress(x) for x in flat],
                    lambda d: [
                        np.frombuffer(zstandard.ZstdDecompressor().decompress(b), flat[0].dtype) for b in d
                    ],
                    lambda d: sum(map(len, d)),
                    same,
                )
            )
    with contextlib.suppress(ImportError), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import zipnn

        z = zipnn.ZipNN(input_format="byte", bytearray_dtype=str(np.dtype(dtype)))
        peers.append(
            Peer(
                "zipnn",
                lambda: [z.compress(x.tobytes()) for x in flat],
                lambda d: [np.frombuffer(bytes(z.decompress(b)), flat[0].dtype) for b in d],
                lambda d: sum(map(len, d)),
                same,
            )
        )
    show(f"Lossless {np.dtype(dtype)}", measured(peers, n), n, "zipnn")


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
        lambda x: float(_steps.choose(_steps.summarize([x]), _steps.Want(step_per_std=0.25))),
        step_per_std=0.25,
    )
    lossy(tensors, "2^-8", lambda x: 2.0**-8, step=2.0**-8)

    lossless(tensors, jnp.bfloat16)
    lossless(tensors, jnp.float32)
    compilations(200 // min(scale, 10))
    memory(64 // min(scale, 16))


if __name__ == "__main__":
    main()
