"""Arrays that were coded in blocks, one for every shard: their levels as one array, divided as they were."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax.codec._compressed import Blocks
from ggjax.codec.serving import _pieces
from ggjax.codec.serving._array import LevelArray
from ggjax.codec.serving._pieces import Piece


def piece_of(x: Blocks) -> Piece | None:
    """The levels of all blocks; None where not all of them are on the same levels, or in this process."""
    if not all(map(_pieces.is_on_levels, x.blocks)) or x.size_at_hand != x.size:
        return None
    found = _pieces.of_coded(x.blocks)
    pieces = [p for p in found if p is not None]
    if len(pieces) < len(found):
        return None
    levels = np.empty(x.shape, np.int16)
    for start, p in zip(x.starts, pieces, strict=True):
        levels[_box(start, p.levels.shape)] = p.levels
    rows = _joined(x, pieces, lambda p: p.row_steps)
    columns = _joined(x, pieces, lambda p: p.column_steps)
    if rows is None or columns is None:
        return None
    limit = None
    if any(p.limit is not None for p in pieces):
        limit = _joined(x, pieces, lambda p: p.limit)
    return Piece(levels, rows, columns, limit, pieces[0].axis)


def _joined(x: Blocks, pieces: Sequence[Piece], of: Callable[[Piece], Any]) -> np.ndarray | None:
    """Numbers that weights share, of all blocks; None where blocks do not agree on them."""
    some = [(start, of(p)) for start, p in zip(x.starts, pieces, strict=True) if of(p) is not None]
    shape = [max(a.shape[i] for _, a in some) for i in range(len(x.shape))]
    shape = [1 if n == 1 else full for n, full in zip(shape, x.shape, strict=True)]
    out = np.full(shape, np.inf, np.float32)  # a limit that makes nothing smaller is not told
    for start, a in some:
        box = _box([0 if n == 1 else i for i, n in zip(start, shape, strict=True)], a.shape)
        if not ((out[box] == a) | np.isinf(out[box])).all():
            return None
        out[box] = a
    return out


def _box(start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(i, i + n) for i, n in zip(start, shape, strict=True))


def placed(q: LevelArray, sharding: Any) -> LevelArray:
    """The array divided over devices by the sharding of its weights, as far as that divides what it holds."""
    if not isinstance(sharding, NamedSharding):
        return q
    spec = (*sharding.spec, *(None,) * (q.ndim - len(sharding.spec)))
    parts = [_parts(sharding, s) for s in spec]
    if q.levels.shape[q.axis] % parts[q.axis]:
        q = q.unpacked()

    def put(a: jax.Array) -> jax.Array:
        own = (
            s if n == full and n % k == 0 else None
            for s, n, full, k in zip(spec, a.shape, q.shape, parts, strict=True)
        )
        if a is q.levels:
            own = spec
        return jax.device_put(a, NamedSharding(sharding.mesh, P(*own), memory_kind=sharding.memory_kind))

    return jax.tree.map(put, q)


def _parts(sharding: NamedSharding, entry: Any) -> int:
    """Into how many parts an entry of a spec divides an axis."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return int(np.prod([sharding.mesh.shape[n] for n in names], dtype=np.int64))
