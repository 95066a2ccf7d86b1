"""The metadata of a compressed file, read: everything in it is checked before memory is set aside for it."""

import base64
import json
import math
import zlib
from typing import Any

import numpy as np

from ggjax.codec._coded import Meta, Part
from ggjax.codec._layout import layout_of, number_of_chunks, side_lengths
from ggjax.codec.container._metadata import KEY, NO_CRC, VERSION, Metadata, Piece, Stored
from ggjax.codec.container._safetensors import DTYPES, Entry, FormatError, Header, is_count, is_shape
from ggjax.codec.entropy import _models, _rans
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.quantize._quantizers import QUANTIZERS

MAX_PARTS = 256
PARAMETERS = ("step", "centroids", "exponent")
"""What a description has of its quantizer."""


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
    blank = text[:10] + NO_CRC + text[18:]
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
    _need(isinstance(kind, str) and kind in QUANTIZERS, f"{where}: unknown kind {kind!r:.50}")
    quantizer = QUANTIZERS[kind]
    _need(isinstance(coder, str) and coder in CODERS, f"{where}: unknown coder {coder!r:.50}")
    _need(name in quantizer.dtypes, f"{where}: no kind {kind} of {dtype}")
    parts: Any = t.get("parts")
    listed = isinstance(parts, list) and 1 <= len(parts) <= MAX_PARTS
    _need(listed and all(map(_is_part, parts)), f"{where}: parts must be lists of six numbers")
    parts = tuple(Part(size, base % (1 << 32), *rest) for size, base, *rest in parts)
    tables = tables if CODERS[coder].has_tables else 1
    for i, p in enumerate(parts):
        good = p.size >= 1 and p.shift < 32 and p.table < tables and p.exceptions <= p.size
        good = good and p.zeros <= quantizer.most_zeros(name)
        _need(good, f"{where}: part {i} is out of range: {list(p)}")
    _need(sum(p.size for p in parts) == math.prod(shape), f"{where}: its parts do not fill its shape")
    if axis is None:
        _need(len(parts) == 1, f"{where}: {len(parts)} parts without an axis")
        axis = None
    else:
        good = type(axis) is int and axis in (0, -1) and len(shape) >= 2 and len(parts) > 1
        _need(good, f"{where}: bad axis {axis!r:.50} of {len(parts)} parts")
    try:
        params = quantizer.read({n: t[n] for n in PARAMETERS if n in t})
    except ValueError as e:
        raise _Wrong(f"{where}: {e}") from None
    return Meta(shape, name, kind, params, parts, axis, coder)


def _check_chunks(where: str, meta: Meta, side: Piece, chunks: tuple[Piece, ...]) -> None:
    """The chunks have at least the bytes that their tokens take, the side section exactly those of its two
    lists."""
    number = number_of_chunks(meta)  # before the layout lists them
    _need(len(chunks) == number, f"{where}: {len(chunks)} chunks, expected {number}")
    class_bytes, exceptions = side_lengths(meta)
    want = class_bytes + 4 * exceptions
    _need(side.nbytes == want, f"{where}: a side section of {side.nbytes} bytes, expected {want}")
    for i, (place, c) in enumerate(zip(layout_of(meta).chunks, chunks, strict=True)):
        lanes, raw = (s.stop - s.start for s in (place.states, place.raw))
        words = c.nbytes - raw - 6 * lanes  # a state and a count take 6 bytes
        if CODERS[meta.coder].has_tables:
            good = 0 <= words <= 2 * lanes * _rans.WORDS and words % 2 == 0
        else:
            good = words > 0
        _need(good, f"{where}: chunk {i} of {c.nbytes} bytes cannot hold {place.size} tokens")


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
