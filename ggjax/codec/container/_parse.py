"""The metadata of a compressed file, read and checked: how each tensor is coded."""

import base64
from typing import Any

from ggjax.codec.container import _body, _descriptions, _version1
from ggjax.codec.container._body import Body
from ggjax.codec.container._header import FormatError, Header
from ggjax.codec.container._metadata import Metadata, Stored
from ggjax.codec.entropy import _models
from ggjax.codec.entropy._coders import CODERS


def load(path: Any, header: Header) -> Metadata:
    """The metadata of a file.

    Raises:
      FormatError: it is not of this format, of another version, or damaged.
    """
    body = _body.read(path, header)
    try:
        return _metadata(path, body, header)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as e:
        if isinstance(e, FormatError):
            raise
        raise FormatError(f"{path}: metadata {_body.KEY!r}: {e}") from None


def _metadata(path: Any, body: Body, header: Header) -> Metadata:
    stored = {}
    for name, t in body.tensors.items():
        try:
            description = _version1.upgraded(t) if body.version == 1 else t
            if body.version != 1 and isinstance(t, dict) and "side" in (t.get("sections") or ()):
                raise ValueError("no section is named 'side'")
            stored[name] = _descriptions.read(name, description, header.entries[name], len(body.tables))
        except ValueError as e:
            raise FormatError(f"{path}: tensor {name!r:.200}: {e}") from None
    used = _tables_of(body, stored)
    _check_leaves(stored)
    tables = {i: _models.unpack(base64.b64decode(body.tables[i], validate=True)) for i in used}
    return Metadata(body, stored, tables)


def _tables_of(body: Body, stored: dict[str, Stored]) -> list[int]:
    """The tables that are used: in version 2 all of them, as far as this reader can tell."""
    metas = [s.meta for s in stored.values() if s.meta and CODERS[s.meta.coder].has_tables]
    used = {p.table for meta in metas for p in meta.parts}
    may_be_idle = body.version == 1 or any(s.problem for s in stored.values())
    if len(used) < len(body.tables) and not may_be_idle:
        raise ValueError(f"{len(body.tables)} tables, of which {len(used)} are used")
    return sorted(used)


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
