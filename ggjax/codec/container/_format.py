"""The file format, version 1: coded arrays as bytes, and the metadata that describes them.

FORMAT.md beside this module is the specification; this is its reading and writing. Everything that is read is
checked before memory is set aside for it.
"""

import base64
import json
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec import _coded
from ggjax.codec._coded import Coded, Meta, Part
from ggjax.codec.container._safetensors import (
    DTYPES,
    Entry,
    FormatError,
    Header,
    as_bytes,
    crc32,
    is_count,
    is_shape,
)
from ggjax.codec.entropy import _models, _planes, _rans, _tokens
from ggjax.codec.quantize import _keys, _steps

VERSION = 1
KEY = "ggjax"
_NO_CRC = "00000000"
MAX_PARTS = 256


class Piece(NamedTuple):
    """A run of bytes of a tensor, and their CRC-32."""

    nbytes: int
    crc: int


class Stored(NamedTuple):
    """What the metadata says of a tensor of the file."""

    dtype: str  # safetensors name of the weights' dtype
    shape: tuple[int, ...]
    meta: Meta | None  # None: kept as it is
    side: Piece  # classes and exceptions
    chunks: tuple[Piece, ...]
    leaf: str  # the leaf that this is a block of, or the tensor's own name
    start: tuple[int, ...] | None  # where the block lies in the leaf; None: it is the whole leaf
    full: tuple[int, ...]  # shape of the leaf


class Metadata(NamedTuple):
    """The metadata of a file, checked."""

    tensors: dict[str, Stored]
    tables: list[np.ndarray]
    original: dict[str, str]  # __metadata__ of the checkpoint that was compressed
    save: str  # what the files of one save have in common; empty for a single file


# Writing.


def chunk_bytes(c: Coded) -> tuple[bytes, Iterator[bytes]]:
    """(the side section of a coded array, its chunks one by one), as bytes."""
    words, states, counts, raw = (np.asarray(s) for s in (c.words, c.states, c.counts, c.raw))
    side = bytes(as_bytes(np.asarray(c.classes))) + bytes(as_bytes(np.asarray(c.exceptions)))

    def chunks() -> Iterator[bytes]:
        lane = word = byte = 0
        for p in c.meta.parts:
            for n in _coded.chunk_sizes(p.size):
                lanes = slice(lane, lane + (_coded.lanes(n) if c.meta.coder == "rans" else 1))
                end = word + int(counts[lanes].sum(dtype=np.int64))
                rest = byte + _coded.raw_bytes(n, p.shift)
                streams = [words[word:end], raw[byte:rest]]
                if c.meta.coder == "rans":
                    streams = [states[lanes], counts[lanes], *streams]
                yield b"".join(as_bytes(s) for s in streams)
                lane, word, byte = lanes.stop, end, rest

    return side, chunks()


def describe(
    dtype: str,
    shape: tuple[int, ...],
    meta: Meta | None,
    side: Piece,
    chunks: list[Piece],
    tables: list[int],
    block: tuple[str, tuple[int, ...], tuple[int, ...]] | None,
) -> dict[str, Any]:
    """The metadata of one tensor, as JSON has it; ``tables``: the number in the file of each of its tables."""
    out: dict[str, Any] = {"dtype": dtype, "shape": list(shape), "chunks": [list(c) for c in chunks]}
    if meta is not None:
        out["kind"] = meta.kind
        out["parts"] = [
            [p.size, _signed(p.base), p.shift, p.zeros, tables[p.table] if tables else 0, p.exceptions]
            for p in meta.parts
        ]
        if side.nbytes:
            out["side"] = list(side)
        if meta.kind == "uniform":
            out["step"] = meta.step
        for name, value, default in (
            ("centroids", list(meta.centroids), []),
            ("axis", meta.axis, None),
            ("coder", meta.coder, "rans"),
        ):
            if value != default:
                out[name] = value
        if meta.kind == "rf8":
            out["exponent"] = meta.exponent
    if block is not None:
        leaf, start, full = block
        out |= {"leaf": leaf, "start": list(start), "full": list(full)}
    return out


def _signed(base: int) -> int:
    """The shorter name of a number modulo 2^32."""
    return base - (1 << 32) if base >> 31 else base


def dump(
    tensors: dict[str, dict[str, Any]], tables: list[np.ndarray], original: dict[str, str], save: str = ""
) -> str:
    """The metadata string of a file."""
    body: dict[str, Any] = {
        "crc32": _NO_CRC,
        "tables": [base64.b64encode(_models.pack(t)).decode() for t in tables],
        "tensors": tensors,
        "version": VERSION,
    }
    if original:
        body["original"] = original
    if save:
        body["save"] = save
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.replace(_NO_CRC, f"{zlib.crc32(text.encode()):08x}", 1)


# Reading.


def is_compressed(header: Header) -> bool:
    """Whether a file says that it is ours."""
    return KEY in header.metadata


def load(path: Any, header: Header) -> Metadata:
    """The metadata of a file.

    Raises:
      FormatError: it is not of this format, of another version, or damaged.
    """
    text = header.metadata.get(KEY)
    if text is None:
        raise FormatError(f"{path}: no {KEY!r} in __metadata__: not a compressed file")
    where = f"{path}: metadata {KEY!r}"
    if list(header.metadata) != [KEY]:
        raise FormatError(f"{path}: __metadata__ has other keys than {KEY!r}")
    stated = text[10:18]
    blank = text[:10] + _NO_CRC + text[18:]
    if text[:10] != '{"crc32":"' or stated != f"{zlib.crc32(blank.encode('utf-8', 'surrogatepass')):08x}":
        raise FormatError(f"{where}: its CRC-32 does not fit")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{where}: not JSON: {e}") from None
    version = body.get("version") if isinstance(body, dict) else None
    if version != VERSION or isinstance(version, bool):
        raise FormatError(f"{where}: version {version!r:.50}, this reads version {VERSION}")
    try:
        tables = [_models.unpack(base64.b64decode(t, validate=True)) for t in body["tables"]]
        original, save = body.get("original", {}), body.get("save", "")
        stored = {name: _stored(name, t, tables) for name, t in body["tensors"].items()}
    except _Wrong as e:
        raise FormatError(f"{where}: {e}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise FormatError(f"{where}: tables and tensors expected: {e}") from None
    if not isinstance(original, dict) or not all(isinstance(v, str) for v in original.values()):
        raise FormatError(f"{where}: original does not map strings to strings")
    if KEY in original or not isinstance(save, str):
        raise FormatError(f"{where}: original or save is not what it can be")
    if stored.keys() != header.entries.keys():
        odd = sorted(stored.keys() ^ header.entries.keys())[0]
        raise FormatError(f"{where}: tensor {odd!r} is only in one of metadata and header")
    for name, s in stored.items():
        _check_entry(f"{path}: tensor {name!r}", s, header.entries[name])
    _check_blocks(where, stored)
    return Metadata(stored, tables, original, save)


class _Wrong(Exception):
    pass


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise _Wrong(message)


def _stored(name: str, t: Any, tables: list[np.ndarray]) -> Stored:
    where = f"tensor {name!r}"
    _need(isinstance(t, dict), f"{where}: expected an object")
    dtype, shape = t.get("dtype"), t.get("shape")
    _need(isinstance(dtype, str) and dtype in DTYPES, f"{where}: unknown dtype {dtype!r:.50}")
    _need(is_shape(shape), f"{where}: no array has the shape {shape!r:.100}")
    pieces: Any = t.get("chunks")
    _need(
        isinstance(pieces, list) and all(map(_is_piece, pieces)),
        f"{where}: chunks must be [bytes, crc32] pairs",
    )
    side = t.get("side", [0, 0])
    _need(_is_piece(side), f"{where}: side must be a [bytes, crc32] pair")
    chunks = tuple(Piece(*p) for p in pieces)
    meta = None
    if "kind" in t:
        meta = _meta(where, t, dtype, tuple(shape), len(tables))
        _check_chunks(where, meta, Piece(*side), chunks)
    else:
        _need(len(chunks) == 1 and side == [0, 0], f"{where}: kept as it is, expected one chunk")
    leaf, start, full = t.get("leaf", name), t.get("start"), t.get("full", shape)
    _need(isinstance(leaf, str), f"{where}: leaf must be a name")
    _need(is_shape(full) and len(full) == len(shape), f"{where}: full must be a shape like {shape}")
    if start is not None:
        inside = _counts(start) and len(start) == len(shape)
        inside = inside and all(s + n <= f for s, n, f in zip(start, shape, full, strict=True))
        _need(inside, f"{where}: start {start!r:.100} does not lie in {full!r:.100}")
    else:
        _need(full == shape and leaf == name, f"{where}: a block needs a start")
    return Stored(
        dtype,
        tuple(shape),
        meta,
        Piece(*side),
        chunks,
        leaf,
        None if start is None else tuple(start),
        tuple(full),
    )


def _counts(x: Any) -> bool:
    return isinstance(x, list) and len(x) <= 64 and all(map(is_count, x))


def _is_part(x: Any) -> bool:
    signed = isinstance(x, list) and len(x) == 6 and type(x[1]) is int and -(1 << 31) <= x[1] < 1 << 31
    return signed and all(is_count(n) for n in (x[0], *x[2:]))


def _is_piece(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(map(is_count, x))


def _meta(where: str, t: dict[str, Any], dtype: str, shape: tuple[int, ...], tables: int) -> Meta:
    kind, coder, axis = t["kind"], t.get("coder", "rans"), t.get("axis")
    name = str(np.dtype(DTYPES[dtype]))
    _need(kind in _keys.KINDS, f"{where}: unknown kind {kind!r:.50}")
    _need(coder in ("rans", "zstd"), f"{where}: unknown coder {coder!r:.50}")
    _need(name in _keys.CODED, f"{where}: no kind {kind} of {dtype}")
    _need(kind != "lossless" or name in _keys.LOSSLESS, f"{where}: no lossless kind of {dtype}")
    parts: Any = t.get("parts")
    listed = isinstance(parts, list) and 1 <= len(parts) <= MAX_PARTS
    _need(listed and all(map(_is_part, parts)), f"{where}: parts must be lists of six numbers")
    parts = tuple(Part(size, base % (1 << 32), *rest) for size, base, *rest in parts)
    tables = tables if coder == "rans" else 1
    for i, p in enumerate(parts):
        good = p.size >= 1 and p.shift < 32 and p.table < tables and p.exceptions <= p.size
        good = good and p.zeros <= (_keys.LOSSLESS[name] if kind == "lossless" else 0)
        _need(good, f"{where}: part {i} is out of range: {list(p)}")
    _need(sum(p.size for p in parts) == math.prod(shape), f"{where}: its parts do not fill its shape")
    if axis is None:
        _need(len(parts) == 1, f"{where}: {len(parts)} parts without an axis")
        axis = None
    else:
        good = type(axis) is int and axis in (0, -1) and len(shape) >= 2 and len(parts) > 1
        _need(good, f"{where}: bad axis {axis!r:.50} of {len(parts)} parts")
    step, exponent = 0.0, 0
    centroids: Any = ()
    if kind == "uniform":
        _need(type(t.get("step")) in (int, float), f"{where}: step must be a number")
        step = float(t["step"])
        _need(_steps.SMALLEST <= step <= _steps.LARGEST, f"{where}: step {step!r} is out of range")
        _need(
            float(str(np.float32(step))) == step, f"{where}: step {step!r} is no float32 in its shortest form"
        )
        centroids = t.get("centroids", [])
        numbers = isinstance(centroids, list) and len(centroids) <= 255
        numbers = numbers and all(type(c) in (int, float) and abs(c) <= 1 for c in centroids)
        _need(numbers, f"{where}: centroids must be up to 255 numbers from -1 to 1")
        centroids = tuple(float(c) for c in centroids)
    if kind == "rf8":
        exponent = t.get("exponent", 1000)
        _need(type(exponent) is int and -125 <= exponent <= 113, f"{where}: bad exponent {exponent!r:.50}")
    return Meta(shape, name, kind, parts, step, centroids, exponent, axis, coder)


def _check_chunks(where: str, meta: Meta, side: Piece, chunks: tuple[Piece, ...]) -> None:
    """The chunks have at least, and the side section just, the bytes that their tokens take."""
    number = sum(-(-p.size // _tokens.CHUNK) for p in meta.parts)
    _need(len(chunks) == number, f"{where}: {len(chunks)} chunks, expected {number}")
    rows = meta.shape[meta.axis] if meta.axis is not None else 0
    want = _planes.nbytes(rows, meta.class_bits) + 4 * sum(p.exceptions for p in meta.parts)
    _need(side.nbytes == want, f"{where}: a side section of {side.nbytes} bytes, expected {want}")
    for i, (n, shift, c) in enumerate(zip(*_chunk_shapes(meta), chunks, strict=True)):
        raw = _coded.raw_bytes(n, shift)
        if meta.coder == "rans":
            lanes = _coded.lanes(n)
            words = c.nbytes - raw - 6 * lanes
            good = 0 <= words <= 2 * lanes * _rans.WORDS and words % 2 == 0
        else:
            good = c.nbytes > raw
        _need(good, f"{where}: chunk {i} of {c.nbytes} bytes cannot hold {n} tokens")


def _chunk_shapes(meta: Meta) -> tuple[list[int], list[int]]:
    """(tokens, shift) of every chunk."""
    pairs = [(n, p.shift) for p in meta.parts for n in _coded.chunk_sizes(p.size)]
    return [n for n, _ in pairs], [s for _, s in pairs]


def _check_entry(where: str, s: Stored, entry: Entry) -> None:
    if s.meta is None:
        if (entry.dtype, entry.shape) != (s.dtype, s.shape):
            raise FormatError(
                f"{where}: the header says {entry.dtype} {entry.shape}, the metadata {s.dtype} {s.shape}"
            )
    elif entry.dtype != "U8" or len(entry.shape) != 1:
        raise FormatError(f"{where}: coded, so expected U8 of one axis, got {entry.dtype} {entry.shape}")
    total = s.side.nbytes + sum(c.nbytes for c in s.chunks)
    if total != entry.nbytes:
        raise FormatError(f"{where}: its chunks take {total} bytes, the header gives it {entry.nbytes}")


def _check_blocks(where: str, stored: dict[str, Stored]) -> None:
    leaves: dict[str, Stored] = {}
    for name, s in stored.items():
        first = leaves.setdefault(s.leaf, s)
        if (first.dtype, first.full) != (s.dtype, s.full) or (
            s is not first and None in (s.start, first.start)
        ):
            raise FormatError(f"{where}: the blocks of leaf {s.leaf!r} do not fit together (tensor {name!r})")


def parse(where: str, s: Stored, data: np.ndarray, tables: list[np.ndarray]) -> Coded:
    """The coded array of a tensor's bytes.

    Raises:
      FormatError: a CRC-32 does not fit.
    """
    meta = s.meta
    assert meta is not None
    if crc32(data[: s.side.nbytes]) != s.side.crc:
        raise FormatError(f"{where}: the CRC-32 of its side section does not fit")
    rows = meta.shape[meta.axis] if meta.axis is not None else 0
    split = _planes.nbytes(rows, meta.class_bits)
    classes, exceptions = data[:split], data[split : s.side.nbytes].view("<u4")
    streams: list[list[np.ndarray]] = [[], [], [], []]
    place = s.side.nbytes
    for i, (n, shift, c) in enumerate(zip(*_chunk_shapes(meta), s.chunks, strict=True)):
        piece = data[place : place + c.nbytes]
        place += c.nbytes
        if crc32(piece) != c.crc:
            raise FormatError(f"{where}: the CRC-32 of chunk {i} does not fit")
        end = c.nbytes - _coded.raw_bytes(n, shift)
        if meta.coder == "rans":
            lanes = _coded.lanes(n)
            states, counts = piece[: 4 * lanes].view("<u4"), piece[4 * lanes : 6 * lanes].view("<u2")
            words = piece[6 * lanes : end].view("<u2")
            if int(counts.sum(dtype=np.int64)) != len(words):
                raise FormatError(f"{where}: chunk {i} has {len(words)} words, its lanes {int(counts.sum())}")
        else:
            states, counts, words = np.zeros(0, np.uint32), np.array([end], np.uint32), piece[:end]
        for stream, x in zip(streams, (words, states, counts, piece[end:]), strict=True):
            stream.append(x)
    words, states, counts, raw = (np.concatenate(x) for x in streams)
    used = sorted({p.table for p in meta.parts}) if meta.coder == "rans" else []
    row = {t: i for i, t in enumerate(used)}
    parts = tuple(p._replace(table=row.get(p.table, 0)) for p in meta.parts)
    own = np.array([tables[t] for t in used], np.uint16).reshape(-1, _models.TOKENS)
    return Coded(words, states, counts, raw, exceptions, own, classes, meta._replace(parts=parts))
