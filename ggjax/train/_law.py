"""The law of the weights for BackSlash: one fit over all leaves, or one for each, from their stacked moments.

A leaf with a NaN, an infinity, or numbers whose squares overflow or vanish cannot be fitted; it is left out.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import mesh, trees
from ggjax.train import _step
from ggjax.train._packs import Packing

Axes = tuple[str, ...]
AxisName = str | Sequence[str] | None


class Law(NamedTuple):
    """The law in use: scalars, or vectors with one law for each leaf; and the leaves that it was fitted to."""

    nu: jax.Array  # float32; 0 where there was nothing to fit
    bits: jax.Array  # entropy in bits per parameter, float32
    fitted: jax.Array  # bool (leaves,)


@functools.partial(jax.jit, static_argnames=("packing", "axes", "per_leaf"))
def fit(
    packs: list[jax.Array],
    gg_shape: chex.Numeric | None,
    *,
    packing: Packing,
    axes: tuple[Axes, ...],
    per_leaf: bool,
) -> Law:
    """Fit the law to the weights, by moments about 0.

    Args:
      packs: the leaves, at least one, packed.
      gg_shape: the shape to take instead of the fitted one, or None.
      packing: how they are packed.
      axes: for every leaf the mesh axes to sum over, as ``shard_axes`` gives them.
      per_leaf: one law for each leaf instead of one for all.
    """
    dtype = trees.wide_dtype(*(jnp.result_type(x) for x in packs))
    first, second = (over_shards(packing.sums(f, packs, dtype), axes) for f in (jnp.abs, jnp.square))
    fitted = can_be_fitted(first, second, len(axes))
    counts = sizes(packing.shapes, axes).astype(dtype)
    first, second, n = (jnp.where(fitted, v, 0) for v in (first, second, counts))
    if not per_leaf:
        first, second, n = jnp.sum(first), jnp.sum(second), jnp.sum(n)
    nu, bits = _step.law(first, second, n, gg_shape)
    nu = jnp.where(fitted if per_leaf else jnp.any(fitted), nu, 0)
    return Law(nu.astype(jnp.float32), bits.astype(jnp.float32), fitted)


def can_be_fitted(first: jax.Array, second: jax.Array, leaves: int) -> jax.Array:
    """Which of so many leaves can be fitted, from their sums of |theta| and theta^2."""
    # The sum over all leaves must not overflow either. The comparisons are False for NaN.
    info = jnp.finfo(second.dtype)
    return (second < float(info.max) / leaves) & ((second > float(info.tiny)) | (first == 0))


@functools.partial(jax.jit, static_argnames=("packing", "axes", "per_leaf"))
def fit_if_due(
    old: Law, count: jax.Array, every: chex.Numeric, packs: list[jax.Array], gg_shape: Any, **how: Any
) -> Law:
    """``fit`` when the count is a multiple of ``every``, and the old law otherwise."""
    return lax.cond(count % every == 0, lambda: fit(packs, gg_shape, **how), lambda: old)


def size(fitted: jax.Array, shapes: Sequence[tuple[int, ...]], axes: Sequence[Axes]) -> jax.Array:
    """How many weights the fitted leaves have together, float32; 1 if none."""
    counts = sizes(shapes, axes)
    left_out = jnp.sum(jnp.where(fitted, 0, counts.astype(np.float32)))
    return jnp.maximum(np.float32(counts.sum()) - left_out, 1)


def sizes(shapes: Sequence[tuple[int, ...]], axes: Sequence[Axes]) -> np.ndarray:
    """How many elements every leaf has over all its shards, as float64."""
    shards = [math.prod(lax.axis_size(a) for a in names) for names in axes]
    return np.array([float(math.prod(shape) * s) for shape, s in zip(shapes, shards, strict=True)])


def shard_axes(names: Sequence[str], leaves: Sequence[Any], axis_name: AxisName) -> tuple[Axes, ...]:
    """The mesh axes of ``axis_name`` that each leaf is split over, inside ``jax.shard_map`` or the like.

    A leaf that does not vary over an axis is a copy on every device, and is not summed over it; see
    ``mesh.spread``.

    Raises:
      ValueError: a leaf is split over an axis that ``axis_name`` does not name.
    """
    wanted = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    check_not_split(names, leaves, "pass axis_name={axes!r} to backslash", allowed=wanted)
    return tuple(mesh.spread(leaf, wanted) for leaf in leaves)


def check_not_split(names: Sequence[str], leaves: Sequence[Any], advice: str, allowed: Axes = ()) -> None:
    """Raise ValueError that names a leaf split over other axes than those allowed, and says what to do."""
    for name, leaf in zip(names, leaves, strict=True):
        split = tuple(sorted(mesh.varies(leaf)))
        if not set(split) <= set(allowed):
            raise ValueError(
                f"leaf {name!r} is split over the mesh axes {list(split)} inside shard_map, so that one device "
                f"sees only a part of it: {advice.format(axes=split)}"
            )


def over_shards(parts: Sequence[jax.Array], axes: Sequence[Axes]) -> jax.Array:
    """A vector of the sums of the leaves, each summed over its mesh axes: one ``psum`` for each set of axes, in
    the order of the leaves, which is the same on all devices."""
    sums = list(parts)
    for names in dict.fromkeys(axes):
        where = [i for i, a in enumerate(axes) if a == names]
        if names:
            for i, total in zip(where, lax.psum([sums[i] for i in where], names), strict=True):
                sums[i] = total
    return jnp.stack(sums)
