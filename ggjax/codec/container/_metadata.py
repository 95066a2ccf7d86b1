"""The metadata of a compressed file: what it says of each tensor, and its writing.

FORMAT.md in the folder above is the specification. ``_parse`` reads the metadata, ``_sections`` the data.
"""

import base64
import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec._coded import Meta
from ggjax.codec.entropy import _models
from ggjax.codec.quantize._quantizers import QUANTIZERS

VERSION = 1
KEY = "ggjax"
NO_CRC = "00000000"
"""What stands in place of the checksum while it is computed."""


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
        out |= QUANTIZERS[meta.kind].stated(meta.params)
        for name, value, default in (("axis", meta.axis, None), ("coder", meta.coder, "rans")):
            if value != default:
                out[name] = value
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
        "crc32": NO_CRC,
        "tables": [base64.b64encode(_models.pack(t)).decode() for t in tables],
        "tensors": tensors,
        "version": VERSION,
    }
    if original:
        body["original"] = original
    if save:
        body["save"] = save
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.replace(NO_CRC, f"{zlib.crc32(text.encode()):08x}", 1)
