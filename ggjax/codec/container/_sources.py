"""Reading checkpoints: which tensors of which files make up each leaf, and their arrays, a few at a time."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ggjax.codec import _compress, _decode
from ggjax.codec._coded import Coded
from ggjax.codec.container import _format, _safetensors
from ggjax.codec.container._format import Stored
from ggjax.codec.container._safetensors import File, FormatError

GROUP = 1 << 22
"""Tensors are read and decoded together up to so many weights."""

SUFFIX = ".ggjax.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"


class Source(NamedTuple):
    """Where a block of a leaf is: a tensor of a file."""

    file: File
    name: str  # of the tensor
    stored: Stored | None  # None: a tensor of a plain file
    tables: list[np.ndarray]

    @property
    def where(self) -> str:
        return f"{self.file.path}: tensor {self.name!r}"

    @property
    def dtype(self) -> str:
        """The safetensors name of the weights' dtype."""
        return self.stored.dtype if self.stored else self.file.header.entries[self.name].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the block."""
        return self.stored.shape if self.stored else self.file.header.entries[self.name].shape

    @property
    def full(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        return self.stored.full if self.stored else self.shape


class Checkpoint(NamedTuple):
    """An open checkpoint, of one file or of several."""

    leaves: dict[str, list[Source]]
    files: list[tuple[File, _format.Metadata | None]]


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The safetensors files of a checkpoint: of an index those that it names, else the file itself.

    Raises:
      FormatError: the index is not one, or names a file outside its folder or one that is not there.
    """
    path = Path(path)
    if path.suffix != ".json":
        return [path]
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise FormatError(f"{path}: not the index of a checkpoint: {e}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FormatError(f"{path}: names the file {name!r:.100}, expected one of the same folder")
        if not (path.parent / name).is_file():
            raise FormatError(f"{path}: names the file {name!r}, which is not there")
    return [path.parent / name for name in names]


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, plain: bool = False, partial: bool = False) -> Iterator[Checkpoint]:
    """A compressed checkpoint.

    Args:
      path: a file, or the index of several.
      plain: allow files that are not compressed (a damaged file may look like one).
      partial: allow leaves of which some blocks are missing, as in one file of several.

    Raises:
      FormatError: it is not of this format, or its files do not belong together.
      OSError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        files: list[tuple[File, _format.Metadata | None]] = []
        for name in files_of(path):
            file = stack.enter_context(_safetensors.opened(name))
            is_plain = plain and not _format.is_compressed(file.header)
            files.append((file, None if is_plain else _format.load(name, file.header)))
        saves = {meta.save for _, meta in files if meta is not None}
        if len(saves) > 1:
            raise FormatError(f"{path}: its files were not written together: {', '.join(map(repr, saves))}")
        leaves: dict[str, list[Source]] = {}
        for file, meta in files:
            for tensor in file.header.entries:
                stored = meta.tensors[tensor] if meta else None
                source = Source(file, tensor, stored, meta.tables if meta else [])
                leaves.setdefault(stored.leaf if stored else tensor, []).append(source)
        if not partial:
            for leaf, sources in leaves.items():
                _check_cover(path, leaf, sources)
        yield Checkpoint(leaves, files)


def _check_cover(path: Any, name: str, sources: list[Source]) -> None:
    """The blocks of a leaf fill it and do not overlap."""
    blocks = [s.stored for s in sources if s.stored is not None and s.stored.start is not None]
    if not blocks:
        if len(sources) > 1:
            raise FormatError(f"{path}: leaf {name!r} stands in several files")
        return
    first = blocks[0]
    same = len(blocks) == len(sources) and all((b.full, b.dtype) == (first.full, first.dtype) for b in blocks)
    filled = sum(math.prod(b.shape) for b in blocks) == math.prod(first.full)
    if not same or not filled or _overlap(blocks):
        raise FormatError(f"{path}: the {len(blocks)} blocks of leaf {name!r} do not fill it")


def _overlap(blocks: list[Stored]) -> bool:
    """Whether any two blocks have an element in common."""
    starts = np.array([b.start for b in blocks], np.int64).reshape(len(blocks), -1)
    ends = starts + np.array([b.shape for b in blocks], np.int64).reshape(starts.shape)
    for i in range(len(blocks) - 1):
        apart = (starts[i + 1 :] >= ends[i]) | (ends[i + 1 :] <= starts[i])
        if not apart.any(1).all():
            return True
    return False


def load(leaves: Mapping[str, list[Source]], names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of leaves, a few decoded at a time.

    Raises:
      FormatError: a tensor is damaged.
    """
    sizes = [(n, math.prod(leaves[n][0].full)) for n in names]
    for group in _compress.index_groups(sizes, GROUP):
        arrays = iter(_arrays([s for n in group for s in leaves[n]]))
        for n in group:
            blocks = [(s, next(arrays)) for s in leaves[n]]
            if len(blocks) == 1:
                yield n, blocks[0][1]
                continue
            out = np.empty(blocks[0][0].full, _safetensors.DTYPES[blocks[0][0].dtype])
            for s, block in blocks:
                assert s.stored is not None and s.stored.start is not None
                out[tuple(slice(i, i + k) for i, k in zip(s.stored.start, block.shape, strict=True))] = block
            yield n, out


def _arrays(sources: list[Source]) -> list[np.ndarray]:
    """The arrays of blocks, decoded together."""
    read: list[Any] = [_read(s) for s in sources]
    coded = [i for i, x in enumerate(read) if isinstance(x, Coded)]
    try:
        arrays = _decode.arrays([read[i] for i in coded], [sources[i].where for i in coded])
    except _decode.Damaged as e:
        raise FormatError(str(e)) from None
    for i, array in zip(coded, arrays, strict=True):
        c = read[i]
        if c.meta.kind == "rf8":
            array = _compress.rf8_values(array, c.meta).astype(jnp.dtype(c.meta.dtype))
        read[i] = array
    return read


def _read(s: Source) -> Any:
    """The coded form of a block, or its array where it is kept as it is."""
    e = s.file.header.entries[s.name]
    if s.stored is None:
        return _safetensors.read_array(s.file, s.name)
    data = _safetensors.read_bytes(s.file, e.begin, e.end)
    if s.stored.meta is not None:
        return _format.parse(s.where, s.stored, data, s.tables)
    if _safetensors.crc32(data) != s.stored.chunks[0].crc:
        raise FormatError(f"{s.where}: its CRC-32 does not fit")
    return _safetensors.as_array(data, s.stored.dtype, s.stored.shape)


class TensorInfo(NamedTuple):
    """A tensor of a file, without its data."""

    name: str
    dtype: str  # safetensors name of the weights' dtype
    shape: tuple[int, ...]
    kind: str  # "uniform", "rf8", "lossless", or "raw" for one that is kept as it is
    step: float | None
    parts: int
    nbytes: int  # of its data in the file
    bits: float  # per parameter

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class FileInfo(NamedTuple):
    """What a compressed file, or a checkpoint of several, holds."""

    version: int
    tensors: tuple[TensorInfo, ...]
    nbytes: int  # of the files
    tables: int
    original: dict[str, str]  # __metadata__ of the checkpoint that was compressed


def info(files: list[tuple[File, _format.Metadata | None]]) -> FileInfo:
    """What compressed files hold, from their headers."""
    tensors: list[TensorInfo] = []
    nbytes = tables = 0
    original: dict[str, str] = {}
    for file, meta in files:
        assert meta is not None
        tensors.extend(_tensor_info(n, file.header.entries[n].nbytes, s) for n, s in meta.tensors.items())
        nbytes, tables = nbytes + os.fstat(file.handle.fileno()).st_size, tables + len(meta.tables)
        original.update(meta.original)
    return FileInfo(_format.VERSION, tuple(tensors), nbytes, tables, original)


def _tensor_info(name: str, nbytes: int, s: Stored) -> TensorInfo:
    meta = s.meta
    kind, step = ("raw", None) if meta is None else (meta.kind, meta.step if meta.kind == "uniform" else None)
    parts = len(meta.parts) if meta else 0
    return TensorInfo(
        name, s.dtype, s.shape, kind, step, parts, nbytes, 8 * nbytes / max(math.prod(s.shape), 1)
    )
