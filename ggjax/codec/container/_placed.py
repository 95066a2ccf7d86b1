"""Leaves onto devices: large ones shard by shard, each process only what its own devices are to hold."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ggjax.codec import _boxes
from ggjax.codec._boxes import Box
from ggjax.codec._host import outside_trace
from ggjax.codec.container import _partial
from ggjax.codec.container._dtypes import DTYPES, Opaque, has_arrays
from ggjax.codec.container._partial import Reader
from ggjax.codec.container._sources import GROUP, Checkpoint, Source, check_size, load
from ggjax.codec.entropy._lanes import CHUNK


def load_onto(
    checkpoint: Checkpoint,
    places: Mapping[str, Any],
    max_bytes: float | None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """Leaves by their names, in their order, each at its place (a sharding, a device or None).

    Args:
      checkpoint: an open one.
      places: where each leaf is to be.
      max_bytes: of all arrays; None for what is usual.
      shapes: to give them, where these are not as in the file.

    Raises:
      FormatError: a tensor is damaged, or all of them take more than ``max_bytes``.
    """
    check_size(checkpoint, places, max_bytes)
    leaves, out = checkpoint.leaves, dict.fromkeys(places)
    whole = [n for n, place in places.items() if not _is_by_shard(leaves[n], place)]
    for n, x in load(checkpoint, whole, math.inf):
        array = array_of(x)
        out[n] = put(array if shapes is None else array.reshape(shapes[n]), places[n])
    for n in places.keys() - set(whole):
        out[n] = _placed(leaves[n], places[n])
    return out


def array_of(x: np.ndarray | Opaque) -> np.ndarray:
    return x.data if isinstance(x, Opaque) else x


def put(x: np.ndarray, sharding: Any) -> Any:
    """The array on a device, or on the host where JAX would change its values."""
    if not _survives(x):
        return x
    with outside_trace(), np.errstate(under="ignore"):  # of float64, where JAX has float32
        if isinstance(sharding, jax.sharding.Sharding) and not sharding.is_fully_addressable:
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
        return jax.device_put(x, sharding)


def _survives(x: np.ndarray) -> bool:
    """Whether the dtype that JAX has for an array can hold its values: integers exactly, others in range."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if dtype == x.dtype or not x.size:
        return True
    if np.issubdtype(x.dtype, np.integer):
        bounds = np.iinfo(dtype)
        return bounds.min <= int(x.min()) and int(x.max()) <= bounds.max
    with np.errstate(over="ignore", under="ignore"):
        y = x.astype(dtype)
    return not ((np.isinf(y) & ~np.isinf(x)) | ((y == 0) & (x != 0))).any()


def _is_by_shard(sources: Sequence[Source], sharding: Any) -> bool:
    """Whether a leaf is to be read shard by shard: where that saves reading or memory. Small leaves, and those
    that are needed whole, are faster read together with others."""
    first = sources[0]
    if not isinstance(sharding, jax.sharding.Sharding) or sharding.is_fully_replicated:
        return False
    if first.small or not has_arrays(first.dtype, first.full):
        return False
    dtype = np.dtype(DTYPES[first.dtype])
    if dtype != jax.dtypes.canonicalize_dtype(dtype):  # whether it can be, all of its values tell
        return False
    if sharding.is_fully_addressable:
        return math.prod(first.full) > GROUP
    return math.prod(first.full) > CHUNK or len(sources) > 1


def _placed(sources: Sequence[Source], sharding: jax.sharding.Sharding) -> jax.Array:
    """The array of a leaf over the devices of a sharding.

    Args:
      sources: the blocks of the leaf, or the one that it is.
      sharding: one by which the shape of the leaf can be divided.

    Raises:
      FormatError: what is read is damaged.
    """
    shape = sources[0].full
    boxes = {
        device: _boxes.of_index(index or (), shape)
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    devices: dict[tuple[int, ...], list[Any]] = {}
    for device, box in boxes.items():
        devices.setdefault(_boxes.start_of(box), []).append(device)
    arrays: dict[Any, jax.Array] = {}
    with outside_trace():
        for box, x in read(sources, list(boxes.values())):
            for device in devices[_boxes.start_of(box)]:
                place = jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
                arrays[device] = jax.device_put(x, place)
        return jax.make_array_from_single_device_arrays(shape, sharding, [arrays[d] for d in boxes])


def read(sources: Sequence[Source], boxes: Sequence[Box]) -> Iterator[tuple[Box, np.ndarray]]:
    """(box, its weights) of every different box of a leaf; those that need the same chunks together.

    Raises:
      FormatError: what is read is damaged.
    """
    readers = [_partial.reader_of(s) for s in sources]
    distinct = {_boxes.start_of(b): b for b in boxes}
    for some in _together(readers, [distinct[start] for start in sorted(distinct)]):
        outer = _boxes.bounding(some)
        x = _read(readers, outer)
        for box in some:
            yield box, x[_boxes.inside(box, outer)]


def _read(readers: Sequence[Reader], box: Box) -> np.ndarray:
    """The weights in a box of a leaf."""
    parts = [
        (r, block, part) for r, block in _blocks(readers) if (part := _boxes.common(block, box)) is not None
    ]
    r, block, part = parts[0]
    if part == box:
        return _partial.read(r, _boxes.inside(part, block))
    out = np.empty(_boxes.shape_of(box), DTYPES[r.source.dtype])
    for r, block, part in parts:
        out[_boxes.inside(part, box)] = _partial.read(r, _boxes.inside(part, block))
    return out


def _blocks(readers: Sequence[Reader]) -> Iterator[tuple[Reader, Box]]:
    for r in readers:
        stored = r.source.stored
        start = stored.start if stored and stored.start is not None else (0,) * len(r.source.shape)
        yield r, _boxes.of_block(start, r.source.shape)


def _together(readers: Sequence[Reader], boxes: Sequence[Box]) -> Iterator[list[Box]]:
    """Runs of boxes, in each of which every box finds at least half of its chunks among those before it."""
    some: list[Box] = []
    held: set[tuple[int, int]] = set()
    for box in boxes:
        needed = set()
        for i, (r, block) in enumerate(_blocks(readers)):
            if (part := _boxes.common(block, box)) is not None:
                needed |= {(i, int(n)) for n in _partial.chunks(r, _boxes.inside(part, block))}
        if some and 2 * len(needed & held) < len(needed):
            yield some
            some, held = [], set()
        some.append(box)
        held |= needed
    if some:
        yield some
