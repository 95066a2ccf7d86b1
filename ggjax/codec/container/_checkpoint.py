"""From checkpoint to checkpoint, of one file or of several, a few tensors at a time: back to plain files."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ggjax._internal.atomic import check_space, check_target, naming, new_file, new_files
from ggjax.codec._groups import Kept
from ggjax.codec.container import _index, _safetensors
from ggjax.codec.container._dtypes import nbytes_of
from ggjax.codec.container._file import Progress, silent
from ggjax.codec.container._info import info_of
from ggjax.codec.container._safetensors import Tensor, tensor_of
from ggjax.codec.container._sources import Checkpoint, check_size, load, names_of, opened


class Written(NamedTuple):
    """A file that was written, or would be."""

    source: Path
    target: Path
    nbytes: int


class Result(NamedTuple):
    """What a command wrote, or would write."""

    files: list[Written]
    index: Path | None  # of a checkpoint in several files
    kept: Kept


def check_space_for(files: list[Written]) -> None:
    """Raise OSError where files cannot be written for want of space. Old ones stay until the last is there."""
    needed: dict[Path, int] = {}
    for f in files:
        if f.target.parent.is_dir():
            needed[f.target.parent] = needed.get(f.target.parent, 0) + f.nbytes
            check_space(f.target, needed[f.target.parent])


def write_index(plan: _index.Plan, files: dict[Path, Any], begin: Callable[..., BinaryIO]) -> None:
    """Write the index of files that are being written, after which it will take its path."""
    assert plan.index is not None
    text = _index.text_for(plan, {target: f.name for target, f in files.items()})
    with naming(plan.index):
        begin(plan.index, plan.source).write(text)


def decompress_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
    max_bytes: float | None = None,
) -> Result:
    """Write the plain checkpoint of a compressed one: a file for each, with an index as the source has it.

    One file for all, where leaves lie in blocks in several files.

    Args:
      source: a compressed file, or the index of several.
      out: the file to write, or for an index the folder; None for one beside the source.
      overwrite, progress, max_bytes: as ``decompress_file`` has them.
    """
    plan = _index.plan(source, out, compressed=False)
    if plan.index and _has_blocks(source):
        stem = plan.index.name.partition(_index.INDEX)[0]
        plan = plan._replace(pairs=[(plan.source, plan.index.with_name(stem + _index.PLAIN))], index=None)
    with opened(source) as checkpoint:
        check_size(checkpoint, checkpoint.leaves, max_bytes)
    _index.make_room(plan, overwrite=overwrite)
    index, written = _index.index_of(source), []

    @contextlib.contextmanager
    def part(path: Path) -> Iterator[Checkpoint]:
        with opened(path) as checkpoint:
            names = names_of(index, *checkpoint.files[0]) if plan.index else checkpoint.leaves
            yield checkpoint._replace(leaves={n: s for n, s in checkpoint.leaves.items() if n in names})

    for path, target in plan.pairs:
        with part(path) as checkpoint:
            written.append(Written(path, target, _plain_size(checkpoint).nbytes))
    check_space_for(written)
    with new_files(overwrite=overwrite) as begin:
        files = {target: begin(target, path) for path, target in plan.pairs}
        for path, target in plan.pairs:
            with part(path) as checkpoint:
                _write_plain(files[target], target, checkpoint, progress)
        if plan.index:
            write_index(plan, files, begin)
    return Result(written, plan.index, {})


def _has_blocks(index: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint has leaves that are stored in blocks."""
    with opened(index) as checkpoint:
        stored = [s.stored for sources in checkpoint.leaves.values() for s in sources]
    return any(s is not None and s.start is not None for s in stored)


def _plain_size(checkpoint: Checkpoint) -> _safetensors.Size:
    """What ``_write_plain`` will write."""
    entries: dict[str, Any] = {}
    for name, (s, *_) in checkpoint.leaves.items():
        _safetensors.add(entries, Tensor(name, s.dtype, s.full, ()), nbytes_of(s.dtype, s.full))
    return _safetensors.size_of("the file", info_of(checkpoint).original, entries)


def _write_plain(f: BinaryIO, target: Any, checkpoint: Checkpoint, progress: Progress) -> int:
    original = info_of(checkpoint).original

    def tensors() -> Iterator[Tensor]:
        for name, array in load(checkpoint, max_bytes=math.inf):  # the caller has checked how large it is
            yield tensor_of(name, array)
            progress(name, array.nbytes)

    header = _plain_size(checkpoint).header
    return _safetensors.write_to(f, target, tensors(), lambda: original, reserve=header)


def decompress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress = silent,
    max_bytes: float | None = None,
) -> int:
    """Write the plain safetensors file of a compressed one, a few tensors at a time.

    Args:
      source: a compressed file, or the index of several (or the folder of either), all tensors of which go to
        one file. ``ggjax decompress`` makes a folder of such a folder.
      target: the file to write; it gets the metadata of the checkpoint that was compressed.
      overwrite: replace the target if it is there.
      progress: called for every tensor.
      max_bytes: of all arrays of the source; None for the usual limit, as ``load_file`` has it.

    Returns:
      The bytes of the target.

    Raises:
      ValueError: the target is the source, or one of its files.
      FormatError: the source is damaged, not compressed, or too large.
      FileExistsError: the target is there, and not to be replaced.
      OSError: one of them cannot be read or written.

    >>> import tempfile, os, ggjax, numpy as np, safetensors.numpy
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ggjax.safetensors")
    >>> _ = ggjax.save_file({"w": np.ones((64, 64), np.float32)}, path, lossless=True)
    >>> _ = decompress_file(path, path + ".plain")
    >>> float(safetensors.numpy.load_file(path + ".plain")["w"].sum())
    4096.0
    """
    source = _index.checkpoint_at(source)
    _index.refuse_same(source, [target])
    check_target(target, overwrite=overwrite)
    with opened(source) as checkpoint:
        check_size(checkpoint, checkpoint.leaves, max_bytes)
        check_space(target, _plain_size(checkpoint).nbytes)
        with new_file(target, overwrite=overwrite, like=source) as f:
            return _write_plain(f, target, checkpoint, progress)
