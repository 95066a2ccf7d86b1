"""Coders beside ours, for ``bench_codec``: of whole levels, and of weights as they are. Those that are not
installed are left out."""

import contextlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ggjax import gennorm
from ggjax.codec.container import _dtypes, _safetensors
from ggjax.codec.entropy import _chunks, _lanes, _models, _tokens

REPEATS = 5
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


# Coders of levels.


def of_levels(weights: list[np.ndarray], steps: list[float]) -> Iterator[Peer]:
    """Coders of int32 levels, tensor by tensor, of weights rounded to multiples of a step each."""
    levels = [
        np.rint(x / np.float32(s)).astype(np.int32).reshape(-1) for x, s in zip(weights, steps, strict=True)
    ]

    def same(got: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(got, levels, strict=True))

    tokens, beyond = zip(*map(_tokens_of, levels), strict=True)
    yield _ours(tokens, 4 * sum(beyond))
    yield from _constriction(weights, steps, levels, same)
    yield from _pcodec(levels, same)
    yield from _zstd(tokens, 4 * sum(beyond))


def _tokens_of(levels: np.ndarray) -> tuple[np.ndarray, int]:
    """The tokens of levels as the codec has them without raw bits, and how many are exceptions."""
    bin_ = levels - (int(np.median(levels)) - _tokens.BINS // 2)
    tokens = np.where((bin_ >= 0) & (bin_ < _tokens.BINS), bin_ + 1, 0).astype(np.uint8)
    return tokens, int((tokens == 0).sum())


def _ours(tokens: tuple[np.ndarray, ...], exception_bytes: int) -> Peer:
    tables = [_models.frequencies(np.bincount(t, minlength=256)) for t in tokens]
    jobs = [
        (t[i : i + _lanes.CHUNK], table)
        for t, table in zip(tokens, tables, strict=True)
        for i in range(0, len(t), _lanes.CHUNK)
    ]

    def decode(codes: Any) -> list[np.ndarray]:
        pairs = zip(jobs, codes, strict=True)
        return _chunks.decode([_chunks.Chunk("", len(t), table, code) for (t, table), code in pairs])

    extra = exception_bytes + sum(len(_models.pack(t)) for t in tables)
    return Peer(
        "ggjax rANS, one table a tensor",
        lambda: _chunks.encode(jobs),
        decode,
        lambda codes: extra + sum(a.nbytes for c in codes for a in c),
        lambda got: all(np.array_equal(a, t) for a, (t, _) in zip(got, jobs, strict=True)),
    )


def levels_size(levels: np.ndarray) -> int:
    """The bytes of levels, int32, by our coder with one table."""
    tokens, beyond = _tokens_of(levels.reshape(-1))
    peer = _ours((tokens,), 4 * beyond)
    return peer.nbytes(peer.encode())


def _constriction(
    weights: list[np.ndarray], steps: list[float], levels: list[np.ndarray], same: Callable[[Any], bool]
) -> Iterator[Peer]:
    with contextlib.suppress(ImportError):
        import constriction

        low, high = [int(q.min()) for q in levels], [int(q.max()) for q in levels]
        models = []
        for x, step, s, h in zip(weights, steps, low, high, strict=True):
            law = gennorm.fit(x)
            edges = (np.arange(s, h + 2) - 0.5) * float(np.float32(step))
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


def _pcodec(levels: list[np.ndarray], same: Callable[[Any], bool]) -> Iterator[Peer]:
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


def _zstd(tokens: tuple[np.ndarray, ...], exception_bytes: int) -> Iterator[Peer]:
    with contextlib.suppress(ImportError):
        import zstandard

        for level in (1, 3, 19):
            yield Peer(
                f"zstd -{level} of 8-bit tokens",
                lambda level=level: [zstandard.ZstdCompressor(level=level).compress(t) for t in tokens],
                lambda d: [np.frombuffer(zstandard.ZstdDecompressor().decompress(b), np.uint8) for b in d],
                lambda d: exception_bytes + sum(map(len, d)),
                lambda got: all(np.array_equal(a, t) for a, t in zip(got, tokens, strict=True)),
            )


# Coders of weights as they are.


def of_bits(flat: list[np.ndarray], dtype: str, same: Callable[[Any], bool]) -> Iterator[Peer]:
    """Coders of the bits of weights, unsigned, tensor by tensor."""
    with contextlib.suppress(ImportError):
        from pcodec import ChunkConfig, standalone

        width = 8 * flat[0].dtype.itemsize
        for level in (8, 12):
            config = ChunkConfig(compression_level=level)
            yield Peer(
                f"pcodec, level {level}, sign last",
                lambda config=config: [
                    standalone.simple_compress(x << 1 | x >> (width - 1), config) for x in flat
                ],
                lambda d: [(y >> 1 | y << (width - 1)) for y in map(standalone.simple_decompress, d)],
                lambda d: sum(map(len, d)),
                same,
            )
    with contextlib.suppress(ImportError):
        import zstandard

        for level in (1, 3, 19):
            yield Peer(
                f"zstd -{level}",
                lambda level=level: [zstandard.ZstdCompressor(level=level).compress(x) for x in flat],
                lambda d: [np.frombuffer(zstandard.ZstdDecompressor().decompress(b), flat[0].dtype) for b in d],
                lambda d: sum(map(len, d)),
                same,
            )
    yield from _lmzip(flat, dtype, same)
    zipnn = _zipnn()
    if zipnn is not None:
        z = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype)
        yield Peer(
            "zipnn",
            lambda: [z.compress(x.tobytes()) for x in flat],
            lambda d: [np.frombuffer(bytes(z.decompress(b)), flat[0].dtype) for b in d],
            lambda d: sum(map(len, d)),
            same,
        )


def _lmzip(flat: list[np.ndarray], dtype: str, same: Callable[[Any], bool]) -> Iterator[Peer]:
    """From file to file, as its interface has it; on as many cores as there are."""
    with contextlib.suppress(ImportError):
        import lmz

        folder = tempfile.TemporaryDirectory()  # as long as the peer is there
        plain, packed, back = (
            os.path.join(folder.name, n) for n in ("x.safetensors", "x.lmz", "y.safetensors")
        )
        kind = _dtypes.NAMES[np.dtype(jnp.dtype(dtype))]
        tensors = [_safetensors.Tensor(f"{i}", kind, x.shape, [x.data]) for i, x in enumerate(flat)]
        _safetensors.write(plain, tensors, dict)

        def encode() -> Any:
            with contextlib.suppress(FileNotFoundError):
                os.remove(packed)
            lmz.compress(plain, packed)
            return folder

        def decode(_: Any) -> list[np.ndarray]:
            lmz.decompress(packed, back, overwrite=True)
            with _safetensors.opened(back) as f:
                return [np.asarray(_safetensors.read_array(f, t.name)) for t in tensors]

        yield Peer("lmzip, from file to file", encode, decode, lambda _: os.path.getsize(packed), same)


def _zipnn() -> Any:
    """The module, whose import warns and prints; None where it is not installed."""
    with contextlib.suppress(ImportError), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import zipnn

        return zipnn
    return None
