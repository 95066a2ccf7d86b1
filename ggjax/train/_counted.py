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

from ggjax._internal import trees
from ggjax.rate import _histogram
from ggjax.train import _law
from ggjax.train._packs import Packing

EVERY = 10
"""Updates from one count to the next."""

LEVELS = 1 << 15
"""Room in the histogram. Weights beyond it are counted at its ends."""

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
        tables, sizes = _tables(packs, relative, step, fitted, packing, axes, per_leaf)
        total = jnp.maximum(jnp.sum(sizes), 1)
        share = tables / jnp.maximum(sizes, 1)[:, None]
        entropy = -jnp.sum(xlogy(share, share), 1) / float(np.log(2))
        beyond = jnp.sum(tables[:, 0] + tables[:, -1])
        return jnp.where(beyond <= FEW * total, jnp.sum(sizes / total * entropy) - told, 0)

    return lax.cond(due, counted, lambda: old)


def _tables(
    packs: list[jax.Array],
    relative: list[jax.Array] | None,
    step: jax.Array,
    fitted: jax.Array,
    packing: Packing,
    axes: tuple[_law.Axes, ...],
    per_leaf: bool,
) -> tuple[jax.Array, jax.Array]:
    """How many weights are on each level, (codes, LEVELS), and how many there are, (codes,); both float32."""
    sizes = jnp.where(fitted, jnp.asarray(_law.sizes(packing.shapes, axes), jnp.float32), 0)
    of_axes: dict[_law.Axes, jax.Array] = {}
    of_groups, order = [], []
    positions = np.zeros(len(sizes), np.int32)
    for group in packing.groups:
        positions[list(group)] = np.arange(len(group))
        order.extend(group)
    rows, owners = packing.spread(fitted), packing.spread(jnp.asarray(positions))
    for i, (group, x) in enumerate(zip(packing.groups, packs, strict=True)):
        x = jnp.where(rows[i], trees.wide(x), 0)
        if relative is not None:
            x = x / relative[i].astype(x.dtype)
        own = (
            _histograms(x, step, len(group), owners[i])
            if per_leaf and len(group) > 1
            else _histogram_of(x, step)
        )
        where = axes[group[0]]  # leaves that lie together are on one device
        if per_leaf:
            of_groups.append(lax.psum(own, where) if where else own)
        else:
            of_axes[where] = of_axes[where] + own if where in of_axes else own
    if per_leaf:
        tables = jnp.concatenate(of_groups)[np.argsort(order)]
    else:
        tables = jnp.stack([lax.psum(t, where) if where else t for where, t in of_axes.items()]).sum(0)
        sizes = jnp.sum(sizes, keepdims=True)
    zero = LEVELS // 2  # what fills packs up, and what is left out, lies there too
    others = jnp.sum(tables, 1) - tables[:, zero]
    return tables.at[:, zero].set(sizes - others), sizes


def _histogram_of(x: jax.Array, step: jax.Array) -> jax.Array:
    """The histogram of an array, (1, LEVELS)."""
    table = _histogram.count(_within(x, step), step, -(LEVELS // 2), _histogram.empty(LEVELS))
    return _histogram.as_float(table)[None]


def _histograms(x: jax.Array, step: jax.Array, leaves: int, owners: jax.Array) -> jax.Array:
    """The histograms of the leaves that lie in the rows of a matrix, (leaves, LEVELS)."""
    levels = _histogram.as_levels(_within(x, step), step) + LEVELS // 2
    return jnp.zeros((leaves, LEVELS)).at[owners, levels].add(1)


def _within(x: jax.Array, step: jax.Array) -> jax.Array:
    """The weights, those beyond the histogram moved to its ends."""
    end = step.astype(x.dtype) * (LEVELS // 2 - 1)
    return jnp.clip(x, -end, end)
