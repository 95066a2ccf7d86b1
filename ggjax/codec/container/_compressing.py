"""From plain checkpoints, of one file or of several, to compressed ones, a few tensors at a time."""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ggjax._internal.atomic import new_files
from ggjax.codec import _options
from ggjax.codec._groups import Kept
from ggjax.codec._meet import Taken, meet
from ggjax.codec.container import _body, _coding, _index, _safetensors, _write
from ggjax.codec.container._checkpoint import Result, Written, check_space_for, write_index
from ggjax.codec.container._file import Progress, silent
from ggjax.codec.quantize._quantizers import MIN_SIZE


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
    plan = _index.plan(source, out, compressed=True)
    _check_sources(plan.source)
    _index.make_room(plan, overwrite=overwrite, dry_run=dry_run)
    with new_files(overwrite=overwrite) as begin:
        result = _compress(plan, None if dry_run else begin, select, mask, progress, options)
    if dry_run:
        check_space_for(result.files)
    return result


def _check_sources(source: Path) -> None:
    """What is wrong with the last file should be known before the first is coded."""
    index = _index.index_of(source)
    for path in index.files:
        with _safetensors.opened(path) as file:
            index.tensors_of(file)
            if _body.is_compressed(file.header):
                raise ValueError(f"{path} is compressed already: decompress it first")


def _compress(
    plan: _index.Plan,
    begin: Callable[..., BinaryIO] | None,
    select: Callable[[str], bool],
    mask: Any,
    progress: Progress,
    asked: dict[str, Any],
) -> Result:
    """Write the files of a plan, or only measure them.

    Args:
      begin: as ``new_files`` gives it, or None.
      select, mask, progress, asked: as ``compress_file`` has them.
    """
    given, state = _options.of(**asked), asked.get("sensitivity")
    index = _index.index_of(plan.source)
    kept: Kept = {}
    rounded = _coding.choose(index, select, mask, given, kept)
    if begin is not None:
        check_space_for(_least(plan, index, rounded))
    written: list[Written] = []
    files: dict[Path, Any] = {}

    def target_file(path: Path, target: Path) -> BinaryIO | None:
        if begin is not None:
            files[target] = begin(target, path)
        return files.get(target)

    def write(options: dict[str, _options.Options | None]) -> Taken:
        again, bits = bool(written), dict.fromkeys(options, 0.0)
        written.clear()
        rest = 0.0
        for path, target in plan.pairs:
            with _safetensors.opened(path) as file:
                names = index.tensors_of(file)
                leaves = _coding.coded(file, names, options, bits, kept, silent if again else progress)
                nbytes = _write.write(
                    target_file(path, target),
                    target,
                    leaves,
                    file.header.metadata,
                    reserve=_coding.header_bytes(file, names),
                )
                rest += 8.0 * (nbytes - sum(file.header.entries[n].nbytes for n in names if n not in options))
            written.append(Written(path, target, nbytes))
        return Taken(list(bits.values()), rest - sum(bits.values()))

    if state is not None:
        from ggjax.codec.container import _calibrating  # which loads all of ggjax.sensitivity

        contents = _calibrating.contents(index, rounded, given, state, kept, progress)
        for path, target in plan.pairs:
            content = _write.whole(_write.ready(target, *contents.pop(path)))
            f = target_file(path, target)
            if f is not None:
                _write.write_whole(f, content)
            written.append(Written(path, target, content.size.nbytes))
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
    if plan.index and begin is not None:
        write_index(plan, files, begin)
    return Result(written, plan.index, kept)


def _least(plan: _index.Plan, index: _index.Index, rounded: dict[str, bool]) -> list[Written]:
    """What the files take at least: the tensors that are kept as they are."""
    out = []
    for path, target in plan.pairs:
        with _safetensors.opened(path) as file:
            kept = [file.header.entries[n] for n in index.tensors_of(file) if n not in rounded]
            nbytes = sum(e.nbytes for e in kept if math.prod(e.shape) >= MIN_SIZE)  # small ones may be coded
            out.append(Written(path, target, nbytes))
    return out


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
      source: a safetensors file, or the ``.safetensors.index.json`` of a checkpoint in several files, or the
        folder of either. Where two files have a tensor of one name, the index says which of the two counts.
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
    if target is None:
        plan = _index.plan(source, None, compressed=True)
        _check_sources(plan.source)
        result = _compress(plan, None, select, mask, progress, options)
    else:
        keywords: dict[str, Any] = {"select": select, "mask": mask, "overwrite": overwrite, **options}
        result = compress_checkpoint(source, target, progress=progress, **keywords)
    for line in _coding.told("kept losslessly", result.kept):
        warnings.warn(line, stacklevel=2)
    return sum(f.nbytes for f in result.files)
