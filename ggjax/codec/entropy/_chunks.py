"""Chunks through the rANS lanes: many together, in batches that share their compiled programs."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ggjax.codec._host import bucket, in_parallel
from ggjax.codec.entropy import _lanes, _models, _rans

LANES_PER_BATCH = 1024
"""Lanes that are coded at a time, at most: those of 32 full chunks."""

TABLES_PER_BATCH = 128
"""Their tables, at most: the decoder's are 80 KiB each."""

_WORDS_PER_LANE = (_rans.STEPS // 4, _rans.STEPS // 2, _rans.WORDS)
"""Sizes of the decoder's buffer of words, by lane: 4, 8 and 14 bits a token."""

MANY = 24
"""Of so many chunks it pays to have a decoder for fewer tables too."""

_T = TypeVar("_T")


class Damaged(ValueError):
    """A stream that no encoder wrote."""


class Code(NamedTuple):
    """The entropy code of a chunk."""

    words: np.ndarray  # uint16; of "zstd": uint8
    states: np.ndarray  # uint32 (lanes,); of "zstd": empty
    counts: np.ndarray  # uint16 (lanes,), the words of each lane; of "zstd": uint32 (1,), the bytes


class Chunk(NamedTuple):
    """A chunk to be decoded."""

    where: str  # for messages
    size: int  # tokens
    table: np.ndarray | None  # uint16 (256,); None with "zstd"
    code: Code


def encode(chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Code]:
    """Entropy-code chunks: (tokens uint8 (n,) with n in [1, CHUNK], table uint16 (256,)) each."""
    batches = in_batches([len(tokens) for tokens, _ in chunks], [table for _, table in chunks])
    codes = in_parallel(lambda batch: _encode_batch([chunks[i] for i in batch]), batches)
    return _in_order(batches, codes)


def decode(chunks: Sequence[Chunk]) -> list[np.ndarray]:
    """The tokens of chunks, uint8 (size,) each.

    Raises:
      Damaged: a lane does not end as its encoder began.
    """
    batches = in_batches([c.size for c in chunks], [c.table for c in chunks])
    tokens = in_parallel(lambda batch: _decode_batch([chunks[i] for i in batch]), batches)
    return _in_order(batches, tokens)


def in_batches(sizes: Sequence[int], tables: Sequence[Any]) -> list[list[int]]:
    """Which chunks are coded together: lanes of like length, so that few are idle, and of few tables.

    At least two batches when there is work for two cores.
    """
    lanes = [_lanes.lanes(n) for n in sizes]
    most = LANES_PER_BATCH
    if sum(lanes) >= 8 * _rans.LANES:
        most = min(most, -(-sum(lanes) // (2 * _rans.LANES)) * _rans.LANES)
    names = [t.tobytes() for t in tables]
    batches: list[list[int]] = []
    used, held = most, set[bytes]()
    for i in sorted(range(len(sizes)), key=lambda i: (-(-sizes[i] // lanes[i]), names[i], i)):
        if used + lanes[i] > most or len(held | {names[i]}) > TABLES_PER_BATCH:
            batches.append([])
            used, held = 0, set()
        batches[-1].append(i)
        used += lanes[i]
        held.add(names[i])
    return batches


def _in_order(batches: list[list[int]], results: list[list[_T]]) -> list[_T]:
    """The results of all batches, as their items came."""
    at = {i: r for batch, some in zip(batches, results, strict=True) for i, r in zip(batch, some, strict=True)}
    return [at[i] for i in range(len(at))]


class _Batch(NamedTuple):
    """Where the chunks of a batch lie."""

    places: list[slice]  # the lanes of each
    lanes: int  # in all, of the compiled program
    rows: list[int]  # of the tables, the one of each chunk
    tables: int  # in all, of the decoder's program
    lengths: np.ndarray
    models: np.ndarray


def _batch(sizes: list[int], tables: list[np.ndarray]) -> _Batch:
    ends = list(itertools.accumulate(_lanes.lanes(n) for n in sizes))
    places = [slice(end - _lanes.lanes(n), end) for end, n in zip(ends, sizes, strict=True)]
    number = _bucket(-(-ends[-1] // _rans.LANES))
    known: dict[bytes, int] = {}
    rows = [known.setdefault(t.tobytes(), len(known)) for t in tables]
    room = number if len(known) <= number and number >= MANY else TABLES_PER_BATCH
    lengths, models = (np.zeros(number * _rans.LANES, np.int32) for _ in range(2))
    for place, n, row in zip(places, sizes, rows, strict=True):
        lengths[place] = _lanes.lane_lengths(n)
        models[place] = row
    return _Batch(places, number * _rans.LANES, rows, room, lengths, models)


def _bucket(chunks: int) -> int:
    """The chunks of a program: 1, or a multiple of 8, since idle lanes take less time than one more program."""
    return max(bucket(chunks), 8) if chunks > 1 else 1


def _encode_batch(chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Code]:
    b = _batch([len(tokens) for tokens, _ in chunks], [table for _, table in chunks])
    tile = np.zeros((_rans.STEPS, b.lanes), np.uint8)
    tables = np.zeros((TABLES_PER_BATCH, _models.TOKENS), np.uint32)
    for place, row, (tokens, table) in zip(b.places, b.rows, chunks, strict=True):
        tables[row] = _models.encode_table(table)
        _lanes.to_lanes(tokens, tile[:, place])
    out = _rans.encode(tile, b.lengths, b.models, tables, np.int32(b.lengths.max()))
    states, counts, words = (np.asarray(a) for a in out)
    room = words.shape[1]
    codes = []
    for place in b.places:
        spilt = np.concatenate([words[j, room - counts[j] :] for j in range(place.start, place.stop)])
        codes.append(Code(spilt, states[place].copy(), counts[place].astype(np.uint16)))
    return codes


def _decode_batch(chunks: Sequence[Chunk]) -> list[np.ndarray]:
    given = [c.table for c in chunks if c.table is not None]
    b = _batch([c.size for c in chunks], given)
    used = sum(len(c.code.words) for c in chunks)
    room = next((r for r in _WORDS_PER_LANE if b.lanes * r >= used), None)
    if room is None:
        raise Damaged(f"{chunks[0].where} and others: {used} words, more than their tokens can take")
    words = np.zeros(b.lanes * room, np.uint16)
    words[:used] = np.concatenate([c.code.words for c in chunks])
    states = np.full(b.lanes, _rans.START, np.uint32)
    counts = np.zeros(b.lanes, np.int32)
    tables = np.zeros((b.tables, _models.TOTAL), np.uint32)
    symbols = np.zeros((b.tables, _models.TOTAL), np.uint8)
    for row, table in dict(zip(b.rows, given, strict=True)).items():
        tables[row], symbols[row] = _models.decode_tables(table)
    for place, c in zip(b.places, chunks, strict=True):
        states[place], counts[place] = c.code.states, c.code.counts
    steps = np.int32(b.lengths.max())
    out = _rans.decode(words, states, counts, b.lengths, b.models, tables, symbols, steps)
    tile, good = (np.asarray(a) for a in out)
    if not good.all():
        lane = int(np.argmin(good))
        where = next(c.where for place, c in zip(b.places, chunks, strict=True) if lane < place.stop)
        raise Damaged(f"{where}: its lanes do not end as an encoder begins")
    # Copies: a view, even of a single token, would keep the whole tile.
    tokens = (_lanes.from_lanes(tile[:, p], c.size) for p, c in zip(b.places, chunks, strict=True))
    return [np.array(t) for t in tokens]
