"""What compressed files hold, told from their headers."""

import itertools
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from ggjax.codec.container._metadata import VERSION, Stored
from ggjax.codec.container._sources import Checkpoint
from ggjax.codec.quantize._quantizers import QUANTIZERS


class TensorInfo(NamedTuple):
    """A tensor of a file, without its data; of small leaves that are stored together, one of them."""

    name: str
    dtype: str  # safetensors name of the weights' dtype
    shape: tuple[int, ...]
    kind: str  # "uniform", "rf8", "lossless", or "raw" for one that is kept as it is
    step: float | None
    parts: int
    nbytes: int  # of its data in the file; of one of several small leaves, its share
    bits: float  # per parameter
    coder: str = ""  # "rans" or "zstd"; empty for one that is kept as it is
    params: tuple[tuple[str, Any], ...] = ()  # what the file states of its quantizer: names and values
    needs: tuple[str, ...] = ()  # what it needs of a reader beyond the version of the file
    problem: str = ""  # why this version of ggjax cannot read it

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
    original: dict[str, str]  # __metadata__ of the checkpoint that was compressed, or ``metadata`` of save_file


def info_of(checkpoint: Checkpoint) -> FileInfo:
    """What the files of a compressed checkpoint hold together."""
    files = info_of_files(checkpoint)
    original: dict[str, str] = {}
    for i in files:
        original |= i.original
    tensors = tuple(t for i in files for t in i.tensors)
    version = max((i.version for i in files), default=VERSION)
    return FileInfo(version, tensors, sum(i.nbytes for i in files), sum(i.tables for i in files), original)


def info_of_files(checkpoint: Checkpoint) -> list[FileInfo]:
    """What each file of a compressed checkpoint holds."""
    out = []
    for file, meta in checkpoint.files:
        assert meta is not None
        tensors = (
            info for n, s in meta.tensors.items() for info in _infos(n, file.header.entries[n].nbytes, s)
        )
        nbytes = os.fstat(file.handle.fileno()).st_size
        out.append(FileInfo(meta.version, tuple(tensors), nbytes, len(meta.tables), meta.original))
    return out


def _infos(name: str, nbytes: int, s: Stored) -> Iterator[TensorInfo]:
    meta = s.meta
    rest: dict[str, Any] = {"needs": s.needs, "problem": s.problem}
    if meta is not None:
        rest |= {"coder": meta.coder, "params": tuple(QUANTIZERS[meta.kind].stated(meta.params).items())}
    step, parts = (meta.step or None, len(meta.parts)) if meta is not None else (None, 0)
    leaves = s.leaves or ((name, s.shape),)
    ends = [0, *itertools.accumulate(math.prod(shape) for _, shape in leaves)]
    shares = [nbytes * end // max(ends[-1], 1) for end in ends] if s.leaves else [0, nbytes]
    for i, (leaf, shape) in enumerate(leaves):
        own = shares[i + 1] - shares[i]
        bits = 8 * own / max(math.prod(shape), 1)
        yield TensorInfo(leaf, s.dtype, shape, s.quantizer or "raw", step, parts, own, bits, **rest)
