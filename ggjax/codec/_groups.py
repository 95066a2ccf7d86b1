"""Leaves in their coded form, a group at a time: what is known of them, and their coding."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ggjax.codec import _encode
from ggjax.codec._compressed import Blocks
from ggjax.codec._host import in_parallel, outside_trace
from ggjax.codec._options import Options, kept_losslessly
from ggjax.codec._shards import frame_of, host_blocks_of
from ggjax.codec._survey import Leaf, survey
from ggjax.codec.quantize import _steps
from ggjax.codec.quantize._quantizers import is_codable
from ggjax.codec.quantize._steps import Unfit
from ggjax.codec.quantize._uniform import SMALLEST

GROUP = 1 << 24
"""Arrays are coded together up to so many weights, which bounds the memory."""

Kept = dict[str, str]
"""Leaves that are kept losslessly though they were to be rounded, by name, and why."""


def surveyed(
    leaves: Sequence[tuple[str, Any, bool]],
    *,
    lossless: bool,
    leaves_in_all: int | None = None,
    kept: Kept | None = None,
) -> list[Leaf]:
    """What is known of some leaves, each (name, leaf, whether it is to be rounded), together.

    ``kept`` is as for ``code``.
    """

    def look(item: tuple[str, Any, bool]) -> Leaf:
        name, leaf, rounded = item
        among = leaves_in_all or len(leaves)
        try:
            return survey(name, leaf, rounded=rounded, lossless=lossless, leaves=among, least=_least(kept))
        except Unfit as e:
            _keep(kept, name, e)
            return survey(name, leaf, rounded=False, lossless=lossless, leaves=among)

    alone = all(getattr(leaf, "is_fully_addressable", True) for _, leaf, _ in leaves)
    return in_parallel(look, leaves) if alone else [look(item) for item in leaves]


def code_in_groups(names: list[str], leaves: list[Any], options: Sequence[Options | None]) -> list[Any]:
    """Leaves in their coded form, a group at a time."""
    known: list[np.ndarray] = []
    coded: list[Any] = []
    for group in index_groups([(i, math.prod(np.shape(x))) for i, x in enumerate(leaves)]):
        how = [options[i] for i in group]
        coded.extend(code([names[i] for i in group], [leaves[i] for i in group], how, known))
    return coded


def index_groups(sizes: list[tuple[Any, int]], most: int = GROUP) -> Iterator[list[Any]]:
    """Runs of items (name, size), each run of at most ``most`` in all or of one item."""
    group: list[Any] = []
    total = 0
    for i, size in sizes:
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(i)
        total += size
    if group:
        yield group


def _least(kept: Kept | None) -> float:
    """What the largest weight of a leaf must be at least, to be rounded; see ``code``."""
    return 0.0 if kept is None else SMALLEST


def _keep(kept: Kept | None, name: str, e: Unfit) -> None:
    """Note a leaf that cannot be rounded, or raise what is wrong with it."""
    if kept is None:
        raise e
    kept[name] = e.why


def code(
    names: list[str],
    leaves: list[Any],
    options: Sequence[Options | None],
    known: list[np.ndarray],
    kept: Kept | None = None,
) -> list[Any]:
    """Code some leaves together: each comes as ``Coded``, ``Blocks``, or as it is where it is not worth coding.

    Args:
      names: of the leaves, for messages.
      leaves: emptied, so that the memory of each is free as soon as it can be.
      options: how, for each; None: as it is.
      known: the tables made so far, to be used again; new ones are appended.
      kept: gets the leaves that cannot be rounded (NaN among their weights, or all of them subnormal), and why;
        they are coded losslessly. None: the first of them is an error, and small weights are rounded to 0.
    """
    with outside_trace():
        return _code(names, leaves, options, known, kept)


def _code(
    names: list[str],
    leaves: list[Any],
    options: Sequence[Options | None],
    known: list[np.ndarray],
    kept: Kept | None,
) -> list[Any]:
    out = list(leaves)
    leaves.clear()
    blocks: dict[int, list[Any]] = {}  # of each leaf that is coded, by its place
    frames: dict[int, Blocks] = {}  # for leaves in several blocks
    steps: dict[int, np.float32] = {}
    originals: dict[int, Any] = {}  # until it is known that they are coded
    given: dict[int, Options] = {}
    for i, (leaf, how) in enumerate(zip(out, options, strict=True)):
        if how is not None and is_codable(leaf, how.kind):
            given[i] = how
            parts = host_blocks_of(leaf)
            blocks[i] = [x for _, x in parts]
            if len(parts) != 1 or blocks[i][0].shape != leaf.shape:
                frames[i] = frame_of(leaf, [start for start, _ in parts])
                if not leaf.is_fully_addressable:  # all processes together, one leaf at a time
                    steps[i] = _steps.step_for(names[i], blocks[i], how.kind, how.want, everywhere=True)
            originals[i], out[i] = leaf, None
    rest = [i for i in blocks if i not in steps]

    def step_of(i: int) -> np.float32:
        try:
            return _steps.step_for(names[i], blocks[i], given[i].kind, given[i].want, least=_least(kept))
        except Unfit as e:
            _keep(kept, names[i], e)
            given[i] = kept_losslessly(given[i])
            return np.float32(0)

    steps |= dict(zip(rest, in_parallel(step_of, rest), strict=True))
    work = [(i, j) for i, parts in blocks.items() for j, x in enumerate(parts) if x.size]
    tokens = in_parallel(lambda w: _tokens_of(blocks[w[0]][w[1]], steps[w[0]], given[w[0]]), work)
    worth = []
    for (i, j), t in zip(work, tokens, strict=True):
        if t is not None:  # otherwise it is kept as it is
            blocks[i][j] = None
            originals.pop(i, None)
            worth.append((i, j, t))
    coder = next((how.coder for how in given.values()), "rans")
    coded = _encode.finish([t for *_, t in worth], known, coder)
    for (i, j, _), c in zip(worth, coded, strict=True):
        blocks[i][j] = c
    for i, parts in blocks.items():
        whole = originals.get(i, parts[0])
        out[i] = dataclasses.replace(frames[i], blocks=tuple(parts)) if i in frames else whole
    return out


def _tokens_of(x: np.ndarray, step: np.float32, given: Options) -> _encode.Tokens | None:
    centroids = _steps.centroids([x], step, given.dead_zone) if given.centroids else ()
    return _encode.shortest_tokens(x, given.kind, step, given.dead_zone, centroids)
