"""The bytes of a coded tensor: classes, exceptions and steps, then its chunks."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ggjax.codec._coded import Coded, Meta
from ggjax.codec._layout import Piece as Place
from ggjax.codec._layout import codes_of, layout_of, side_lengths
from ggjax.codec.container._header import FormatError
from ggjax.codec.container._metadata import Stored
from ggjax.codec.container._safetensors import as_bytes, crc32
from ggjax.codec.entropy import _models, _side
from ggjax.codec.entropy._chunks import Code
from ggjax.codec.entropy._coders import CODERS


def sections_of(c: Coded) -> tuple[list[tuple[str, bytes]], Iterator[bytes]]:
    """(the sections of a coded array before its chunks, by name; its chunks one by one), as bytes."""
    host = Coded(*map(np.asarray, c.streams), meta=c.meta)
    sections = [(n, bytes(as_bytes(getattr(host, n)))) for n in ("classes", "exceptions")]
    sections.append(("steps", _side.pack(host.steps, c.meta.row_steps)))
    chunks = codes_of(host, layout_of(c.meta))
    return sections, (_bytes_of(host, code, host.raw[chunk.raw]) for chunk, code in chunks)


def _bytes_of(c: Coded, code: Code, raw: np.ndarray) -> bytes:
    lanes = [code.states, code.counts] if CODERS[c.meta.coder].has_tables else []
    return b"".join(as_bytes(s) for s in (*lanes, code.words, raw))


class Sections(NamedTuple):
    """What stands before the chunks of a tensor."""

    classes: np.ndarray
    exceptions: np.ndarray
    steps: np.ndarray


def sections_in(where: str, s: Stored, data: np.ndarray) -> Sections:
    """The sections of a tensor, of its first bytes.

    Raises:
      FormatError: a CRC-32 does not fit.
    """
    meta = s.meta
    assert meta is not None
    begin = 0
    for piece in s.sections:
        if crc32(data[begin : begin + piece.nbytes]) != piece.crc:
            raise FormatError(f"{where}: the CRC-32 of a section before its chunks does not fit")
        begin += piece.nbytes
    classes, exceptions = side_lengths(meta)
    end = classes + 4 * exceptions
    return Sections(data[:classes], data[classes:end].view("<u4"), _steps(where, data[end:begin], meta))


def chunk_in(where: str, s: Stored, number: int, place: Place, data: np.ndarray) -> tuple[Code, np.ndarray]:
    """(the entropy code, the raw bits) of a chunk, of its number, its place in the streams and its bytes.

    Raises:
      FormatError: its CRC-32 does not fit.
    """
    assert s.meta is not None
    if crc32(data) != s.chunks[number].crc:
        raise FormatError(f"{where}: the CRC-32 of chunk {number} does not fit")
    end = len(data) - (place.raw.stop - place.raw.start)
    lanes, has_tables = place.states.stop - place.states.start, CODERS[s.meta.coder].has_tables
    return _code(f"{where}: chunk {number}", data[:end], lanes, has_tables), data[end:]


def coded_of(where: str, s: Stored, data: np.ndarray, tables: Mapping[int, np.ndarray]) -> Coded:
    """The coded array of a tensor's bytes.

    Raises:
      FormatError: a CRC-32 does not fit.
    """
    meta = s.meta
    assert meta is not None
    before = sections_in(where, s, data)
    begin = sum(piece.nbytes for piece in s.sections)
    codes, raws = [], []
    for i, (place, piece) in enumerate(zip(layout_of(meta).chunks, s.chunks, strict=True)):
        code, raw = chunk_in(where, s, i, place, data[begin : begin + piece.nbytes])
        begin += piece.nbytes
        codes.append(code)
        raws.append(raw)
    words, states, counts = (np.concatenate(x) for x in zip(*codes, strict=True))
    used = sorted({p.table for p in meta.parts}) if CODERS[meta.coder].has_tables else []
    row = {t: i for i, t in enumerate(used)}
    parts = tuple(p._replace(table=row.get(p.table, 0)) for p in meta.parts)
    own = np.array([tables[t] for t in used], np.uint16).reshape(-1, _models.TOKENS)
    raw, meta = np.concatenate(raws), meta._replace(parts=parts)
    return Coded(words, states, counts, raw, before.exceptions, own, before.classes, before.steps, meta)


def _steps(where: str, data: np.ndarray, meta: Meta) -> np.ndarray:
    if not meta.side:
        return np.zeros(0, np.int8)
    try:
        return _side.unpack(data.tobytes(), meta.row_steps, meta.side - meta.row_steps)
    except ValueError as e:
        raise FormatError(f"{where}: its steps of rows and columns: {e}") from None


def _code(where: str, data: np.ndarray, lanes: int, has_tables: bool) -> Code:
    """The entropy code of a chunk, of its bytes without the raw bits."""
    if not has_tables:
        return Code(data, np.zeros(0, np.uint32), np.array([len(data)], np.uint32))
    states, counts = data[: 4 * lanes].view("<u4"), data[4 * lanes : 6 * lanes].view("<u2")
    words = data[6 * lanes :].view("<u2")
    if int(counts.sum(dtype=np.int64)) != len(words):
        raise FormatError(f"{where} has {len(words)} words, its lanes {int(counts.sum())}")
    return Code(words, states, counts)
