"""The metadata of a compressed file: what it says of each tensor, and its writing.

FORMAT.md in the folder above is the specification. ``_body``, ``_parse`` and ``_descriptions`` read the
metadata, ``_sections`` the data.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec._coded import Meta
from ggjax.codec.container._body import NO_CRC, PART, VERSION, Body, may_be
from ggjax.codec.entropy import _models
from ggjax.codec.quantize._quantizers import QUANTIZERS

Shape = tuple[int, ...]


class Piece(NamedTuple):
    """A run of bytes of a tensor, and their CRC-32."""

    nbytes: int
    crc: int


class Stored(NamedTuple):
    """What the metadata says of a tensor of the file."""

    dtype: str  # safetensors name of the weights' dtype
    shape: Shape
    meta: Meta | None  # None: kept as it is, or not to be read
    sections: tuple[Piece, ...]  # before the chunks
    chunks: tuple[Piece, ...]
    leaf: str  # the leaf that this is a block of, or the tensor's own name
    start: Shape | None  # where the block lies in the leaf; None: it is the whole leaf
    full: Shape  # shape of the leaf
    leaves: tuple[tuple[str, Shape], ...] = ()  # the small leaves that it consists of, one after another
    places: tuple[int, ...] = ()  # of these leaves, in the order of all leaves of the file
    quantizer: str = ""  # as the file names it; empty: kept as it is
    needs: tuple[str, ...] = ()
    problem: str = ""  # why this version cannot read it


class Metadata(NamedTuple):
    """The metadata of a file, checked."""

    body: Body  # as it stands in the file
    tensors: dict[str, Stored]
    tables: dict[int, np.ndarray]  # those that are used, by their number

    @property
    def save(self) -> str:
        """What the files of one save have in common; empty for a single file."""
        return self.body.save


def describe(
    dtype: str,
    shape: Shape,
    meta: Meta | None,
    sections: Sequence[tuple[str, Piece]],
    chunks: Sequence[Piece],
    tables: Sequence[int],
    block: tuple[str, Shape, Shape] | None = None,
    leaves: Any = None,
) -> dict[str, Any]:
    """The metadata of one tensor, as JSON has it.

    Args:
      dtype: of the weights, by its safetensors name.
      shape: of the weights.
      meta: None for a tensor that is kept as it is.
      sections, chunks: of its bytes.
      tables: the number in the file of each of its tables.
      block: (leaf, start, shape of the leaf) of a block.
      leaves: the small leaves that it consists of (``_packs.Leaves``), or None.
    """
    out: dict[str, Any] = {"crc32": [c.crc for c in chunks]}
    if len(chunks) > 1:
        out["bytes"] = [c.nbytes for c in chunks]
    if meta is not None:
        out |= {"dtype": dtype, "quantizer": meta.kind}
        parts = [p._replace(table=tables[p.table] if tables else 0, base=_signed(p.base)) for p in meta.parts]
        columns = {n: [getattr(p, n) for p in parts] for n in PART}
        if len(parts) == 1 or meta.grid:
            del columns["size"]
        out["parts"] = {n: c for n, c in columns.items() if any(v != PART[n] for v in c)}
        if meta.binned:
            out |= {"needs": ["atoms"], "binned": list(meta.binned)}
            out["parts"]["atoms"] = [[_signed(key) for key in p.atoms] for p in parts]
        optional = {
            "params": QUANTIZERS[meta.kind].stated(meta.params),
            "axis": meta.axis,
            "grid": None if meta.grid is None else {n: list(v) for n, v in meta.grid._asdict().items()},
            "coder": None if meta.coder == "rans" else meta.coder,
            "exceptions": list(meta.beyond) or None,
            "sections": {n: list(piece) for n, piece in sections if piece.nbytes},
        }
        out |= {n: v for n, v in optional.items() if v is not None and v != {}}
        if not leaves:
            out["shape"] = list(shape)
    if block is not None:
        leaf, start, full = block
        out |= {"leaf": leaf, "start": list(start), "full": list(full)}
    if leaves:
        out["leaves"] = leaves._asdict()
    return out


def _signed(base: int) -> int:
    """The shorter name of a number modulo 2^32."""
    return base - (1 << 32) if base >> 31 else base


def dump(
    tensors: dict[str, dict[str, Any]], tables: list[np.ndarray], original: dict[str, str], save: str = ""
) -> str:
    """The metadata string of a file."""
    packed = [base64.b64encode(_models.pack(t)).decode() for t in tables]
    body: dict[str, Any] = {"tables": packed, "tensors": tensors}
    body |= {n: v for n, v in (("original", original), ("save", save)) if v}
    text = as_json(body).encode()
    data = zlib.compress(text, 9)
    if not may_be(text, len(data)):
        data = zlib.compress(text, 0)
    return enveloped(base64.b64encode(data).decode(), len(text))


def enveloped(data: str, size: int) -> str:
    """The string of a file, of its compressed metadata in base64 and their size before."""
    text = as_json({"crc32": NO_CRC, "deflated": data, "size": size, "version": VERSION})
    return text.replace(NO_CRC, f"{zlib.crc32(text.encode()):08x}", 1)


def as_json(value: Any) -> str:
    """JSON in ASCII, its keys sorted, without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
