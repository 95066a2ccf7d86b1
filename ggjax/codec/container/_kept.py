"""Leaves that stay small as they are read: coded, or in the forms that ``codec.dot`` multiplies with."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax

from ggjax.codec._compressed import Blocks, is_coded
from ggjax.codec._groups import index_groups
from ggjax.codec.container import _placed, _sources
from ggjax.codec.container._dtypes import DTYPES
from ggjax.codec.container._sources import GROUP, Checkpoint, Source

Form = Literal["floats", "resident", "coded"]
"""What the leaves of a file come as."""


def load(checkpoint: Checkpoint, names: Iterable[str], max_bytes: float | None, form: Form) -> dict[str, Any]:
    """Leaves by their names, in their order.

    Args:
      checkpoint: an open one.
      names: of the leaves.
      max_bytes: of all arrays, as if they were floats; None for what is usual.
      form: "coded", as they are in the file, or "resident", as ``codec.resident`` makes them of that. What is
        not coded, and leaves that share a tensor, come as arrays.

    Raises:
      FormatError: as ``_sources.load``; but of coded leaves that stay so, only what checksums tell.
    """
    out: dict[str, Any] = {}
    for some in _in_groups(checkpoint, list(names), max_bytes):
        coded = {n: x for n, x in some.items() if is_coded(x)}
        if form == "resident":
            from ggjax.codec.serving._resident import resident  # not needed by those who load floats

            coded = resident(coded)
        out |= {n: coded[n] if n in coded else _placed.put(_placed.array_of(x), None) for n, x in some.items()}
    return out


def _in_groups(checkpoint: Checkpoint, names: list[str], max_bytes: float | None) -> Iterator[dict[str, Any]]:
    leaves = checkpoint.leaves
    _sources.check_size(checkpoint, names, max_bytes)
    for group in index_groups(list(_sources.costs(leaves, names)), GROUP):
        whole = [n for n in group if not all(s.stored and s.stored.meta and not s.small for s in leaves[n])]
        arrays = dict(_sources.load(checkpoint, whole, math.inf))
        yield {n: arrays[n] if n in arrays else _coded(leaves[n]) for n in group}


def _coded(sources: list[Source]) -> Any:
    """A leaf in its coded form, of one block or of several."""
    blocks, first = tuple(_sources.read_coded(s) for s in sources), sources[0]
    if len(blocks) == 1:
        return blocks[0]
    starts = tuple(s.stored.start for s in sources if s.stored is not None and s.stored.start is not None)
    return Blocks(blocks, starts, first.full, jax.dtypes.canonicalize_dtype(DTYPES[first.dtype]))
