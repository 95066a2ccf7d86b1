"""Safetensors files in pieces: a header that is checked before anything else, tensors read and written one
by one.

The safetensors library writes from one dict of everything, which a checkpoint larger than the memory does not
allow, and cannot read some dtypes (the 8-bit floats) into NumPy. The layout is that of
https://github.com/huggingface/safetensors: 8 bytes with the length of the header (little-endian), the header in
JSON, the data of all tensors without a gap.
"""

import contextlib
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from ggjax._internal.atomic import check_target, new_file, scratch_file

MAX_HEADER = 100_000_000
"""Bytes of a header at most, as in the library."""

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E8M0": jnp.float8_e8m0fnu,
    "C64": np.complex64,
}
NAMES = {np.dtype(t): name for name, t in DTYPES.items()}


class FormatError(ValueError):
    """A file that is not what it should be; the message names the file and the place in it."""


class Entry(NamedTuple):
    """A tensor in the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


METADATA = "__metadata__"


class Header(NamedTuple):
    """The header of a file, checked: every tensor lies within the file, and they leave no gap."""

    entries: dict[str, Entry]  # in the order of the data
    metadata: dict[str, str]


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
    try:
        header = json.loads(f.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{path}: the header is not JSON: {e}") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is not a JSON object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: {METADATA} does not map strings to strings")
    start = 8 + length
    found = {name: _entry(f"{path}: tensor {name!r:.200}", value, start) for name, value in header.items()}
    entries = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = start
    for name, entry in entries.items():
        if entry.begin != end:
            raise FormatError(f"{path}: tensor {name!r} begins at byte {entry.begin}, expected {end}")
        end = entry.end
    if end != size:
        raise FormatError(f"{path}: {size} bytes, but its tensors end at byte {end}")
    return Header(entries, metadata)


def _entry(where: str, value: Any, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{where}: expected dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where}: unknown dtype {dtype!r:.100}")
    if not is_shape(shape) or not is_count(begin) or not is_count(end):
        raise FormatError(f"{where}: expected a shape and offsets of whole numbers")
    nbytes = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if end - begin != nbytes:
        raise FormatError(f"{where}: {end - begin} bytes of data, but {dtype} of shape {shape} takes {nbytes}")
    return Entry(dtype, tuple(shape), start + begin, start + end)


def is_shape(x: Any) -> bool:
    """Whether this is a shape that an array can have: of up to 64 axes, and fewer than 2^62 elements."""
    if not isinstance(x, list) or len(x) > 64 or not all(map(is_count, x)):
        return False
    return math.prod(n for n in x if n) < 1 << 62


def is_count(n: Any) -> bool:
    """Whether this is a whole number of at least 0, as JSON gives it, and not beyond 64 bits."""
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63


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


def read_array(file: File, name: str) -> np.ndarray:
    """A tensor of a file, as it is stored."""
    e = file.header.entries[name]
    return as_array(read_bytes(file, e.begin, e.end), e.dtype, e.shape)


def as_array(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array that bytes stand for."""
    return data.view(np.dtype(DTYPES[dtype])).reshape(shape)


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


def write(
    path: str | os.PathLike[str],
    tensors: Iterable[Tensor],
    metadata: Callable[[], dict[str, str]],
    *,
    overwrite: bool = True,
) -> int:
    """Write a safetensors file, holding one tensor at a time; whole or not at all, as ``new_file`` does.

    The data goes to a scratch file in the same folder first, since the header that precedes it states its size.

    Args:
      path: the file.
      tensors: in the order of their data; names must differ.
      metadata: asked for when all tensors are written.
      overwrite: replace the file if it is there.

    Returns:
      The bytes of the file.

    Raises:
      FileExistsError: it is there, and not to be replaced.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    entries: dict[str, Any] = {}
    with scratch_file(path, ".data") as (_, data):
        for t in tensors:
            _add(entries, t, sum(map(data.write, t.pieces)))
        header = _header_bytes(path, metadata(), entries)
        data.seek(0)
        with new_file(path, overwrite=overwrite) as out:
            out.write(header)
            shutil.copyfileobj(data, out, 1 << 20)
            return out.tell()


def measure(tensors: Iterable[Tensor], metadata: Callable[[], dict[str, str]]) -> int:
    """The bytes of the file that ``write`` would write."""
    entries: dict[str, Any] = {}
    for t in tensors:
        _add(entries, t, sum(len(p) for p in t.pieces))
    end = max((e["data_offsets"][1] for e in entries.values()), default=0)
    return len(_header_bytes("the file", metadata(), entries)) + end


def _add(entries: dict[str, Any], t: Tensor, nbytes: int) -> None:
    begin = next(reversed(entries.values()))["data_offsets"][1] if entries else 0
    if t.name == METADATA:
        raise ValueError(f"a tensor cannot have the name {METADATA!r}, which safetensors keeps for itself")
    if t.name in entries:
        raise ValueError(f"two tensors of the name {t.name!r}")
    entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [begin, begin + nbytes]}


def _header_bytes(path: Any, metadata: dict[str, str], entries: dict[str, Any]) -> bytes:
    stated = {METADATA: metadata, **entries} if metadata else entries
    try:
        header = json.dumps(stated, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise ValueError(
            f"{path}: a name that is not valid text: {e.object[max(e.start - 40, 0) : e.end]!r}"
        ) from None
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise ValueError(f"{path}: a header of {len(header)} bytes, safetensors allows {MAX_HEADER}")
    return struct.pack("<Q", len(header)) + header
