"""The rate of the weights at their quantization step, counted: the entropy of a histogram of their levels.

The closed form of ``_measure`` is as good as the law that it fits. Where weights lie otherwise (at one size, as
after a training without noise, or in a spike that is several fine steps wide) it can be off by tenths of a bit,
up to a whole one. A count costs a pass of its own, so it is made at every ``EVERY``-th update only, and what
the closed form was off by is taken off it until the next.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import xlogy

from ggjax.rate import _histogram
from ggjax.train import _law, _measure
from ggjax.train._packs import Packing

EVERY = 10
"""Updates from one count to the next."""

LEVELS = 1 << 15
"""Room in the histogram. Weights beyond it are left out."""

FEW = 0.01
"""If more of the weights than this share lie beyond the histogram, there is no count."""


@functools.partial(jax.jit, static_argnames=("packing", "axes", "per_leaf"))
def correction(
    old: jax.Array,
    due: jax.Array,
    told: jax.Array,
    packs: list[jax.Array],
    relative: list[jax.Array] | None,
    step: jax.Array,
    fitted: jax.Array,
    *,
    packing: Packing,
    axes: tuple[_law.Axes, ...],
    per_leaf: bool,
) -> jax.Array:
    """What has to be added to the bits of the closed form, float32 (): the old value if no count is due.

    Args:
      old: the last correction.
      due: whether to count, a bool scalar.
      told: the bits of the closed form.
      packs, relative, step, packing, axes, per_leaf: as in ``_measure.measure``.
      fitted: which of the leaves count, bool (leaves,).
    """

    def counted() -> jax.Array:
        sizes = jnp.where(fitted, jnp.asarray(_law.sizes(packing.shapes, axes), jnp.float32), 0)
        total = jnp.maximum(jnp.sum(sizes), 1)
        xs = _measure.over(packs, relative)
        if per_leaf:
            tables = _of_leaves(xs, step, fitted, packing, axes)
            counts = [sizes[np.array(group)] for group in packing.groups]
        else:
            tables = [_of_all(xs, step, fitted, packing, axes)]
            counts = [jnp.sum(sizes, keepdims=True)]
        codes = [_code(table, n, total) for table, n in zip(tables, counts, strict=True)]
        bits, beyond = (jnp.stack(parts).sum() for parts in zip(*codes, strict=True))
        return jnp.where(beyond <= FEW, bits - told, 0)

    # A loop of one round or none: under vmap, cond would count at every update. It has no derivative; the bits,
    # whole numbers counted, have none either.
    told, packs, relative, step = lax.stop_gradient((told, packs, relative, step))
    return lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), counted()), (due, old))[1]


def _code(table: jax.Array, n: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bits of codes of their own, and the weights beyond their tables, both divided by a total.

    Args:
      table: how many weights are on each level, (codes, LEVELS).
      n: how many weights there are, (codes,).
    """
    inside = jnp.sum(table, 1)
    share = table / jnp.maximum(inside, 1)[:, None]
    entropy = -jnp.sum(xlogy(share, share), 1) / float(np.log(2))
    return jnp.sum(n / total * entropy), jnp.sum(n - inside) / total


def _of_all(
    xs: list[jax.Array], step: jax.Array, fitted: jax.Array, packing: Packing, axes: tuple[_law.Axes, ...]
) -> jax.Array:
    """One histogram of all weights, float32 (1, LEVELS)."""
    tables: dict[_law.Axes, jax.Array] = {}
    packed = jnp.zeros((1, LEVELS), jnp.float32)
    for group, x in zip(packing.groups, xs, strict=True):
        if len(group) > 1:
            packed += _of_pack(x, step, fitted, packing, group, by_leaf=False)
            continue
        names, some = axes[group[0]], fitted[group[0]]
        tables[names] = _added(x, step, some, tables.get(names, _histogram.empty(LEVELS)))
    return sum((_whole(t, names) for names, t in tables.items()), start=packed)


def _of_leaves(
    xs: list[jax.Array], step: jax.Array, fitted: jax.Array, packing: Packing, axes: tuple[_law.Axes, ...]
) -> list[jax.Array]:
    """The histograms of the leaves of every group, float32 (leaves, LEVELS)."""
    tables = []
    for group, x in zip(packing.groups, xs, strict=True):
        if len(group) > 1:
            tables.append(_of_pack(x, step, fitted, packing, group, by_leaf=True))
        else:
            own = _added(x, step, fitted[group[0]], _histogram.empty(LEVELS))
            tables.append(_whole(own, axes[group[0]]))
    return tables


def _of_pack(
    x: jax.Array,
    step: jax.Array,
    fitted: jax.Array,
    packing: Packing,
    group: tuple[int, ...],
    *,
    by_leaf: bool,
) -> jax.Array:
    """The histogram of the leaves that lie together in a group, or one for each, float32 (codes, LEVELS)."""
    owners, some = packing.owners(group), fitted[np.array(group)]
    code = np.arange(len(group)) if by_leaf else np.zeros(len(group), np.int32)
    levels = _histogram.as_levels(x, step) + LEVELS // 2
    levels = jnp.where(some[owners][:, None], levels, LEVELS)  # beyond the end: dropped
    table = jnp.zeros((code[-1] + 1, LEVELS), jnp.float32)
    table = table.at[code[owners][:, None], levels].add(1, mode="drop", wrap_negative_indices=False)
    filled = np.bincount(owners) * x.shape[1] - np.array(packing.sizes(group))  # with zeros
    filled = jnp.asarray(filled, jnp.float32)
    return table.at[code, LEVELS // 2].add(-jnp.where(some, filled, 0))


def _added(x: jax.Array, step: jax.Array, some: jax.Array, table: jax.Array) -> jax.Array:
    """A table to which the levels of a leaf are added, or nothing if it is not to count."""
    return jnp.where(some, _histogram.count(x, step, -(LEVELS // 2), table), table)


def _whole(table: jax.Array, names: _law.Axes) -> jax.Array:
    """The counts of a table, float32 (1, LEVELS), summed over the devices of these axes of a mesh."""
    counts = _histogram.as_float(table)[None]
    return lax.psum(counts, names) if names else counts
