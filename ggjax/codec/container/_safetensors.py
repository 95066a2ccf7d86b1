"""Safetensors files in pieces: a header that is checked before anything else, tensors read and written one
by one.

The safetensors library writes from one dict of everything, which a checkpoint larger than the memory does not
allow, and cannot read some dtypes (the 8-bit floats) into NumPy. The layout is that of
https://github.com/huggingface/safetensors: 8 bytes with the length of the header (little-endian), the header in
JSON, the data of all tensors without a gap.
"""

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ggjax._internal.atomic import naming, new_file
from ggjax.codec.container._dtypes import NAMES, Opaque, as_array
from ggjax.codec.container._header import MAX_HEADER, METADATA, FormatError, Header, parse

MOVED = 1 << 20
"""Bytes are moved so many at a time."""

LARGE, WASTE = 1 << 26, 14
"""The header of a large file may end with spaces, up to 2^-14 of the data, which then need not be moved."""


class File(NamedTuple):
    """An open safetensors file."""

    path: Any
    handle: BinaryIO
    header: Header


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[File]:
    """A safetensors file, its header checked: what is read from it is of one version, even if it is replaced.

    Raises:
      FormatError: it is not such a file; OSError: it cannot be read.
    """
    with open(path, "rb") as f:
        yield File(path, f, _header(path, f))


def _header(path: Any, f: BinaryIO) -> Header:
    size = os.fstat(f.fileno()).st_size
    first = f.read(8)
    if len(first) < 8:
        raise FormatError(f"{path}: {size} bytes, too short for a safetensors file")
    (length,) = struct.unpack("<Q", first)
    if length > min(MAX_HEADER, size - 8):
        raise FormatError(f"{path}: bytes 0 to 7 state a header of {length} bytes, in a file of {size}")
    return parse(path, f.read(length), size)


def read_bytes(file: File, begin: int, end: int) -> np.ndarray:
    """The bytes of a file from one place to another, uint8.

    Raises:
      FormatError: the file ends before.
    """
    out = np.empty(end - begin, np.uint8)
    file.handle.seek(begin)
    if file.handle.readinto(out.data) != len(out):  # type: ignore[attr-defined]
        raise FormatError(f"{file.path}: ends before byte {end}")
    return out


def read_array(file: File, name: str) -> np.ndarray | Opaque:
    """A tensor of a file, as it is stored."""
    e = file.header.entries[name]
    return as_array(read_bytes(file, e.begin, e.end), e.dtype, e.shape)


def as_bytes(x: np.ndarray) -> memoryview:
    """The bytes of an array (little-endian, C order), without a copy where it is contiguous."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def crc32(data: np.ndarray) -> int:
    """The CRC-32 of bytes, that of zlib and PNG."""
    return zlib.crc32(data.data)


class Tensor(NamedTuple):
    """A tensor to be written, its bytes in pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes | memoryview]


def tensor_of(name: str, x: np.ndarray | Opaque) -> Tensor:
    """A tensor of one piece.

    Raises:
      TypeError: safetensors does not have its dtype.
    """
    if isinstance(x, Opaque):
        return Tensor(name, x.dtype, x.shape, [x.data.data])
    dtype = x.dtype.newbyteorder("=")
    return Tensor(name, dtype_name(name, dtype), x.shape, [as_bytes(x.astype(dtype, copy=False))])


def dtype_name(name: str, dtype: np.dtype) -> str:
    """The safetensors name of the dtype of a leaf."""
    dtype = dtype.newbyteorder("=")
    if dtype not in NAMES:
        raise TypeError(f"leaf {name!r}: safetensors has no dtype for {dtype}: save the tree without it")
    return NAMES[dtype]


class Size(NamedTuple):
    """The bytes of a file, and of those the ones before its data."""

    nbytes: int
    header: int


def write(
    path: str | os.PathLike[str],
    tensors: Iterable[Tensor],
    metadata: Callable[[], dict[str, str]],
    *,
    overwrite: bool = True,
) -> int:
    """Write a safetensors file, whole or not at all, as ``new_file`` does; otherwise as ``write_to``."""
    with new_file(path, overwrite=overwrite) as f:
        return write_to(f, path, tensors, metadata)


def write_to(
    f: BinaryIO,
    path: Any,
    tensors: Iterable[Tensor],
    metadata: Callable[[], dict[str, str]],
    *,
    reserve: int = 0,
) -> int:
    """Write a safetensors file, holding one tensor at a time.

    The header comes before the data, and is known after it. So a place is left for it. Where it does not fit,
    or would waste space, the data is moved within the file: nothing is ever on the disk twice.

    Args:
      f: the file, empty and open for reading and writing.
      path: for messages.
      tensors: in the order of their data; names must differ.
      metadata: asked for when all tensors are written.
      reserve: bytes to leave for the header. What ``size_of`` says is right to the byte.

    Returns:
      The bytes of the file.

    Raises:
      OSError: it cannot be written; the message has the path.
    """
    entries: dict[str, Any] = {}
    f.seek(reserve)
    for t in tensors:
        nbytes = 0
        for piece in t.pieces:
            with naming(path):
                nbytes += f.write(piece)
        add(entries, t, nbytes)
    header, size = _header_of(path, metadata(), entries, reserve)
    with naming(path):
        _move(f, reserve, size.header, size.nbytes - size.header)
        f.seek(0)
        f.write(header)
        f.flush()
    return size.nbytes


def entries_of(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """What the header of a file of these tensors says of each; their pieces are taken, and counted."""
    entries: dict[str, Any] = {}
    for t in tensors:
        add(entries, t, sum(len(p) for p in t.pieces))
    return entries


def size_of(path: Any, metadata: dict[str, str], entries: dict[str, Any], *, reserve: int = 0) -> Size:
    """The bytes of the file that ``write_to`` would write."""
    return _header_of(path, metadata, entries, reserve)[1]


def _move(f: BinaryIO, begin: int, to: int, nbytes: int) -> None:
    """Move bytes within a file, and end it behind them."""
    if begin == to:
        return
    starts = range(0, nbytes, MOVED)
    for start in starts if to < begin else reversed(starts):  # what is still to be moved is not written over
        f.seek(begin + start)
        piece = f.read(min(MOVED, nbytes - start))
        f.seek(to + start)
        f.write(piece)
    f.truncate(to + nbytes)


def add(entries: dict[str, Any], t: Tensor, nbytes: int) -> None:
    """Add to the header what it says of a tensor, of so many bytes."""
    begin = next(reversed(entries.values()))["data_offsets"][1] if entries else 0
    if t.name == METADATA:
        raise ValueError(f"a tensor cannot have the name {METADATA!r}, which safetensors keeps for itself")
    if t.name in entries:
        raise ValueError(f"two tensors of the name {t.name!r}")
    entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [begin, begin + nbytes]}


def _header_of(
    path: Any, metadata: dict[str, str], entries: dict[str, Any], reserve: int
) -> tuple[bytes, Size]:
    """The bytes before the data, and the size of the file."""
    stated = {METADATA: metadata, **entries} if metadata else entries
    try:
        header = json.dumps(stated, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise ValueError(
            f"{path}: a name that is not valid text: {e.object[max(e.start - 40, 0) : e.end]!r}"
        ) from None
    end = max((e["data_offsets"][1] for e in entries.values()), default=0)
    padding, spare = -len(header) % 8, reserve - 8 - len(header)
    if reserve % 8 == 0 and padding <= spare <= padding + (max(end - LARGE, 0) >> WASTE):
        padding = spare
    header += b" " * padding
    if len(header) > MAX_HEADER:
        raise ValueError(f"{path}: a header of {len(header)} bytes, safetensors allows {MAX_HEADER}")
    header = struct.pack("<Q", len(header)) + header
    return header, Size(len(header) + end, len(header))
