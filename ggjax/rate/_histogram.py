"""Levels, their range, moments and histogram, on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import mesh, trees

_LARGE = 1 << 20
"""Leaves of this many weights are counted in parts: at once they would take twice their memory."""

_PARTS = 16
"""In how many parts at most: what they take is then an eighth of the leaf."""


class Summary(NamedTuple):
    """What is summed up about weights over the step: floats, NaN where a weight is."""

    low: Any  # the smallest level
    high: Any  # the largest
    first: Any  # sum |x|
    second: Any  # sum x^2
    mean: Any
    spread: Any  # sum (x - mean)^2


def as_levels(x: Any, step: Any) -> jax.Array:
    """The levels of the weights, int32."""
    x = trees.wide(x)
    return jnp.round(x / _like(step, x)).astype(jnp.int32)


@jax.jit
def summarize(x: Any, step: Any) -> Summary:
    """The range and the moments of one leaf, in float32, or float64 for float64 weights."""
    x = trees.wide(x)
    step = _like(step, x)
    # Dividing and rounding keep the order of weights: both may wait until the ends are found.
    low, high = jnp.round(jnp.min(x) / step), jnp.round(jnp.max(x) / step)
    # A quotient for several sums would be kept, in the memory of the leaf; products are worked out anew for
    # each. Two of them, as the reciprocal of a large step is no normal number.
    factor = 1 / jnp.sqrt(step)
    x = x * factor * factor
    mean = jnp.mean(x)
    return Summary(low, high, jnp.sum(jnp.abs(x)), jnp.sum(x * x), mean, jnp.sum((x - mean) ** 2))


def _like(step: Any, x: jax.Array) -> jax.Array:
    return jnp.asarray(step).astype(x.dtype)


def empty(size: int) -> jax.Array:
    """A table for the counts of so many levels: (2, size) uint32, the low and the high words."""
    return jnp.zeros((2, size), jnp.uint32)


def whole(table: np.ndarray) -> np.ndarray:
    """The counts of a table as int64 (size,)."""
    return table[0].astype(np.int64) + (table[1].astype(np.int64) << 32)


def as_float(table: jax.Array) -> jax.Array:
    """The counts of a table as float32 (size,)."""
    return table[0].astype(jnp.float32) + table[1].astype(jnp.float32) * 2.0**32


@jax.jit
def count(x: Any, step: Any, low: Any, table: jax.Array) -> jax.Array:
    """Add the counts of the levels low, low + 1, ... to a table; levels that it has no room for are dropped."""
    x = jnp.asarray(x)
    add = _add_in_parts if x.size >= _LARGE else _add
    table = table + jnp.zeros_like(
        x, jnp.uint32, shape=()
    )  # inside jax.shard_map: varies over devices as x does
    return mesh.reduce(add, x, jnp.asarray(step), jnp.asarray(low), table)


def _add(x: jax.Array, step: jax.Array, low: jax.Array, table: jax.Array) -> jax.Array:
    words = table[0].at[as_levels(x, step) - low].add(1, mode="drop", wrap_negative_indices=False)
    carry = (words < table[0]).astype(jnp.uint32)
    return jnp.stack([words, table[1] + carry])


def _add_in_parts(x: jax.Array, step: jax.Array, low: jax.Array, table: jax.Array) -> jax.Array:
    """The parts are cut along one axis, each from all along it, so that they are sharded as the leaf is."""
    axis = max(range(x.ndim), key=lambda i: (np.gcd(_PARTS, x.shape[i]), x.shape[i]))
    parts = int(np.gcd(_PARTS, x.shape[axis]))
    cut = x.reshape(*x.shape[:axis], -1, parts, *x.shape[axis + 1 :])

    def part(i: Any, table: jax.Array) -> jax.Array:
        return _add(lax.dynamic_index_in_dim(cut, i, axis + 1, keepdims=False), step, low, table)

    return lax.fori_loop(0, parts, part, table)
