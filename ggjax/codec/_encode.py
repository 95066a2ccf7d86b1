"""From arrays to their coded form: windows, tokens and tables on the way, the entropy code at the end."""

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec import _grid
from ggjax.codec._coded import Coded, Meta, Part
from ggjax.codec._host import concatenated
from ggjax.codec._tokenize import PartTokens, tokenized
from ggjax.codec.entropy import _lanes, _models, _planes, _side, _tokens
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.quantize import _crossings, _rows
from ggjax.codec.quantize._quantizers import QUANTIZERS, choices
from ggjax.codec.quantize._scaled import Scaled
from ggjax.codec.quantize._summary import spread_out

KNOWN_TABLES = 64
"""How many tables made before are tried, at most."""

DESCRIPTION = 30
"""About the bytes of an array in the metadata."""

DESCRIPTION_OF_ATOMS = 45
"""About what it takes more where there are atoms."""

PARAMETER = 0.6  # about the bytes in a file of each character of the parameters


class Tokens(NamedTuple):
    """An array before its entropy code."""

    meta: Meta  # the tables of its parts are not chosen yet
    parts: list[PartTokens]
    classes: np.ndarray
    steps: np.ndarray = np.zeros(0, np.int8)


def tokens_of(
    x: np.ndarray,
    kind: str,
    step: np.float32,
    dead_zone: float = 0.0,
    centroids: tuple[float, ...] = (),
    *,
    classes: bool = True,
    atoms: bool = True,
) -> Tokens | None:
    """Quantize an array, cut it into parts and turn them into tokens; None where the quantizer cannot take it.

    Args:
      x: weights, contiguous, of at least one element.
      kind: the quantizer.
      step, dead_zone, centroids: for one that has a step.
      classes: look for row classes.
      atoms: look for keys that deserve tokens of their own.
    """
    quantizer = QUANTIZERS[kind]
    ready = quantizer.prepare(x, step, dead_zone, centroids)
    if ready is None:
        return None
    rows = _rows.plan(ready if classes else ready._replace(x=ready.x.reshape(-1)), quantizer)
    parts, tokens = [], []
    for flat, zeros in zip(_rows.parts_of(ready.x, rows), rows.zeros, strict=True):
        sample = _rows.sample_keys(flat, quantizer, ready.settings, zeros)
        bins, _ = _tokens.choose_bins(sample, len(flat), signed=quantizer.signed, atoms=atoms)
        tokens.append(tokenized(flat, bins, kind, ready.settings, zeros))
        parts.append(_part(len(flat), bins, zeros, tokens[-1]))
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
        tokens.append(tokenized(flat, bins, "scaled", (), 0))
        parts.append(_part(len(flat), bins, 0, tokens[-1]))
    meta = Meta(params.shape, dtype, "scaled", params, tuple(parts), grid=grid)
    return Tokens(meta, tokens, _grid.pack(grid, chosen.rows, chosen.columns), steps)


def _part(size: int, bins: _tokens.Bins, zeros: int, tokens: PartTokens) -> Part:
    """A part whose table is not chosen yet."""
    return Part(size, bins.base, bins.shift, zeros, 0, len(tokens.exceptions), bins.atoms)


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
    atoms = sum(len(p.atoms) for p in t.meta.parts)
    bits += _tokens.ATOM_BITS * atoms + (8 * DESCRIPTION_OF_ATOMS if atoms else 0)
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


def _beyond(t: Tokens) -> tuple[int, ...]:
    """How many exceptions every chunk has, where the numbers of the parts do not tell."""
    if not any(len(p.chunks) > 1 and len(p.exceptions) for p in t.parts):
        return ()
    found = (np.count_nonzero(c == 0) if len(p.exceptions) else 0 for p in t.parts for c in p.chunks)
    return tuple(int(n) for n in found)


def _binned(t: Tokens) -> tuple[int, ...]:
    """How many tokens of every chunk have raw bits, where some may have none."""
    if not any(p.atoms for p in t.meta.parts):
        return ()
    return tuple(n for p in t.parts for n in p.binned)


def finish(arrays: Sequence[Tokens], known: list[np.ndarray], coder: str) -> list[Coded]:
    """Entropy-code arrays, all their chunks together; ``known`` as in ``choose_tables``."""
    jobs, chosen = [], []
    for t in arrays:
        if CODERS[coder].has_tables:
            meta, tables = choose_tables(t, known)
        else:
            meta, tables = t.meta, np.zeros((0, _models.TOKENS), np.uint16)
        chosen.append((meta._replace(coder=coder, beyond=_beyond(t), binned=_binned(t)), tables))
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
