"""Chunks through the rANS lanes: many together, in batches that share their compiled programs."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ggjax.codec._host import bucket, in_parallel
from ggjax.codec.entropy import _lanes, _models, _rans

BATCH = 32
"""Chunks that are coded at a time, at most: 1024 lanes."""

_WORDS_PER_LANE = (_rans.STEPS // 4, _rans.STEPS // 2, _rans.WORDS)
"""Sizes of the decoder's buffer of words, by lane: 4, 8 and 14 bits a token."""

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
    return [code for batch in in_parallel(_encode_batch, in_batches(chunks)) for code in batch]


def decode(chunks: Sequence[Chunk]) -> list[np.ndarray]:
    """The tokens of chunks, uint8 (size,) each.

    Raises:
      Damaged: a lane does not end as its encoder began.
    """
    return [tokens for batch in in_parallel(_decode_batch, in_batches(chunks)) for tokens in batch]


def in_batches(items: Sequence[_T]) -> list[Sequence[_T]]:
    """Batches of up to ``BATCH`` items; at least two of them when there is work for two cores."""
    size = min(BATCH, -(-len(items) // 2)) if len(items) >= 8 else BATCH
    return [items[i : i + size] for i in range(0, len(items), size)]


def _encode_batch(chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Code]:
    number, width = bucket(len(chunks)), _rans.LANES
    tile = np.zeros((_rans.STEPS, number * width), np.uint8)
    lengths = np.zeros(number * width, np.int32)
    models = np.zeros(number * width, np.int32)
    tables = np.zeros((number, _models.TOKENS), np.uint32)
    rows: dict[bytes, int] = {}
    for i, (tokens, table) in enumerate(chunks):
        at = i * width
        row = rows.setdefault(table.tobytes(), len(rows))
        tables[row] = _models.encode_table(table)
        models[at : at + width] = row
        lengths[at : at + _lanes.lanes(len(tokens))] = _lanes.lane_lengths(len(tokens))
        _lanes.to_lanes(tokens, tile[:, at : at + width])
    out = _rans.encode(tile, lengths, models, tables, np.int32(lengths.max()))
    states, counts, words = (np.asarray(a) for a in out)
    room = words.shape[1]
    codes = []
    for i, (tokens, _) in enumerate(chunks):
        used = slice(i * width, i * width + _lanes.lanes(len(tokens)))
        spilt = np.concatenate([words[j, room - counts[j] :] for j in range(used.start, used.stop)])
        codes.append(Code(spilt, states[used], counts[used].astype(np.uint16)))
    return codes


def _decode_batch(chunks: Sequence[Chunk]) -> list[np.ndarray]:
    number, width = bucket(len(chunks)), _rans.LANES
    used = sum(len(c.code.words) for c in chunks)
    room = next((r for r in _WORDS_PER_LANE if number * width * r >= used), None)
    if room is None:
        raise Damaged(f"{chunks[0].where} and others: {used} words, more than their tokens can take")
    words = np.zeros(number * width * room, np.uint16)
    words[:used] = np.concatenate([c.code.words for c in chunks])
    states = np.full(number * width, _rans.START, np.uint32)
    counts, lengths, models = (np.zeros(number * width, np.int32) for _ in range(3))
    tables = np.zeros((number, _models.TOTAL), np.uint32)
    symbols = np.zeros((number, _models.TOTAL), np.uint8)
    rows: dict[bytes, int] = {}
    for i, c in enumerate(chunks):
        assert c.table is not None
        row = rows.setdefault(c.table.tobytes(), len(rows))
        if row == len(rows) - 1:
            tables[row], symbols[row] = _models.decode_tables(c.table)
        at, end = i * width, i * width + _lanes.lanes(c.size)
        lengths[at:end] = _lanes.lane_lengths(c.size)
        states[at:end], counts[at:end] = c.code.states, c.code.counts
        models[at : at + width] = row
    out = _rans.decode(words, states, counts, lengths, models, tables, symbols, np.int32(lengths.max()))
    tile, good = (np.asarray(a) for a in out)
    if not good.all():
        where = chunks[int(np.argmin(good)) // width].where
        raise Damaged(f"{where}: its lanes do not end as an encoder begins")
    return [_lanes.from_lanes(tile[:, i * width : (i + 1) * width], c.size) for i, c in enumerate(chunks)]
