"""From checkpoint to checkpoint, of one file or of several, a few tensors at a time."""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ggjax.codec import _options
from ggjax.codec._groups import Kept
from ggjax.codec._meet import Taken, meet
from ggjax.codec.container import _body, _calibrating, _coding, _index, _safetensors, _write
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


def compress_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    dry_run: bool = False,
    select: Callable[[str], bool] = lambda name: True,
    mask: Literal["kernels"] | None = "kernels",
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Result:
    """``compress_file``, told file by file.

    Args:
      source: a safetensors file, or the index of several.
      out: the file to write, or for an index the folder; None for one beside the source.
      dry_run: write nothing, and learn what it would take.
      select, mask, overwrite, progress, options: as ``compress_file`` has them.
    """
    given, state = _options.of(**options), options.get("sensitivity")
    plan, index = _index.plan(source, out, compressed=True), _index.index_of(source)
    for path in index.files:  # what is wrong with the last one should be known before the first is coded
        with _safetensors.opened(path) as file:
            index.tensors_of(file)
            if _body.is_compressed(file.header):
                raise ValueError(f"{path} is compressed already: decompress it first")
    if not dry_run:
        _index.make_room(plan, overwrite=overwrite)
    kept: Kept = {}
    rounded = _coding.choose(index, select, mask, given, kept)
    written: list[Written] = []

    def write(options: dict[str, _options.Options | None]) -> Taken:
        again, bits = bool(written), dict.fromkeys(options, 0.0)
        written.clear()
        rest = 0.0
        for path, target in plan.pairs:
            with _safetensors.opened(path) as file:
                names = index.tensors_of(file)
                leaves = _coding.coded(file, names, options, bits, kept, silent if again else progress)
                chosen = None if dry_run else target
                nbytes = _write.write(chosen, leaves, file.header.metadata, overwrite=overwrite or again)
                rest += 8.0 * (nbytes - sum(file.header.entries[n].nbytes for n in names if n not in options))
            written.append(Written(path, target, nbytes))
        return Taken(list(bits.values()), rest - sum(bits.values()))

    if state is not None:
        files = _calibrating.contents(index, rounded, given, state, kept, progress)
        for path, target in plan.pairs:
            leaves, metadata = files[path]
            chosen = None if dry_run else target
            written.append(Written(path, target, _write.write(chosen, leaves, metadata, overwrite=overwrite)))
    elif _options.is_of_all(given):
        known = []
        for path in index.files:
            with _safetensors.opened(path) as file:
                known += _coding.surveyed(
                    file, [n for n in index.tensors_of(file) if n in rounded], rounded, kept
                )
        meet(known, given, lambda options: write({x.name: o for x, o in zip(known, options, strict=True)}))
    else:
        write({n: given if it_is else _options.kept_losslessly(given) for n, it_is in rounded.items()})
    if plan.index and not dry_run:
        _index.write_index_of(plan, overwrite=overwrite)
    return Result(written, plan.index, kept)


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    *,
    select: Callable[[str], bool] = lambda name: True,
    mask: Literal["kernels"] | None = "kernels",
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> int:
    """Compress the safetensors checkpoint of any model, a few tensors at a time.

    Args:
      source: a safetensors file, or the ``.safetensors.index.json`` of a checkpoint in several files. Where two
        of them have a tensor of one name, the index says which of the two counts.
      target: the file to write; for an index the folder, where every file gets a compressed one and an index of
        them is written. None to write nothing, and learn what it would take.
      select: whether to code the tensor of this name; the others are kept as they are.
      mask: which of the selected tensors are coded as asked: "kernels", by their names and dimensions, the
        others losslessly; None for all.
      overwrite: replace the target if it is there.
      progress: called for every tensor.
      options: the others of ``compress``; ``bits`` counts the bytes of the files, less those of tensors that
        are not floating or not selected. It may take a second writing of the files to meet them. With a
        ``sensitivity`` all tensors are held in memory; its names are those of the tensors, where dots may stand
        for slashes; ``loss`` is for trees only.

    Returns:
      The bytes of all files written, without the index.

    Tensors that cannot be rounded are kept losslessly, and a warning names them: those with NaN or infinite
    weights, with weights beyond float32, and with none of 2^-120 or more. So are, by default, codes of 8 bits
    (float8) with scales beside them, ``w`` and ``w_scale_inv`` say, and tensors of dtypes that no array has,
    of 4 and 6 bits.

    Raises:
      ValueError: as ``compress``, the source is compressed already, or a target is one of its files.
      FormatError: the source is not a safetensors file, or not an index of such.
      FileExistsError: the target is there, and not to be replaced.
      OSError: one of them cannot be read or written.

    >>> import tempfile, os, numpy as np, safetensors.numpy
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> safetensors.numpy.save_file({"w": np.zeros((64, 64), np.float32)}, path)
    >>> compress_file(path, path + ".small", bits=4) < os.path.getsize(path) / 8
    True
    """
    result = compress_checkpoint(
        source,
        target,
        dry_run=target is None,
        select=select,
        mask=mask,
        overwrite=overwrite,
        progress=progress,
        **options,
    )
    for line in _coding.told("kept losslessly", result.kept):
        warnings.warn(line, stacklevel=2)
    return sum(f.nbytes for f in result.files)


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
    for path, target in plan.pairs:
        with opened(path) as checkpoint:
            if plan.index:
                names = names_of(index, *checkpoint.files[0])
                checkpoint = checkpoint._replace(
                    leaves={n: s for n, s in checkpoint.leaves.items() if n in names}
                )
            nbytes = _write_plain(checkpoint, target, overwrite, progress, math.inf)  # checked above
            written.append(Written(path, target, nbytes))
    if plan.index:
        _index.write_index_of(plan, overwrite=overwrite)
    return Result(written, plan.index, {})


def _has_blocks(index: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint has leaves that are stored in blocks."""
    with opened(index) as checkpoint:
        stored = [s.stored for sources in checkpoint.leaves.values() for s in sources]
    return any(s is not None and s.start is not None for s in stored)


def _write_plain(
    checkpoint: Checkpoint,
    target: str | os.PathLike[str],
    overwrite: bool,
    progress: Progress,
    max_bytes: float | None,
) -> int:
    original = info_of(checkpoint).original

    def tensors() -> Iterator[Tensor]:
        for name, array in load(checkpoint, max_bytes=max_bytes):
            yield tensor_of(name, array)
            progress(name, array.nbytes)

    return _safetensors.write(target, tensors(), lambda: original, overwrite=overwrite)


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
      source: a compressed file, or the index of several, all tensors of which go to one file.
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
    _index.refuse_same(source, [target])
    with opened(source) as checkpoint:
        return _write_plain(checkpoint, target, overwrite, progress, max_bytes)
