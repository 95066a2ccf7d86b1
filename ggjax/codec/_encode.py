"""From arrays to their coded form: windows, tokens and tables on the way, chunks to lanes at the end."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ggjax.codec import _coded
from ggjax.codec._coded import Coded, Meta, Part
from ggjax.codec.entropy import _models, _planes, _rans, _tokens
from ggjax.codec.quantize import _keys, _rows

BATCH = 32
"""Chunks that are coded at a time, at most: 1024 lanes."""

_GROUP = 4
"""Chunks that are turned into tokens at a time, at most."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class Tokens(NamedTuple):
    """An array before its entropy code."""

    meta: Meta  # the tables of its parts are not chosen yet
    parts: list["PartTokens"]
    classes: np.ndarray


class PartTokens(NamedTuple):
    """A part before its entropy code."""

    chunks: list[np.ndarray]  # uint8, each of up to CHUNK tokens
    raw: np.ndarray  # uint8
    counts: np.ndarray  # of the tokens, int64 (256,)
    exceptions: np.ndarray  # keys, uint32


def tokens_of(
    x: np.ndarray, kind: _keys.Kind, step: np.float32, dead_zone: float, *, classes: bool = True, **meta: Any
) -> Tokens:
    """Cut an array into parts and turn them into tokens.

    Args:
      x: weights, contiguous (RF8 codes for that kind), of at least one element.
      kind, step, dead_zone: as in ``_keys.keys_of``.
      classes: look for row classes.
      meta: further fields of ``Meta``.
    """
    rows = _rows.plan(x if classes else x.reshape(-1), kind, step, dead_zone)
    parts, tokens = [], []
    for k, zeros in enumerate(rows.zeros):
        flat = x if rows.axis is None else _rows.matrix(x, rows.axis)[rows.classes == k]
        flat = flat.reshape(-1)
        sample = _rows.sample_keys(flat, kind, step, dead_zone, zeros)
        bins, _ = _tokens.choose_bins(sample, len(flat), signed=kind == "uniform")
        tokens.append(_tokenize(flat, bins, kind, step, dead_zone, zeros))
        parts.append(Part(len(flat), *bins, zeros, 0, len(tokens[-1].exceptions)))
    # str: the shortest decimal number that names this float32.
    full = Meta(shape=x.shape, kind=kind, parts=tuple(parts), step=float(str(step)), axis=rows.axis, **meta)
    return Tokens(full, tokens, _pack_classes(rows.classes, full.class_bits))


def _pack_classes(classes: np.ndarray, bits: int) -> np.ndarray:
    numbers = np.zeros(_planes.padded(len(classes)), np.uint32)
    numbers[: len(classes)] = classes
    return _planes.pack(numbers, bits) if bits else np.zeros(0, np.uint8)


def choose_tables(t: Tokens, known: list[np.ndarray]) -> tuple[Meta, np.ndarray]:
    """The tables of an array, uint16 (tables, 256), and its meta with a row of them for every part.

    Args:
      t: the array.
      known: tables made so far, which a part uses again where that takes fewer bits; new ones are appended.
    """
    own: list[np.ndarray] = []
    parts = []
    for p, tokens in zip(t.meta.parts, t.parts, strict=True):
        best = fresh = _models.frequencies(tokens.counts)
        least = _models.cost_bits(tokens.counts, fresh) + 8 * len(_models.pack(fresh))
        for table in known[-64:]:
            bits = _models.cost_bits(tokens.counts, table)
            if bits <= least:
                best, least = table, bits
        if best is fresh:
            known.append(fresh)
        row = next((i for i, table in enumerate(own) if table is best), len(own))
        if row == len(own):
            own.append(best)
        parts.append(p._replace(table=row))
    return t.meta._replace(parts=tuple(parts)), np.stack(own)


def _tokenize(
    flat: np.ndarray, bins: _tokens.Bins, kind: _keys.Kind, step: np.float32, dead_zone: float, zeros: int
) -> PartTokens:
    chunks, raws, beyond = [], [], []
    counts = np.zeros(_models.TOKENS, np.int64)
    scalars = (step, np.float32(dead_zone), np.uint32(zeros))
    for start in range(0, len(flat), _GROUP * _tokens.CHUNK):
        x = flat[start : start + _GROUP * _tokens.CHUNK]
        token, raw, count = _tokens.tokenize(
            _in_chunks(x),
            np.int32(len(x)),
            *scalars,
            np.uint32(bins.base),
            np.uint32(bins.shift),
            kind=kind,
            with_raw=bins.shift > 0,
        )
        token = np.asarray(token).reshape(-1)[: len(x)]
        counts += np.asarray(count)
        chunks.extend(np.split(token, range(_tokens.CHUNK, len(x), _tokens.CHUNK)))
        if raw is not None:
            raws.append(_pack_raw(np.asarray(raw), len(x), bins.shift))
        if np.asarray(count)[0]:
            beyond.append(_keys_at(x[token == 0], *scalars, kind=kind))
    return PartTokens(chunks, _concatenate(raws, np.uint8), counts, _concatenate(beyond, np.uint32))


def _concatenate(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]  # no copy of what may be large
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _in_chunks(x: np.ndarray) -> np.ndarray:
    """The array as (chunks, CHUNK), with zeros at the end to fill a bucket: few programs are compiled."""
    return padded(x).reshape(-1, _tokens.CHUNK)


def padded(x: np.ndarray) -> np.ndarray:
    """A vector with zeros at the end that make it a bucket of whole chunks long."""
    size = bucket(-(-len(x) // _tokens.CHUNK)) * _tokens.CHUNK
    if len(x) == size:
        return x
    out = np.zeros(size, x.dtype)
    out[: len(x)] = x
    return out


def bucket(n: int) -> int:
    """The next power of two, or multiple of 8: how many programs there are, and how much is done in vain."""
    return -(-n // 8) * 8 if n > 8 else 1 << (n - 1).bit_length()


def _pack_raw(raw: np.ndarray, size: int, shift: int) -> np.ndarray:
    """The raw bytes of whole chunks and of a last, shorter one."""
    full, rest = divmod(size, _tokens.CHUNK)
    pieces = [np.asarray(_packer(shift)(raw)[:full]).reshape(-1)] if full else []
    if rest:
        pieces.append(_planes.pack(raw[full, : _planes.padded(rest)], shift))
    return np.concatenate(pieces)


@functools.cache
def _packer(shift: int) -> Callable[[Any], jax.Array]:
    return jax.jit(lambda raw: _planes.pack(raw, shift))


def _keys_at(x: np.ndarray, step: Any, dead_zone: Any, zeros: Any, *, kind: _keys.Kind) -> np.ndarray:
    """The keys of some weights."""
    piece = 1 << (12 if len(x) <= 1 << 12 else _tokens.CHUNK_BITS)
    out = []
    for start in range(0, len(x), piece):
        padded = np.zeros(piece, x.dtype)
        some = x[start : start + piece]
        padded[: len(some)] = some
        out.append(np.asarray(_tokens.keys(padded, step, dead_zone, zeros, kind=kind))[: len(some)])
    return np.concatenate(out)


def finish(arrays: Sequence[Tokens], known: list[np.ndarray]) -> list[Coded]:
    """Entropy-code arrays, all their chunks together; ``known`` as in ``choose_tables``."""
    jobs, out, chosen = [], [], [choose_tables(t, known) for t in arrays]
    for t, (meta, tables) in zip(arrays, chosen, strict=True):
        for p, tokens in zip(meta.parts, t.parts, strict=True):
            jobs.extend((chunk, tables[p.table]) for chunk in tokens.chunks)
    streams = iter(encode_chunks(jobs))
    for t, (meta, tables) in zip(arrays, chosen, strict=True):
        lanes = list(itertools.islice(streams, sum(len(p.chunks) for p in t.parts)))
        states, counts, words = (np.concatenate([x[i] for x in lanes]) for i in range(3))
        raw = _concatenate([p.raw for p in t.parts], np.uint8)
        exceptions = np.concatenate([p.exceptions for p in t.parts])
        out.append(Coded(words, states, counts, raw, exceptions, tables, t.classes, meta))
    return out


def encode_chunks(
    chunks: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Entropy-code chunks.

    Args:
      chunks: (tokens uint8 (n,) with n in [1, CHUNK], table uint16 (256,)) of each.

    Returns:
      (states uint32 (lanes,), counts uint16 (lanes,), words uint16) of each.
    """
    batches = in_batches(chunks)
    return [stream for batch in in_parallel(_encode_batch, batches) for stream in batch]


def in_batches(items: Sequence[_T]) -> list[Sequence[_T]]:
    """Batches of up to ``BATCH`` items, two of them at least when there is work for two cores."""
    size = min(BATCH, -(-len(items) // 2)) if len(items) >= 8 else BATCH
    return [items[i : i + size] for i in range(0, len(items), size)]


def in_parallel(f: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """``[f(x) for x in items]``, two at a time on a CPU: a program for the lanes runs on one core."""
    items = list(items)
    if len(items) < 2 or jax.default_backend() != "cpu" or (os.cpu_count() or 1) < 2:
        return [f(x) for x in items]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(f, items))


def _encode_batch(
    chunks: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    number = bucket(len(chunks))
    width = _rans.LANES
    tile = np.zeros((_rans.STEPS, number * width), np.uint8)
    lengths = np.zeros(number * width, np.int32)
    models = np.zeros(number * width, np.int32)
    tables = np.zeros((number, _models.TOKENS), np.uint32)
    rows: dict[bytes, int] = {}
    for c, (tokens, table) in enumerate(chunks):
        row = rows.setdefault(table.tobytes(), len(rows))
        tables[row] = _models.encode_table(table)
        lanes = _coded.lanes(len(tokens))
        steps, rest = divmod(len(tokens), lanes)
        at = c * width
        tile[:steps, at : at + lanes] = tokens[: steps * lanes].reshape(steps, lanes)
        if rest:
            tile[steps, at : at + rest] = tokens[steps * lanes :]
        lengths[at : at + lanes] = steps
        lengths[at : at + rest] += 1
        models[at : at + width] = row
    out = _rans.encode(tile, lengths, models, tables, np.int32(lengths.max()))
    states, counts, words = (np.asarray(a) for a in out)
    room = words.shape[1]
    streams = []
    for c, (tokens, _) in enumerate(chunks):
        at = c * width
        used = range(at, at + _coded.lanes(len(tokens)))
        spilt = np.concatenate([words[j, room - counts[j] :] for j in used])
        streams.append(
            (states[used.start : used.stop], counts[used.start : used.stop].astype(np.uint16), spilt)
        )
    return streams
