"""Sharded arrays: which shards are here, and which process owns which."""

from typing import Any

import jax
import numpy as np

from ggjax.codec._compressed import Blocks

Start = tuple[int, ...]
"""Where a shard begins in its array."""


def start_of(index: tuple[slice, ...]) -> Start:
    """The start of a shard, of its slices."""
    return tuple(i.start or 0 for i in index)


def shards_of(leaf: Any) -> list[tuple[Start, Any]]:
    """(start, data) of every distinct shard at hand; of the whole leaf when it is not sharded."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_replicated:
        data = leaf.addressable_shards[0].data if sharding is not None else leaf
        return [((0,) * data.ndim, data)]
    return list({start_of(s.index): s.data for s in leaf.addressable_shards}.items())


def host_blocks_of(leaf: Any) -> list[tuple[Start, np.ndarray]]:
    """``shards_of``, on the host, contiguous and in the byte order of this machine."""
    return [(start, _host(x)) for start, x in shards_of(leaf)]


def _host(x: Any) -> np.ndarray:
    array = np.asarray(x)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array).reshape(array.shape)


def frame_of(leaf: Any, starts: list[Start]) -> Blocks:
    """The ``Blocks`` of a sharded array, still without the blocks."""
    return Blocks((), tuple(starts), tuple(leaf.shape), np.dtype(leaf.dtype), leaf.sharding)


def in_blocks(x: Any) -> Any:
    """An array that is not coded, in blocks where its shards lie in several processes."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    starts, data = zip(*shards_of(x), strict=True)
    return Blocks(tuple(map(np.asarray, data)), starts, x.shape, np.dtype(x.dtype), x.sharding)


def owners_of(x: Blocks) -> dict[Start, int]:
    """For the start of every block of an array, the process that writes it: the first that holds it."""
    if x.sharding is None:  # all of it is here
        return dict.fromkeys(x.starts, jax.process_index())
    first: dict[Start, int] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        start = start_of(index)
        first[start] = min(first.get(start, device.process_index), device.process_index)
    return first
