"""Moments of every leaf as stacked vectors, over the shards of a mesh too, and which leaves can be fitted."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import trees

Axes = tuple[str, ...]
AxisName = str | Sequence[str] | None


class Moments(NamedTuple):
    """Of every leaf; vectors of the length of the list of leaves, float32 (float64 if a leaf is)."""

    first: jax.Array  # sum of |x|
    second: jax.Array  # sum of x^2
    sound: jax.Array  # whether the sums are finite, so that a law can be fitted to the leaf; bool


def moments(leaves: Sequence[Any], axes: Sequence[Axes]) -> Moments:
    """The moments about 0 of every leaf over all its shards.

    A leaf with a NaN, an infinity, or squares that might overflow the sum over all leaves is not sound: its
    moments are 0.

    Args:
      leaves: floating arrays, at least one.
      axes: for every leaf the mesh axes to sum over, as ``shard_axes`` gives them.
    """
    dtype = trees.wide_dtype(*(jnp.result_type(x) for x in leaves))
    sums = [jnp.stack([jnp.sum(jnp.abs(x)), jnp.sum(x * x)]).astype(dtype) for x in map(trees.wide, leaves)]
    first, second = jnp.stack(_over_shards(sums, axes), axis=1)
    sound = second < float(jnp.finfo(dtype).max) / len(leaves)  # False for NaN
    return Moments(jnp.where(sound, first, 0), jnp.where(sound, second, 0), sound)


def sizes(leaves: Sequence[Any], axes: Sequence[Axes]) -> np.ndarray:
    """How many elements every leaf has over all its shards, as float64."""
    return np.array(
        [
            float(trees.size([x]) * int(np.prod([lax.axis_size(a) for a in names], dtype=object)))
            for x, names in zip(leaves, axes, strict=True)
        ]
    )


def shard_axes(names: Sequence[str], leaves: Sequence[Any], axis_name: AxisName) -> list[Axes]:
    """The mesh axes of ``axis_name`` that each leaf is split over, inside ``jax.shard_map`` or the like.

    Where JAX tracks which arrays vary over an axis (``check_vma=True``), a leaf that does not is a copy on
    every device, and is not summed. Elsewhere (``check_vma=False``, ``vmap``) every leaf counts as split.

    Raises:
      ValueError: a leaf is split over an axis that ``axis_name`` does not name.
    """
    wanted: Axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    tracked = [a for a in wanted if _varying(lax.axis_index(a))]
    axes = []
    for name, leaf in zip(names, leaves, strict=True):
        split = _varying(leaf)
        if split - set(wanted):
            raise ValueError(
                f"leaf {name!r} is split over the mesh axes {sorted(split)} inside shard_map, so that one "
                f"device sees only a part of it: pass axis_name={tuple(sorted(split))!r} to backslash"
            )
        axes.append(tuple(a for a in wanted if a in split or a not in tracked))
    return axes


def _varying(x: Any) -> frozenset[str]:
    """The mesh axes over which the array varies, as far as JAX tracks it (inside ``jax.shard_map``)."""
    return jax.typeof(x).manual_axis_type.varying


def _over_shards(parts: Sequence[jax.Array], axes: Sequence[Axes]) -> list[jax.Array]:
    """Every part summed over its axes: one ``psum`` for each set of axes, in the same order on all devices."""
    out = list(parts)
    for names in dict.fromkeys(axes):
        if names:
            where = [i for i, a in enumerate(axes) if a == names]
            for i, total in zip(where, lax.psum([parts[i] for i in where], names), strict=True):
                out[i] = total
    return out
