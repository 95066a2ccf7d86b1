"""What compressed files hold, told from their headers."""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ggjax.codec.container import _body, _safetensors, _version1
from ggjax.codec.container._body import VERSION, Body, problem_of
from ggjax.codec.container._header import Entry, FormatError
from ggjax.codec.container._index import index_of
from ggjax.codec.container._safetensors import File

if TYPE_CHECKING:
    from ggjax.codec.container._sources import Checkpoint


_END = 1 << 64


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


def info_of(checkpoint: "Checkpoint") -> FileInfo:
    """What the files of a compressed checkpoint hold together."""
    files = [_info_of_file(file, meta.body) for file, meta in checkpoint.files if meta is not None]
    original: dict[str, str] = {}
    for i in files:
        original |= i.original
    tensors = tuple(t for i in files for t in i.tensors)
    version = max((i.version for i in files), default=VERSION)
    return FileInfo(version, tensors, sum(i.nbytes for i in files), sum(i.tables for i in files), original)


def info_of_files(path: str | os.PathLike[str]) -> list[tuple[Path, FileInfo]]:
    """What each file of a compressed checkpoint holds, by what it says: nobody has checked that it can be so.

    Raises:
      FormatError: it is not of this format; OSError: it cannot be read.
    """
    index, out = index_of(path), []
    for name in index.files:
        with _safetensors.opened(name) as file:
            info = _info_of_file(file, _body.read(name, file.header))
            index.tensors_of(file, {*file.header.entries, *(t.name for t in info.tensors)})
            out.append((name, info))
    return out


def _info_of_file(file: File, body: Body) -> FileInfo:
    tensors: list[TensorInfo] = []
    for name, t in body.tensors.items():
        try:
            t = _version1.upgraded(t) if body.version == 1 else t
            tensors += _infos(name, file.header.entries[name], t)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise FormatError(f"{file.path}: tensor {name!r:.200}: no such description: {e}") from None
    nbytes = os.fstat(file.handle.fileno()).st_size
    return FileInfo(body.version, tuple(tensors), nbytes, len(body.tables), body.original)


def _infos(name: str, entry: Entry, t: dict[str, Any]) -> Iterator[TensorInfo]:
    """A tensor of a file, or the small leaves that it consists of, by its description."""
    quantizer, coder, needs = t.get("quantizer", ""), t.get("coder", "rans"), tuple(t.get("needs", ()))
    dtype, shape, packed = t.get("dtype", entry.dtype), t.get("shape", list(entry.shape)), t.get("leaves")
    leaves = list(zip(packed["names"], packed["shapes"], strict=True)) if packed else [(name, shape)]
    texts = [dtype, quantizer, coder, *needs, *(n for n, _ in leaves)]
    if not all(isinstance(x, str) for x in texts) or not all(_is_shape(s) for _, s in leaves):
        raise ValueError("expected names and shapes")
    problem = problem_of(quantizer, coder, needs)
    step, parts, params = None, 0, {}
    if quantizer and not problem:
        params = t.get("params", {})
        step = params.get("step")
        if step is not None and not _is_number(step):
            raise ValueError(f"a step that is no number: {step!r:.50}")
        listed = [x for v in params.values() for x in (v if isinstance(v, list) else [v])]
        if not all(map(_is_number, listed)):
            raise ValueError("expected parameters that are numbers")
        columns = t.get("parts", {}).values()
        parts = len(set(t["grid"]["parts"])) if "grid" in t else max(map(len, columns), default=1)
    ends = [0, *itertools.accumulate(math.prod(s) for _, s in leaves)]
    shares = [entry.nbytes * end // max(ends[-1], 1) for end in ends] if packed else [0, entry.nbytes]
    for i, (leaf, own) in enumerate(leaves):
        nbytes = shares[i + 1] - shares[i]
        bits = 8 * nbytes / max(math.prod(own), 1)
        how = coder if parts else "", tuple(params.items()), needs, problem
        yield TensorInfo(leaf, dtype, tuple(own), quantizer or "raw", step, parts, nbytes, bits, *how)


def _is_shape(x: Any) -> bool:
    """Whether this is a shape, of a size below 2^64: products of longer numbers could take hours."""
    size = 1
    for n in x if isinstance(x, list) else [-1]:
        if type(n) is not int or not 0 <= n < _END or (size := size * n) >= _END:
            return False
    return True


def _is_number(x: Any) -> bool:
    """Whether this is a number that can be shown as a float."""
    return type(x) in (int, float) and abs(x) < 2.0**1000
