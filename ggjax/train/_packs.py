"""Many small leaves put together into one matrix, worked on as one array, and taken apart again.

XLA compiles a program of its own for every leaf, which takes about 0.1 s however small the leaf is. So if a
model has many small leaves, the rows of one matrix hold up to 64 of them: each starts a new row and fills its
last row with zeros, which change no sum (``_internal.pack``).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import pack, trees

MANY = 32
"""Up to so many small leaves are worked on one by one: packs are copies, which cost time and memory."""

SMALL = 1 << 17
"""Leaves of fewer weights than this are small."""


class Packing(NamedTuple):
    """Which leaves lie together; static. A group of one is a leaf that stays as it is."""

    groups: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]

    def pack(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """One array for every group: the leaf, or a matrix of rows."""
        arrays = [
            pack.in_rows([leaves[i] for i in group]) if len(group) > 1 else leaves[group[0]]
            for group in self.groups
        ]
        return self._apart(arrays)

    def unpack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The leaves, in their first order, from arrays like those that ``pack`` gives."""
        leaves: dict[int, jax.Array] = {}
        for group, array in zip(self.groups, self._apart(arrays), strict=True):
            if len(group) == 1:
                leaves[group[0]] = array
                continue
            ends = np.cumsum([pack.rows(n) for n in self.sizes(group)])
            for i, rows in zip(group, jnp.split(array, ends[:-1]), strict=True):
                leaves[i] = rows.ravel()[: math.prod(self.shapes[i])].reshape(self.shapes[i])
        return [leaves[i] for i in range(len(self.shapes))]

    def sums(
        self, f: Callable[[jax.Array], jax.Array], arrays: Sequence[jax.Array], dtype: Any
    ) -> list[jax.Array]:
        """The sum of f over every leaf, in their first order; f(0) = 0."""
        totals: dict[int, jax.Array] = {}
        for group, array in zip(self.groups, arrays, strict=True):
            if len(group) == 1:
                totals[group[0]] = jnp.sum(f(trees.wide(array))).astype(dtype)
                continue
            of_rows = jnp.sum(f(trees.wide(array)), axis=1)
            of_leaves = jax.ops.segment_sum(of_rows, self.owners(group), len(group), indices_are_sorted=True)
            totals.update(zip(group, jnp.unstack(of_leaves.astype(dtype)), strict=True))
        return [totals[i] for i in range(len(self.shapes))]

    def spread(self, values: jax.Array) -> list[jax.Array]:
        """A vector of one value for each leaf as arrays that broadcast with those of ``pack``."""
        one_by_one = jnp.unstack(values)
        return [
            values[np.array(group)][self.owners(group)][:, None] if len(group) > 1 else one_by_one[group[0]]
            for group in self.groups
        ]

    def sizes(self, group: Sequence[int]) -> list[int]:
        """How many weights each leaf of the group has."""
        return [math.prod(self.shapes[i]) for i in group]

    def owners(self, group: Sequence[int]) -> np.ndarray:
        """Which leaf of the group each row belongs to, int32 (rows,)."""
        return pack.owners(self.sizes(group))

    def _apart(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The arrays, the packs kept as they are: XLA would rather work on each leaf by itself again."""
        packs = [x for group, x in zip(self.groups, arrays, strict=True) if len(group) > 1]
        made = iter(lax.optimization_barrier(packs) if packs else [])
        return [next(made) if len(group) > 1 else x for group, x in zip(self.groups, arrays, strict=True)]


def plan(weights: Sequence[jax.Array], updates: Sequence[jax.Array], *, allowed: bool) -> Packing:
    """Put small leaves together, those of the same dtypes, if there are many and it is allowed."""
    shapes = tuple(tuple(jnp.shape(x)) for x in weights)
    small = [i for i, x in enumerate(weights) if 0 < jnp.size(x) < SMALL]
    if not allowed or len(small) <= MANY:
        small = []
    packs = pack.runs(
        small, lambda i: (jnp.result_type(weights[i]), jnp.result_type(updates[i])), at_most=pack.MOST
    )
    alone = [(i,) for i in sorted(set(range(len(shapes))) - set(small))]
    return Packing((*alone, *map(tuple, packs)), shapes)
