"""Small leaves in a file: those of one dtype stand together as one tensor, coded where that is shorter.

A network has many small leaves (biases, norms, counters), and each alone takes more bytes to describe than it
could save. Together they share one table and one entry in the header, and their names are compressed.
"""

import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec import _encode
from ggjax.codec._coded import Coded
from ggjax.codec._host import outside_trace
from ggjax.codec.container._dtypes import NAMES, Opaque
from ggjax.codec.quantize._quantizers import MIN_SIZE, is_codable

MOST = 1 << 20
"""Elements that are put together, at most: to read one of the leaves, all are decoded."""


class Leaves(NamedTuple):
    """Small leaves that stand together, in the order of the checkpoint."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    gaps: list[int]  # how many other leaves of the file stand before each, from the one before it in the list


class Item(NamedTuple):
    """A tensor to be written."""

    name: str
    x: Any  # Coded, or an array
    block: tuple[str, tuple[int, ...], tuple[int, ...]] | None = None  # its leaf, its start, the leaf's shape
    leaves: Leaves | None = None


def packed(items: Iterable[Item]) -> Iterator[Item]:
    """The tensors, but the small ones together and after the others."""
    waiting: dict[np.dtype, list[tuple[int, Item]]] = {}
    for place, item in enumerate(items):
        alone = isinstance(item.x, (Coded, Opaque)) or item.block is not None
        if alone or math.prod(np.shape(item.x)) >= MIN_SIZE:
            yield item
            continue
        array = np.asarray(item.x)
        dtype = array.dtype.newbyteorder("=")
        some = waiting.setdefault(dtype, [])
        some.append((place, item._replace(x=array)))
        if sum(i.x.size for _, i in some) >= MOST:
            yield _pack(waiting.pop(dtype))
    for some in waiting.values():
        yield _pack(some)


def _pack(some: list[tuple[int, Item]]) -> Item:
    places, items = zip(*some, strict=True)
    if items[0].x.dtype not in NAMES:
        return items[0]  # the message is about this leaf
    flat = np.concatenate([i.x.reshape(-1) for i in items])
    names = [i.name for i in items]
    gaps = [b - a - 1 for a, b in itertools.pairwise((-1, *places))]
    crc = zlib.crc32(json.dumps(names).encode())
    name = f"ggjax.small.{NAMES[flat.dtype]}.{crc:08x}"
    return Item(name, _coded(flat), None, Leaves(names, [i.x.shape for i in items], gaps))


def _coded(flat: np.ndarray) -> Coded | np.ndarray:
    if not is_codable(flat, "lossless"):
        return flat
    with outside_trace():
        tokens = _encode.shortest_tokens(flat, "lossless", np.float32(0))
        return flat if tokens is None else _encode.finish([tokens], [], "rans")[0]
