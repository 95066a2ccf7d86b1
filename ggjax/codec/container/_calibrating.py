"""Calibrated tensors of a checkpoint: all of them at once, since one constant rules their steps."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec import _calibrated, _groups, _options
from ggjax.codec.container import _coding, _index, _safetensors, _write
from ggjax.codec.container._file import Progress
from ggjax.sensitivity import Sensitivity

ATTEMPTS = 4

SPARE = 0.001
"""The share of the bits that is left free when the files have taken more than was asked."""


class Content(NamedTuple):
    """What goes into a file."""

    leaves: list[tuple[str, Any]]
    metadata: dict[str, str]


def contents(
    index: _index.Index,
    rounded: dict[str, bool],
    given: _options.Options,
    state: Sensitivity,
    kept: _groups.Kept,
    progress: Progress,
) -> dict[Path, Content]:
    """The leaves of every file, those that are to be rounded by the sensitivity. All are held in memory.

    Args:
      index: of the checkpoint.
      rounded: of every tensor that counts, whether it is to be rounded; the others are coded losslessly.
      given: the bits per weight, or the rise of the loss.
      state: of the tensors that are rounded; slashes in its names stand for dots in theirs too.
      kept: gets the tensors that cannot be rounded, and why.
      progress: called for every tensor.

    Raises:
      ValueError: the sensitivity does not cover a tensor, or covers it in another shape; bits too few.
    """
    files: dict[Path, Content] = {}
    chosen: dict[str, Any] = {}
    size = uncounted = 0  # elements that count, and bytes of tensors that do not
    for path in index.files:
        with _safetensors.opened(path) as file:
            names = index.tensors_of(file)
            own: dict[str, np.ndarray] = {}
            for n in (n for n in names if rounded.get(n)):
                x = _safetensors.read_array(file, n)
                if isinstance(x, np.ndarray) and _calibrated.is_rounded(x):
                    own[n] = x
            for n in [n for n, x in own.items() if not np.isfinite(x.astype(np.float32)).all()]:
                kept[n] = "its weights are not all finite numbers"
                del own[n]
            chosen |= own
            how: dict[str, _options.Options | None] = dict.fromkeys(rounded, _options.kept_losslessly(given))
            others = _coding.coded(file, [n for n in names if n not in own], how, {}, kept, progress)
            leaves: list[tuple[str, Any]] = []
            for n in names:  # in their order
                leaves.append((n, own[n]) if n in own else next(others))
                if n in own:
                    progress(n, own[n].nbytes)
            files[path] = Content(leaves, file.header.metadata)
            entries = file.header.entries
            size += sum(math.prod(entries[n].shape) for n in names if n in rounded)
            uncounted += sum(entries[n].nbytes for n in names if n not in rounded)
    if not chosen:
        return files
    known = of_names(state, chosen)
    if given.loss_rise is not None:
        return _replaced(files, _calibrated.at_loss(chosen, known, given.loss_rise, given.coder))
    assert given.want.bits is not None
    limit = given.want.bits * size
    room = limit - 8.0 * (_bytes_of(files) - uncounted - sum(x.nbytes for x in chosen.values()))
    over = 0.0
    for _ in range(ATTEMPTS):
        done = _replaced(files, _calibrated.in_bits(chosen, known, room, given.coder))
        over = 8.0 * (_bytes_of(done) - uncounted) - limit
        if over <= 0:
            return done
        room -= over + SPARE * limit
    raise ValueError(f"bits={given.want.bits!r} cannot be met: the files take {over / 8:,.0f} bytes more")


def of_names(state: Sensitivity, names: Any) -> Sensitivity:
    """A sensitivity by the names of tensors in a file, which may have dots where a tree has slashes."""
    dotted = {n.replace("/", "."): n for n in state.factors}
    found = {n: dotted.get(n.replace("/", ".")) for n in names if n not in state.factors}
    return state._replace(factors=state.factors | {n: state.factors[f] for n, f in found.items() if f})


def _replaced(files: dict[Path, Content], new: dict[str, Any]) -> dict[Path, Content]:
    return {p: c._replace(leaves=[(n, new.get(n, x)) for n, x in c.leaves]) for p, c in files.items()}


def _bytes_of(files: dict[Path, Content]) -> int:
    return sum(_write.write(None, "the file", *c) for c in files.values())
