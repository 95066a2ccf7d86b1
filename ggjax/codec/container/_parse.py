"""The metadata of a compressed file, read and checked."""

import base64
import json
import zlib
from typing import Any

from ggjax.codec.container import _descriptions, _version1
from ggjax.codec.container._header import MAX_HEADER, FormatError, Header
from ggjax.codec.container._metadata import (
    KEY,
    MOST_RATIO,
    MOST_SMALL,
    NO_CRC,
    VERSION,
    Metadata,
    Stored,
)
from ggjax.codec.entropy import _models

_ENVELOPE = {"crc32", "deflated", "size", "version"}
_BODY = {"original", "save", "tables", "tensors"}


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
        version, body = _body(text)
        tables = _tables(body)
        return _metadata(path, version, body, tables, header)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as e:
        if isinstance(e, FormatError):
            raise
        raise FormatError(f"{where}: {e}") from None


def _body(text: str) -> tuple[int, dict[str, Any]]:
    """(version, what the metadata says)."""
    outer = _json(text)
    version = outer.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise ValueError(f"version {version!r:.50}, this reads versions 1 and {VERSION}")
    if version == 1:
        return version, outer
    if outer.keys() != _ENVELOPE:
        raise ValueError(f"expected the keys {sorted(_ENVELOPE)}, got {sorted(outer)!r:.200}")
    body = _json(_inflated(base64.b64decode(outer["deflated"], validate=True), outer["size"]))
    odd = sorted(body.keys() - _BODY)
    if odd:
        raise ValueError(f"unknown key {odd[0]!r:.50}")
    return version, body


def _inflated(data: bytes, size: Any) -> bytes:
    """The text of compressed metadata, which a file may not make large from little."""
    if type(size) is not int or not 0 <= size <= min(MOST_RATIO * len(data) + MOST_SMALL, MAX_HEADER):
        raise ValueError(f"{len(data)} bytes cannot be metadata of {size!r:.50}")
    decoder = zlib.decompressobj()
    try:
        text = decoder.decompress(data, size + 1)
    except zlib.error as e:
        raise ValueError(f"not deflated: {e}") from None
    if len(text) != size or not decoder.eof or decoder.unused_data:
        raise ValueError(f"does not inflate to {size} bytes")
    return text


def _json(text: str | bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys and without numbers that are none."""
    value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a JSON object has a key twice")
    return out


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _tables(body: dict[str, Any]) -> list[Any]:
    packed, tensors = body["tables"], body["tensors"]
    if not isinstance(packed, list) or not isinstance(tensors, dict):
        raise ValueError("tables and tensors expected")
    return [_models.unpack(base64.b64decode(t, validate=True)) for t in packed]


def _metadata(path: Any, version: int, body: dict[str, Any], tables: list[Any], header: Header) -> Metadata:
    original, save, tensors = body.get("original", {}), body.get("save", ""), body["tensors"]
    if not isinstance(original, dict) or not all(isinstance(v, str) for v in original.values()):
        raise ValueError("original does not map strings to strings")
    if KEY in original or not isinstance(save, str):
        raise ValueError("original or save is not what it can be")
    if tensors.keys() != header.entries.keys():
        odd = sorted(tensors.keys() ^ header.entries.keys())[0]
        raise ValueError(f"tensor {odd!r:.200} is only in one of metadata and header")
    stored = {}
    for name, t in tensors.items():
        try:
            description = _version1.upgraded(t) if version == 1 else t
            if version != 1 and isinstance(t, dict) and "side" in (t.get("sections") or ()):
                raise ValueError("no section is named 'side'")
            stored[name] = _descriptions.read(name, description, header.entries[name], len(tables))
        except ValueError as e:
            raise FormatError(f"{path}: tensor {name!r:.200}: {e}") from None
    _check_tables(stored, len(tables))
    _check_leaves(stored)
    return Metadata(version, stored, tables, original, save)


def _check_tables(stored: dict[str, Stored], tables: int) -> None:
    """Every table is used, as far as this version can tell."""
    if any(s.problem for s in stored.values()):
        return
    used = {p.table for s in stored.values() if s.meta for p in s.meta.parts}
    if len(used | {0}) < tables:
        raise ValueError(f"{tables} tables, of which {len(used)} are used")


def _check_leaves(stored: dict[str, Stored]) -> None:
    """Every leaf is stored once, or in blocks that fit together."""
    packed = [n for s in stored.values() for n, _ in s.leaves]
    blocks: dict[str, Stored] = {}
    for name, s in stored.items():
        if s.leaves:
            continue
        first = blocks.setdefault(s.leaf, s)
        whole = s is not first and None in (s.start, first.start)
        if (first.dtype, first.full) != (s.dtype, s.full) or whole:
            raise ValueError(f"the blocks of leaf {s.leaf!r:.200} do not fit together (tensor {name!r:.200})")
    if len(set(packed)) != len(packed) or blocks.keys() & set(packed):
        raise ValueError("a leaf is stored twice")
    places = [p for s in stored.values() for p in s.places]
    total = len(packed) + sum(not s.leaves for s in stored.values())
    if len(set(places)) != len(places) or max(places, default=0) >= max(total, 1):
        raise ValueError("the gaps between small leaves are not what they can be")
