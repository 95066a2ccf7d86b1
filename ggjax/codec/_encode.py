"""From arrays to their coded form: windows, tokens and tables on the way, the entropy code at the end."""

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec import _grid
from ggjax.codec._coded import Coded, Meta, Part
from ggjax.codec._host import FEW, concatenated, padded
from ggjax.codec.entropy import _lanes, _models, _planes, _side, _tokens
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.entropy._lanes import CHUNK
from ggjax.codec.quantize import _crossings, _rows
from ggjax.codec.quantize._quantizers import QUANTIZERS, choices
from ggjax.codec.quantize._scaled import Scaled
from ggjax.codec.quantize._summary import spread_out

_GROUP = 4
"""Chunks that are turned into tokens at a time, at most; on a CPU one, which is as fast and a program less."""

KNOWN_TABLES = 64
"""How many tables made before are tried, at most."""

DESCRIPTION = 30
"""About the bytes of an array in the metadata."""

PARAMETER = 0.6  # about the bytes in a file of each character of the parameters


class Tokens(NamedTuple):
    """An array before its entropy code."""

    meta: Meta  # the tables of its parts are not chosen yet
    parts: list["PartTokens"]
    classes: np.ndarray
    steps: np.ndarray = np.zeros(0, np.int8)


class PartTokens(NamedTuple):
    """A part before its entropy code."""

    chunks: list[np.ndarray]  # uint8, each of up to CHUNK tokens
    raw: np.ndarray  # uint8
    counts: np.ndarray  # of the tokens, int64 (256,)
    exceptions: np.ndarray  # keys, uint32


def tokens_of(
    x: np.ndarray,
    kind: str,
    step: np.float32,
    dead_zone: float = 0.0,
    centroids: tuple[float, ...] = (),
    *,
    classes: bool = True,
) -> Tokens | None:
    """Quantize an array, cut it into parts and turn them into tokens; None where the quantizer cannot take it.

    Args:
      x: weights, contiguous, of at least one element.
      kind: the quantizer.
      step, dead_zone, centroids: for one that has a step.
      classes: look for row classes.
    """
    quantizer = QUANTIZERS[kind]
    ready = quantizer.prepare(x, step, dead_zone, centroids)
    if ready is None:
        return None
    rows = _rows.plan(ready if classes else ready._replace(x=ready.x.reshape(-1)), quantizer)
    parts, tokens = [], []
    for flat, zeros in zip(_rows.parts_of(ready.x, rows), rows.zeros, strict=True):
        sample = _rows.sample_keys(flat, quantizer, ready.settings, zeros)
        bins, _ = _tokens.choose_bins(sample, len(flat), signed=quantizer.signed)
        tokens.append(tokenize(flat, bins, kind, ready.settings, zeros))
        parts.append(Part(len(flat), *bins, zeros, 0, len(tokens[-1].exceptions)))
    meta = Meta(x.shape, str(x.dtype), kind, ready.params, tuple(parts), rows.axis)
    return Tokens(meta, tokens, _pack_classes(rows.classes, meta.class_bits))


def tokens_of_levels(levels: np.ndarray, steps: np.ndarray, params: Scaled, dtype: str) -> Tokens:
    """The tokens of levels whose rows and columns have steps.

    Args:
      levels: int32 (b, m, n).
      steps: of the rows of all matrices, then of their columns, int8 (b m + b n,).
      params: of the quantizer.
      dtype: of the weights.
    """
    matrix = levels.reshape(-1, levels.shape[2])
    chosen = _crossings.plan(matrix)
    grid = _grid.of_classes(chosen.rows, chosen.columns, chosen.parts)
    parts, tokens = [], []
    for flat in _grid.cut(grid, chosen.rows, chosen.columns, matrix):
        sample = spread_out(flat, 1 << 15).view(np.uint32)
        bins, _ = _tokens.choose_bins(sample, len(flat), signed=True)
        tokens.append(tokenize(flat, bins, "scaled", (), 0))
        parts.append(Part(len(flat), *bins, 0, 0, len(tokens[-1].exceptions)))
    meta = Meta(params.shape, dtype, "scaled", params, tuple(parts), grid=grid)
    return Tokens(meta, tokens, _grid.pack(grid, chosen.rows, chosen.columns), steps)


def shortest_tokens(x: np.ndarray, kind: str, *args: Any) -> Tokens | None:
    """``tokens_of`` by the quantizer that makes the least of an array, of those that keep the same of it.

    None where the array itself is no longer.
    """
    found = (tokens_of(x, k, *args) for k in choices(x, kind))
    best = min((t for t in found if t is not None), key=nbytes, default=None)
    return best if best is not None and nbytes(best) <= x.nbytes else None


def nbytes(t: Tokens) -> int:
    """About what an array takes in a file, its description too; seldom more than 0.3 % too little."""
    said = len(json.dumps(QUANTIZERS[t.meta.kind].stated(t.meta.params)))
    steps = len(_side.pack(t.steps, t.meta.row_steps))
    bits = 8 * (DESCRIPTION + PARAMETER * said + len(t.classes) + steps)
    for p in t.parts:
        bits += _tokens.entropy_bits(p.counts) + 8 * (len(p.raw) + 4 * len(p.exceptions))
        bits += sum(_lanes.overhead_bits(len(c)) for c in p.chunks)
        bits += _tokens.TABLE_ENTRY_BITS * np.count_nonzero(p.counts)
    return int(bits / 8)


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
        least = _models.cost_bits(tokens.counts, fresh) + 8 * _models.packed_size(fresh)
        if known:
            some = known[-KNOWN_TABLES:]
            i, bits = _models.cheapest(tokens.counts, some)
            best = some[i] if bits <= least else fresh
        if best is fresh:
            known.append(fresh)
        row = next((i for i, table in enumerate(own) if table is best), len(own))
        if row == len(own):
            own.append(best)
        parts.append(p._replace(table=row))
    return t.meta._replace(parts=tuple(parts)), np.stack(own)


def tokenize(
    flat: np.ndarray, bins: _tokens.Bins, kind: str, settings: tuple[Any, ...], zeros: int
) -> PartTokens:
    """The tokens of a part, in a window of keys."""
    if len(flat) < FEW:
        return _tokenize_few(flat, bins, kind, settings, zeros)
    chunks, raws, beyond = [], [], []
    counts = np.zeros(_models.TOKENS, np.int64)
    most = CHUNK if len(flat) <= CHUNK or jax.default_backend() == "cpu" else _GROUP * CHUNK
    for start in range(0, len(flat), most):
        x = flat[start : start + most]
        token, raw, count = _tokens_of_chunks(
            padded(x, most).reshape(-1, CHUNK),
            np.int32(len(x)),
            settings,
            np.uint32(zeros),
            np.uint32(bins.base),
            np.uint32(bins.shift),
            kind=kind,
            with_raw=bins.shift > 0,
        )
        token = np.asarray(token).reshape(-1)[: len(x)]
        counts += np.asarray(count)
        chunks.extend(np.split(token, range(CHUNK, len(x), CHUNK)))
        if raw is not None:
            raws.append(_pack_raw(np.asarray(raw), len(x), bins.shift))
        if np.asarray(count)[0]:
            beyond.append(_keys_at(x[token == 0], settings, np.uint32(zeros), kind=kind))
    return PartTokens(chunks, concatenated(raws, np.uint8), counts, concatenated(beyond, np.uint32))


def _tokenize_few(
    flat: np.ndarray, bins: _tokens.Bins, kind: str, settings: tuple[Any, ...], zeros: int
) -> PartTokens:
    """The same on the host, where a program for a whole chunk would take longer."""
    keys = QUANTIZERS[kind].keys_of(flat, settings, np.uint32(zeros))
    token, numbers = _tokens.split(keys, np.uint32(bins.base), np.uint32(bins.shift))
    raw = np.zeros(0, np.uint8)
    if bins.shift:
        raw = _planes.pack(padded(numbers, _planes.padded(len(numbers))), bins.shift)
    counts = np.bincount(token, minlength=_models.TOKENS)
    return PartTokens([token], raw, counts, keys[token == 0])


@functools.partial(jax.jit, static_argnames=("kind", "with_raw"))
def _tokens_of_chunks(
    x: jax.Array,
    count: jax.Array,
    settings: tuple[Any, ...],
    zeros: jax.Array,
    base: jax.Array,
    shift: jax.Array,
    *,
    kind: str,
    with_raw: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """(tokens uint8, raw bits uint32 or None, how often each token occurs int32 (256,)) of whole chunks.

    Args:
      x: weights (chunks, CHUNK), of which the first ``count`` count; the tokens of the others are 0.
      count: int32.
      settings, zeros, base, shift: scalars.
    """
    token, raw = _tokens.split(QUANTIZERS[kind].keys_of(x, settings, zeros), base, shift)
    index = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
    token = jnp.where(index < count, token, 0)

    def add(i: Any, counts: jax.Array) -> jax.Array:  # piece by piece, which stays in a cache
        return counts.at[lax.dynamic_index_in_dim(pieces, i, 0, False)].add(1, mode="promise_in_bounds")

    pieces = token.reshape(-1, CHUNK // 4)
    counts = lax.fori_loop(0, pieces.shape[0], add, jnp.zeros(_tokens.BINS + 1, jnp.int32))
    counts = counts.at[0].add(count - x.size)
    return token, raw if with_raw else None, counts


def _pack_raw(raw: np.ndarray, size: int, shift: int) -> np.ndarray:
    """The raw bytes of whole chunks and of a last, shorter one."""
    full, rest = divmod(size, CHUNK)
    pieces = [_planes.pack(raw[:full], shift).reshape(-1)] if full else []
    if rest:
        pieces.append(_planes.pack(raw[full, : _planes.padded(rest)], shift))
    return np.concatenate(pieces)


def _keys_at(x: np.ndarray, settings: tuple[Any, ...], zeros: Any, *, kind: str) -> np.ndarray:
    """The keys of some weights, by the program that also makes their tokens: a device may divide otherwise
    than the host."""
    piece = 1 << 12 if len(x) <= 1 << 12 else CHUNK
    out = []
    for start in range(0, len(x), piece):
        some = x[start : start + piece]
        keys = _keys_of(padded(some, piece), settings, zeros, kind=kind)
        out.append(np.asarray(keys)[: len(some)])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames="kind")
def _keys_of(x: jax.Array, settings: tuple[Any, ...], zeros: Any, *, kind: str) -> jax.Array:
    return QUANTIZERS[kind].keys_of(x, settings, zeros)


def _beyond(t: Tokens) -> tuple[int, ...]:
    """How many exceptions every chunk has, where the numbers of the parts do not tell."""
    if not any(len(p.chunks) > 1 and len(p.exceptions) for p in t.parts):
        return ()
    found = (np.count_nonzero(c == 0) if len(p.exceptions) else 0 for p in t.parts for c in p.chunks)
    return tuple(int(n) for n in found)


def finish(arrays: Sequence[Tokens], known: list[np.ndarray], coder: str) -> list[Coded]:
    """Entropy-code arrays, all their chunks together; ``known`` as in ``choose_tables``."""
    jobs, chosen = [], []
    for t in arrays:
        plain = t.meta, np.zeros((0, _models.TOKENS), np.uint16)
        meta, tables = choose_tables(t, known) if CODERS[coder].has_tables else plain
        chosen.append((meta._replace(coder=coder, beyond=_beyond(t)), tables))
        for p, tokens in zip(meta.parts, t.parts, strict=True):
            table = tables[p.table] if len(tables) else None
            jobs.extend((chunk, table) for chunk in tokens.chunks)
    codes = iter(CODERS[coder].encode(jobs))
    out = []
    for t, (meta, tables) in zip(arrays, chosen, strict=True):
        own = list(itertools.islice(codes, sum(len(p.chunks) for p in t.parts)))
        words, states, counts = (np.concatenate(x) for x in zip(*own, strict=True))
        raw = concatenated([p.raw for p in t.parts], np.uint8)
        exceptions = np.concatenate([p.exceptions for p in t.parts])
        out.append(Coded(words, states, counts, raw, exceptions, tables, t.classes, t.steps, meta))
    return out
