"""The bytes of a coded tensor: classes, exceptions and steps, then its chunks."""

from collections.abc import Iterator, Mapping

import numpy as np

from ggjax.codec._coded import Coded, Meta
from ggjax.codec._layout import codes_of, layout_of
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


def coded_of(where: str, s: Stored, data: np.ndarray, tables: Mapping[int, np.ndarray]) -> Coded:
    """The coded array of a tensor's bytes.

    Raises:
      FormatError: a CRC-32 does not fit.
    """
    meta = s.meta
    assert meta is not None
    has_tables = CODERS[meta.coder].has_tables
    layout = layout_of(meta)
    begin = 0
    for piece in s.sections:
        if crc32(data[begin : begin + piece.nbytes]) != piece.crc:
            raise FormatError(f"{where}: the CRC-32 of a section before its chunks does not fit")
        begin += piece.nbytes
    end = layout.classes + 4 * layout.lengths["exceptions"]
    classes, exceptions = data[: layout.classes], data[layout.classes : end].view("<u4")
    steps = _steps(where, data[end:begin], meta)
    codes, raws = [], []
    for i, (chunk, piece) in enumerate(zip(layout.chunks, s.chunks, strict=True)):
        part = data[begin : begin + piece.nbytes]
        begin += piece.nbytes
        if crc32(part) != piece.crc:
            raise FormatError(f"{where}: the CRC-32 of chunk {i} does not fit")
        end = piece.nbytes - (chunk.raw.stop - chunk.raw.start)
        codes.append(
            _code(f"{where}: chunk {i}", part[:end], chunk.states.stop - chunk.states.start, has_tables)
        )
        raws.append(part[end:])
    words, states, counts = (np.concatenate(x) for x in zip(*codes, strict=True))
    used = sorted({p.table for p in meta.parts}) if has_tables else []
    row = {t: i for i, t in enumerate(used)}
    parts = tuple(p._replace(table=row.get(p.table, 0)) for p in meta.parts)
    own = np.array([tables[t] for t in used], np.uint16).reshape(-1, _models.TOKENS)
    raw = np.concatenate(raws)
    return Coded(words, states, counts, raw, exceptions, own, classes, steps, meta._replace(parts=parts))


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
