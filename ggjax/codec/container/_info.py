"""What compressed files hold, told from their headers."""

import math
import os
from typing import NamedTuple

from ggjax.codec.container._metadata import VERSION, Stored
from ggjax.codec.container._sources import Checkpoint


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


def info_of(checkpoint: Checkpoint) -> FileInfo:
    """What the files of a compressed checkpoint hold together."""
    files = info_of_files(checkpoint)
    original: dict[str, str] = {}
    for i in files:
        original |= i.original
    tensors = tuple(t for i in files for t in i.tensors)
    return FileInfo(VERSION, tensors, sum(i.nbytes for i in files), sum(i.tables for i in files), original)


def info_of_files(checkpoint: Checkpoint) -> list[FileInfo]:
    """What each file of a compressed checkpoint holds."""
    out = []
    for file, meta in checkpoint.files:
        assert meta is not None
        tensors = (_tensor_info(n, file.header.entries[n].nbytes, s) for n, s in meta.tensors.items())
        nbytes = os.fstat(file.handle.fileno()).st_size
        out.append(FileInfo(VERSION, tuple(tensors), nbytes, len(meta.tables), meta.original))
    return out


def _tensor_info(name: str, nbytes: int, s: Stored) -> TensorInfo:
    meta = s.meta
    kind, step = ("raw", None) if meta is None else (meta.kind, meta.step or None)
    parts = len(meta.parts) if meta else 0
    return TensorInfo(
        name, s.dtype, s.shape, kind, step, parts, nbytes, 8 * nbytes / max(math.prod(s.shape), 1)
    )
