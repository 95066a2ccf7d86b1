"""Calibrated compression: levels by the sensitivity of the weights, with steps of rows and columns."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ggjax.codec import _encode
from ggjax.codec._compressed import Blocks
from ggjax.codec._host import in_parallel, outside_trace
from ggjax.codec._shards import frame_of, host_blocks_of
from ggjax.codec.quantize._quantizers import QUANTIZERS
from ggjax.codec.quantize._scaled import Scaled
from ggjax.sensitivity import Levels, Sensitivity, _planned, _search
from ggjax.sensitivity._planned import Planned
from ggjax.sensitivity._search import Found

ATTEMPTS = 6

MARGIN = 0.003
"""The share of the bits that is left free at first, since what comes out differs a little from the estimate."""

MEASUREMENTS = 5
CLOSE = 0.05
"""A rise that is measured is met within this share; the loss is taken so often at most, besides once before."""

SPARE = 0.01
"""If more than this share is left free, it is tried again."""


def is_rounded(x: Any) -> bool:
    """Whether a leaf is rounded where it may be: of a dtype that has levels, and not too small."""
    return str(x.dtype) in QUANTIZERS["scaled"].dtypes and x.size >= _search.MIN_SIZE


def in_bits(leaves: dict[str, Any], state: Sensitivity, room: float, coder: str) -> dict[str, Any]:
    """Leaves in their coded form, of no more bits in all than there is room for.

    Raises:
      ValueError: as ``round_to``, or the steps of rows and columns and the tables take more than that.
    """
    size = sum(x.size for x in leaves.values())
    if room <= 0:
        raise ValueError(f"bits cannot be met: leaves that are kept take {-room / 8:,.0f} bytes more than that")
    asked, best, most = (1 - MARGIN) * room / size, None, 0.0
    known = _planned.planned(leaves, state)
    found = _search.to_bits(known, asked)
    for attempt in range(ATTEMPTS):
        if attempt:
            _, constant, _ = _search.bits_again(found.known, asked, cap=found.cap, start=found.constant)
            found = _search.at(found.known, found.cap, constant)
        new = _coded(found, coder)
        taken = 8.0 * sum(x.nbytes for x in new.values())
        if most < taken <= room:
            best, most = new, taken
        if taken <= room and taken >= (1 - SPARE) * room:
            return new
        asked += (room - taken) / size - MARGIN * attempt * asked
        if asked <= 0:
            break
    if best is None:
        raise ValueError(f"bits cannot be met: {size:,} weights have {room / size:.3g} bits each left, too few")
    return best


def at_loss(
    leaves: dict[str, Any],
    state: Sensitivity,
    loss_rise: float,
    coder: str,
    measured: Callable[[dict[str, Any]], float] | None = None,
) -> dict[str, Any]:
    """Leaves in their coded form, at a rise of the loss by the quadratic model, or as it is measured.

    Args:
      leaves, state, coder: as ``in_bits`` has them.
      loss_rise: what is asked.
      measured: the loss where some leaves are replaced; of the leaves themselves where none are.

    Raises:
      ValueError: as ``round_to``.
    """
    known = _planned.planned(leaves, state)
    if measured is not None:
        return _coded(_measured(known, loss_rise, measured), coder)
    return _coded(_search.to_rise(known, loss_rise), coder)


def _measured(known: Planned, loss_rise: float, measured: Callable[[dict[str, Any]], float]) -> Found:
    """The rounding whose measured rise is the nearest to what is asked, and seldom more than that by much."""
    before, asked = measured({}), loss_rise
    found = best = _search.to_rise(known, asked)
    least = math.inf
    for attempt in range(MEASUREMENTS):
        if attempt:
            found = _search.near(found, asked)
        rise = measured(_planned.values_of(found.levels, known.leaves)) - before
        if not math.isfinite(rise):
            raise ValueError(f"the loss after rounding is {rise + before!r}, expected a finite number")
        miss = abs(math.log(max(rise, 1e-9 * loss_rise) / loss_rise))
        if miss < least:
            best, least = found, miss
        if miss < CLOSE:
            break
        asked *= min(max(loss_rise / max(rise, 1e-30), 0.25), 4.0)
    return best


def _coded(found: Found, coder: str) -> dict[str, Any]:
    return coded(found.known.leaves, found.levels, found.rises, coder)


def coded(
    leaves: dict[str, Any], levels: dict[str, Levels], rises: dict[str, float], coder: str
) -> dict[str, Any]:
    """The rounded leaves, each ``Coded``, ``Blocks`` or as it is where it is not worth coding."""
    out: dict[str, Any] = dict(leaves)
    with outside_trace():
        work: list[tuple[str, int, Callable[[], _encode.Tokens]]] = []
        frames: dict[str, Any] = {}
        for name, q in levels.items():
            leaf = leaves[name]
            blocks = host_blocks_of(_like(q, leaf))
            if len(blocks) != 1 or blocks[0][1].shape != leaf.shape:
                frames[name] = frame_of(leaf, [start for start, _ in blocks])
            for j, (start, block) in enumerate(blocks):
                if block.size:
                    work.append((name, j, _task(q, start, block, rises[name] * block.size / leaf.size)))
        tokens = in_parallel(lambda w: w[2](), work)
        done = _encode.finish(tokens, [], coder)
        done_of: dict[str, dict[int, Any]] = {}
        for (name, j, _), c in zip(work, done, strict=True):
            done_of.setdefault(name, {})[j] = c
        for name, parts in done_of.items():
            if name in frames:
                frame: Blocks = frames[name]
                empty = np.zeros((0,) * leaves[name].ndim, leaves[name].dtype)
                blocks = tuple(parts.get(j, empty) for j in range(len(frame.starts)))
                out[name] = Blocks(blocks, frame.starts, frame.shape, frame.dtype, frame.sharding)
            elif parts[0].nbytes < leaves[name].nbytes:
                out[name] = parts[0]
    return out


def _like(q: Levels, leaf: Any) -> Any:
    """The levels in the shape of the leaf, cut into the same shards."""
    levels = q.view.leaf(q.levels)
    sharding = getattr(leaf, "sharding", None)
    return levels if sharding is None or levels.sharding == sharding else jax.device_put(levels, sharding)


def _task(q: Levels, start: tuple[int, ...], block: np.ndarray, rise: float) -> Callable[[], _encode.Tokens]:
    """Makes the tokens of a block of levels, which begins at ``start`` of its leaf."""
    view = q.view._replace(shape=block.shape)
    b, m, _ = view.sizes

    def own(x: Any, axes: tuple[int, ...]) -> np.ndarray:
        """What the block has of numbers for some axes of the leaf."""
        axes = (*view.batch, *axes)
        index = tuple(slice(start[a], start[a] + block.shape[a]) for a in axes)
        return np.asarray(x).reshape([q.view.shape[a] for a in axes])[index].reshape(-1)

    order = view.batch + view.rows + view.columns
    params = Scaled(
        step=float(str(np.float32(q.step))),
        limits=tuple(own(q.limit, ()).tolist()),
        rows=m,
        columns=block.size // (b * m),
        order=order if order != tuple(range(block.ndim)) else (),
        shape=block.shape,
        rise=float(f"{rise:.3g}"),
    )
    steps = np.concatenate([own(q.row_steps, view.rows), own(q.column_steps, view.columns)])
    matrices: Any = view.matrices(block)  # type: ignore[arg-type]
    return lambda: _encode.tokens_of_levels(matrices, steps, params, str(q.dtype))
