"""Boxes of tensors: of a file, only the chunks that a box needs are read and decoded.

Which exceptions belong to a chunk depends on how many the chunks before it have. Where a file does not tell
(older ones do not), the chunks before it are decoded too, or those after it if they are fewer; their weights
are never made.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ggjax.codec import _boxes, _decode
from ggjax.codec._boxes import Box
from ggjax.codec._coded import Coded, Meta
from ggjax.codec._host import outside_trace
from ggjax.codec._layout import Layout, layout_of
from ggjax.codec.container import _safetensors, _sections
from ggjax.codec.container._dtypes import BITS, as_array
from ggjax.codec.container._header import FormatError
from ggjax.codec.container._metadata import Stored
from ggjax.codec.container._sources import Source
from ggjax.codec.entropy._chunks import Chunk, Damaged
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.quantize import _rows

TOGETHER = 64
"""Chunks that are read and decoded at a time."""


class Coding(NamedTuple):
    """What is known of a coded tensor before its chunks are read."""

    stored: Stored
    layout: Layout
    sections: _sections.Sections
    classes: np.ndarray  # of its rows
    begins: np.ndarray  # where each chunk begins in the file, and the last one ends
    beyond: list[np.ndarray]  # for every part, how many exceptions each of its chunks has; -1: not known yet


class Reader(NamedTuple):
    """A tensor of which boxes are to be read."""

    source: Source
    coding: Coding | None  # None: its boxes are not coded apart from one another


def reader_of(source: Source) -> Reader:
    """Read what stands before the chunks of a tensor.

    Raises:
      FormatError: it is damaged.
    """
    s = source.stored
    if s is None or s.meta is None or s.meta.grid:
        return Reader(source, None)
    begin = source.file.header.entries[source.name].begin
    first = begin + sum(p.nbytes for p in s.sections)
    sections = _sections.sections_in(source.where, s, _safetensors.read_bytes(source.file, begin, first))
    layout = layout_of(s.meta)
    begins = first + np.cumsum([0, *(p.nbytes for p in s.chunks)])
    beyond = _beyond(s.meta, layout)
    classes = _decode.row_classes(s.meta, sections.classes)
    for k, p in enumerate(s.meta.parts if s.meta.axis is not None else ()):
        rows = int((classes == k).sum())
        if rows * (s.meta.size // len(classes)) != p.size:
            raise FormatError(f"{source.where}: part {k} has {p.size} weights, but {rows} rows")
    return Reader(source, Coding(s, layout, sections, classes, begins, beyond))


def _beyond(meta: Meta, layout: Layout) -> list[np.ndarray]:
    """For every part, how many exceptions each of its chunks has; -1 where the file does not tell."""
    out, end = [], 0
    for p, places in zip(meta.parts, layout.parts, strict=True):
        begin, end = end, end + len(places)
        each = p.exceptions if len(places) == 1 or not p.exceptions else -1
        out.append(np.array(meta.beyond[begin:end]) if meta.beyond else np.full(len(places), each))
    return out


def chunks(r: Reader, box: Box) -> np.ndarray:
    """Numbers of the chunks that have weights of a box. A tensor that is always read whole counts as one."""
    if r.coding is None:
        return np.zeros(1, np.int64)
    firsts = np.cumsum([0, *map(len, r.coding.layout.parts)])
    some = [firsts[k] + _boxes.chunks(shape, inner) for k, shape, inner in _parts(r.coding, box)]
    return np.concatenate(some)


def read(r: Reader, box: Box) -> np.ndarray:
    """The weights in a box of a tensor.

    Raises:
      FormatError: what is read of it is damaged.
    """
    s = r.source.stored
    if s is not None and s.problem:
        raise FormatError(f"{r.source.where}: {s.problem}")
    if s is None or s.meta is None:
        return _plain(r.source, box)
    try:
        with outside_trace():
            return _whole(r.source, s)[box] if r.coding is None else _decoded(r.source, r.coding, box)
    except Damaged as e:
        raise FormatError(str(e)) from None


def _parts(c: Coding, box: Box) -> Iterator[tuple[int, tuple[int, ...], Box]]:
    """(part, its shape, the box of it) of the parts that have weights of a box."""
    meta = c.stored.meta
    assert meta is not None
    if meta.axis is None:
        yield 0, meta.shape, box
        return
    row, rest, others = box[meta.axis], list(box), list(meta.shape)
    del rest[meta.axis], others[meta.axis]
    for k in range(len(meta.parts)):
        before, end = (int((c.classes[:n] == k).sum()) for n in (row.start, row.stop))
        if before < end:
            yield k, (int((c.classes == k).sum()), *others), (slice(before, end), *rest)


class Target(NamedTuple):
    """The values in a box of a part, while they are decoded."""

    part: int
    shape: tuple[int, ...]
    box: Box
    wanted: np.ndarray  # chunks
    first: int  # the element of the part that is the first of the values
    flat: np.ndarray  # what lies between those of the box is not written, and so takes no memory


def _target(c: Coding, meta: Meta, part: int, shape: tuple[int, ...], box: Box) -> Target:
    first, end = _boxes.span(shape, box)
    flat = np.empty(end - first, _decode.held(meta))
    return Target(part, shape, box, _boxes.chunks(shape, box), first, flat)


def _decoded(source: Source, c: Coding, box: Box) -> np.ndarray:
    meta = c.stored.meta
    assert meta is not None
    targets = [_target(c, meta, *part) for part in _parts(c, box)]
    jobs = [(t, int(j)) for t in targets for j in _to_decode(c.beyond[t.part], t.wanted)]
    for i in range(0, len(jobs), TOGETHER):
        some = jobs[i : i + TOGETHER]
        decoded = _tokens(source, c, meta, [(t.part, j) for t, j in some])
        for (t, j), (token, raw) in zip(some, decoded, strict=True):
            _take(f"{source.where}: part {t.part}", c, meta, t, j, token, raw)
    for t in targets:
        found, stated = c.beyond[t.part], meta.parts[t.part].exceptions
        if (found >= 0).all() and found.sum() != stated:
            raise Damaged(
                f"{source.where}: part {t.part} has {found.sum()} exceptions, its meta states {stated}"
            )
    none = np.zeros(0, np.uint16)
    frame = Coded(none, none, none, none, none, none, none, c.sections.steps, meta)
    if meta.axis is None:
        (t,) = targets
        return _decode.weights_of(frame, _boxes.view(t.flat, t.shape, t.box))
    out = np.empty(_boxes.shape_of(box), _decode.held(meta))
    classes = c.classes[box[meta.axis]]
    if meta.axis == 0:
        for t in targets:
            out[classes == t.part] = _boxes.view(t.flat, t.shape, t.box)
    else:
        columns = [_boxes.view(t.flat, t.shape, t.box) for t in targets]
        _rows.from_sorted_columns(np.concatenate(columns).reshape(len(classes), -1), classes, out)
    return _decode.weights_of(frame, out)


def _take(where: str, c: Coding, meta: Meta, t: Target, j: int, token: np.ndarray, raw: np.ndarray) -> None:
    """Write the values of a chunk, where they are wanted, and note how many exceptions it has."""
    beyond, found = c.beyond[t.part], np.count_nonzero(token == 0)
    if beyond[j] not in (-1, found):
        raise Damaged(f"{where}: a chunk has {found} exceptions, expected {beyond[j]}")
    beyond[j] = found
    own = _own(where, c.sections.exceptions[c.layout.exceptions[t.part]], beyond, j)
    if j in t.wanted:
        place = c.layout.parts[t.part][j]
        x = _decode.values(where, meta, meta.parts[t.part], token, raw, own, [place.binned])
        at = place.start - t.first
        low, high = max(at, 0), min(at + len(x), len(t.flat))
        t.flat[low:high] = x[low - at : high - at]


def _to_decode(beyond: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The chunks to be decoded, in an order in which it is known of each how many exceptions come before it, or
    how many from it on."""
    unknown = np.flatnonzero(beyond < 0)
    forwards = np.union1d(wanted, unknown[unknown < wanted[-1]])
    backwards = np.union1d(wanted, unknown[unknown > wanted[0]])[::-1]
    return forwards if len(forwards) <= len(backwards) else backwards


def _own(where: str, exceptions: np.ndarray, beyond: np.ndarray, j: int) -> np.ndarray:
    """The exceptions of a chunk, of those of its part."""
    before = beyond[:j]
    used = before.sum() if (before >= 0).all() else len(exceptions) - beyond[j:].sum()
    if used < 0 or used + beyond[j] > len(exceptions):
        raise Damaged(f"{where} has more exceptions than the {len(exceptions)} of its meta")
    return exceptions[used : used + beyond[j]]


def _tokens(
    source: Source, c: Coding, meta: Meta, some: list[tuple[int, int]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, raw bits) of some chunks, each given by its part and its number there."""
    firsts = np.cumsum([0, *map(len, c.layout.parts)])
    todo, raws = [], []
    for k, j in some:
        number, place = int(firsts[k]) + j, c.layout.parts[k][j]
        data = _safetensors.read_bytes(source.file, int(c.begins[number]), int(c.begins[number + 1]))
        code, raw = _sections.chunk_in(source.where, c.stored, number, place, data)
        table = source.tables[meta.parts[k].table] if CODERS[meta.coder].has_tables else None
        todo.append(Chunk(f"{source.where}, chunk {number}", place.size, table, code))
        raws.append(raw)
    return list(zip(CODERS[meta.coder].decode(todo), raws, strict=True))


def _whole(source: Source, s: Stored) -> np.ndarray:
    e = source.file.header.entries[source.name]
    data = _safetensors.read_bytes(source.file, e.begin, e.end)
    coded = _sections.coded_of(source.where, s, data, source.tables)
    return _decode.weights_of(coded, _decode.arrays([coded], [source.where])[0])


def _plain(source: Source, box: Box) -> np.ndarray:
    """A box of a tensor that is kept as it is. All of it is read, since its CRC-32 is that of all of it."""
    s, e = source.stored, source.file.header.entries[source.name]
    width = BITS[source.dtype] // 8
    first, end = (width * i for i in _boxes.span(source.shape, box))
    flat, crc = np.empty(end - first, np.uint8), 0
    for at in range(0, e.nbytes, _safetensors.MOVED):
        data = _safetensors.read_bytes(source.file, e.begin + at, min(e.begin + at + _safetensors.MOVED, e.end))
        crc = zlib.crc32(data.data, crc)
        low, high = max(at, first), min(at + len(data), end)
        if low < high:
            flat[low - first : high - first] = data[low - at : high - at]
    if s is not None and crc != s.chunks[0].crc:
        raise FormatError(f"{source.where}: its CRC-32 does not fit")
    array = as_array(flat, source.dtype, (len(flat) // width,))
    assert isinstance(array, np.ndarray)
    return _boxes.view(array, source.shape, box)
