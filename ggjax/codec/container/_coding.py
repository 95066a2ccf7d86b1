"""The tensors of a plain file in their coded form, a few at a time, and which of them are coded at all."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ggjax import masks
from ggjax._internal import trees
from ggjax.codec import _groups, _options, _plan
from ggjax.codec._survey import Leaf
from ggjax.codec.container import _index, _safetensors
from ggjax.codec.container._dtypes import DTYPES, RARE, has_arrays
from ggjax.codec.container._file import Progress
from ggjax.codec.container._safetensors import File
from ggjax.codec.container._sources import GROUP
from ggjax.codec.quantize._quantizers import is_codable
from ggjax.codec.quantize._steps import Want

_SCALE = re.compile(r"[._/]?scale[^./]*$")
"""The end of the name of a scale, after that of the codes that it is for, or of their module: codes ``w`` and
``w_scale_inv``, ``layer.weight`` and ``layer.scale_weight``."""


def choose(
    index: _index.Index, select: Callable[[str], bool], mask: Any, given: _options.Options, kept: _groups.Kept
) -> dict[str, bool]:
    """Of every floating tensor that is selected, whether it is to be coded as asked; others losslessly.

    Asked to be lossless, those of integers that a lossless quantizer takes count too.

    Args:
      index: of the checkpoint.
      select, mask: as ``compress_file`` has them.
      given: what is asked.
      kept: gets the tensors of dtypes that are not coded, and by default those that are codes of 8 bits with
        scales beside them: their error would be in units of the scales, unlike that of the others.
    """
    structs: dict[str, Any] = {}
    for path in index.files:
        with _safetensors.opened(path) as file:
            for name in index.tensors_of(file):
                entry = file.header.entries[name]
                if entry.dtype in RARE and select(name):
                    kept[name] = f"{entry.dtype} is not coded"
                if has_arrays(entry.dtype, entry.shape):
                    structs[name] = jax.ShapeDtypeStruct(entry.shape, DTYPES[entry.dtype])
    if given.kind == "lossless":
        return {n: True for n, x in structs.items() if is_codable(x, given.kind) and select(n)}
    chosen = {n: x for n, x in structs.items() if trees.is_weight(x) and select(n)}
    if mask is None:
        return dict.fromkeys(chosen, True)
    if mask != "kernels":
        raise ValueError(f'mask must be "kernels" or None, got {mask!r}')
    kernels = masks.kernels(structs)
    rounded = {n: bool(kernels[n]) for n in chosen}
    for n in _with_scales(structs):
        if rounded.get(n):
            rounded[n], kept[n] = False, "8-bit codes with scales beside them"
    return rounded


def _with_scales(structs: dict[str, Any]) -> list[str]:
    """The 8-bit floats that have scales."""
    scaled = {_SCALE.sub("", n) for n in structs if _SCALE.search(n)}
    codes = (n for n, x in structs.items() if trees.is_weight(x) and x.dtype.itemsize == 1)
    return [n for n in codes if n in scaled or re.sub(r"(^|[./])[^./]*$", "", n) in scaled]


def surveyed(file: File, names: list[str], rounded: dict[str, bool], kept: _groups.Kept) -> list[Leaf]:
    """What is known of tensors of a file, a few read at a time."""
    out: list[Leaf] = []
    for arrays in _read(file, names):
        some = [(n, x, rounded[n]) for n, x in arrays.items()]
        out += _groups.surveyed(some, lossless=True, leaves_in_all=len(rounded), kept=kept)
    return out


def common_step(arrays: Iterable[tuple[str, np.ndarray]], number: int, want: Want, kept: _groups.Kept) -> float:
    """The step that all of some tensors share, chosen as ``compress`` chooses it.

    Args:
      arrays: (name, tensor), all of dtypes that can be rounded.
      number: about how many; they share the memory for samples.
      want: ``bits`` or ``snr_db`` of all together.
      kept: gets those that cannot be rounded, and why.
    """
    known: list[Leaf] = []
    for name, x in arrays:
        known += _groups.surveyed([(name, x, True)], lossless=False, leaves_in_all=number, kept=kept)
    known = [x for x in known if x.name not in kept]
    room = (want.bits or 0.0) * sum(x.size for x in known)
    return _plan.step_of(known, _options.Options("uniform", want), room)


def coded(
    file: File,
    tensors: list[str],
    options: dict[str, _options.Options | None],
    bits: dict[str, float],
    kept: _groups.Kept,
    progress: Progress,
) -> Iterator[tuple[str, Any]]:
    """(name, tensor, coded where it is worth it) of a file, a few read at a time.

    ``bits`` gets what each takes, ``kept`` those that cannot be rounded.
    """
    known: list[np.ndarray] = []
    for arrays in _read(file, tensors):
        nbytes = {n: x.nbytes for n, x in arrays.items()}
        names = [n for n in arrays if n in options]
        how = [options[n] for n in names]
        some = _groups.code(names, [arrays.pop(n) for n in names], how, known, kept)
        arrays.update(zip(names, some, strict=True))
        bits |= {n: 8.0 * arrays[n].nbytes for n in names}
        for n in nbytes:
            yield n, arrays.pop(n)
            progress(n, nbytes[n])


def header_bytes(file: File, names: list[str]) -> int:
    """About the bytes of the header of a compressed file, of the tensors of a plain one; a multiple of 8.

    What is right for the large files, whose data would take long to be moved: 10 bytes for each chunk of
    2^16 weights or more, and half a kilobyte for the tables of each tensor.
    """
    entries = [file.header.entries[n] for n in names]
    length = min((e.begin for e in file.header.entries.values()), default=0)
    return (length + sum(512 + 10 * (math.prod(e.shape) >> 16) for e in entries)) // 8 * 8


def told(what: str, reasons: dict[str, str], most: int = 3) -> list[str]:
    """A line for every reason that ``what`` happened to tensors, with the names of the first ones."""
    names: dict[str, list[str]] = {}
    for name, why in sorted(reasons.items()):
        names.setdefault(why, []).append(f"{name!r:.100}")
    more = {why: f" and {len(n) - most} more" if len(n) > most else "" for why, n in names.items()}
    return [f"{what}: {', '.join(n[:most])}{more[why]}: {why}" for why, n in names.items()]


def parameters_of(source: str | os.PathLike[str]) -> dict[Path, int]:
    """The number of elements of the tensors in each file of a plain checkpoint."""
    index, out = _index.index_of(source), {}
    for path in index.files:
        with _safetensors.opened(path) as file:
            out[path] = sum(math.prod(file.header.entries[n].shape) for n in index.tensors_of(file))
    return out


def _read(file: File, names: list[str]) -> Iterator[dict[str, Any]]:
    """The tensors of these names, a few at a time."""
    sizes = [(n, math.prod(file.header.entries[n].shape)) for n in names]
    for group in _groups.index_groups(sizes, GROUP):
        yield {n: _safetensors.read_array(file, n) for n in group}
