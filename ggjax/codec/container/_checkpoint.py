"""From checkpoint to checkpoint, a few tensors at a time: the library's side of the command line."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ggjax.codec import _compress
from ggjax.codec.container import _format, _safetensors, _sources, _write
from ggjax.codec.container._file import Progress, silent
from ggjax.codec.container._safetensors import Tensor


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    *,
    select: Callable[[str], bool] = lambda name: True,
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> int:
    """Compress a safetensors file of any model, a few tensors at a time.

    Args:
      source: a safetensors file.
      target: the file to write; None to write none, and learn what it would take.
      select: whether to code the tensor of this name; the others are kept as they are.
      overwrite: replace the target if it is there.
      progress: called for every tensor.
      options: those of ``compress`` but mask.

    Returns:
      The bytes of the target.

    Raises:
      ValueError: as ``compress``, the source is compressed already, or it is the target.
      FormatError: the source is not a safetensors file.
      FileExistsError: the target is there, and not to be replaced.
      OSError: one of them cannot be read or written.

    >>> import tempfile, os, safetensors.numpy
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> safetensors.numpy.save_file({"w": np.zeros((64, 64), np.float32)}, path)
    >>> compress_file(path, path + ".small", bits=4) < os.path.getsize(path) / 8
    True
    """
    given = _compress.options(**options)
    _refuse_same(source, target)
    with _safetensors.opened(source) as file:
        header = file.header
        if _format.is_compressed(header):
            raise ValueError(f"{source} is compressed already: decompress it first")

        def leaves() -> Iterator[tuple[str, Any]]:
            known: list[np.ndarray] = []
            sizes = [(n, math.prod(e.shape)) for n, e in header.entries.items()]
            for group in _compress.index_groups(sizes, _sources.GROUP):
                arrays = {n: _safetensors.read_array(file, n) for n in group}
                nbytes = {n: x.nbytes for n, x in arrays.items()}
                names = [n for n in arrays if select(n)]
                arrays.update(
                    zip(names, _compress.code(names, [arrays.pop(n) for n in names], given, known), strict=True)
                )
                for n in group:
                    yield n, arrays.pop(n)
                    progress(n, nbytes[n])

        return _write.write(target, leaves(), header.metadata, overwrite=overwrite)


def decompress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> int:
    """Write the plain safetensors file of a compressed one, a few tensors at a time.

    Args:
      source: a compressed file, or the index of several, all tensors of which go to one file.
      target: the file to write; it gets the metadata of the checkpoint that was compressed.
      overwrite: replace the target if it is there.
      progress: called for every tensor.

    Returns:
      The bytes of the target.

    Raises:
      ValueError: the source is the target.
      FormatError: the source is damaged or not compressed.
      FileExistsError: the target is there, and not to be replaced.
      OSError: one of them cannot be read or written.

    >>> import tempfile, os, ggjax, safetensors.numpy
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ggjax.safetensors")
    >>> _ = ggjax.save_file({"w": np.ones((64, 64), np.float32)}, path, lossless=True)
    >>> _ = decompress_file(path, path + ".plain")
    >>> float(safetensors.numpy.load_file(path + ".plain")["w"].sum())
    4096.0
    """
    _refuse_same(source, target)
    with _sources.opened(source) as checkpoint:
        original = _sources.info(checkpoint.files).original

        def tensors() -> Iterator[Tensor]:
            for name, array in _sources.load(checkpoint.leaves, checkpoint.leaves):
                dtype = _safetensors.NAMES[array.dtype]
                yield Tensor(name, dtype, array.shape, [_safetensors.as_bytes(array)])
                progress(name, array.nbytes)

        return _safetensors.write(target, tensors(), lambda: original, overwrite=overwrite)


def _refuse_same(source: str | os.PathLike[str], target: str | os.PathLike[str] | None) -> None:
    if target is not None and Path(target).exists() and os.path.samefile(source, target):
        raise ValueError(f"{target} is the source: choose another target")
