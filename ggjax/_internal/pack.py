"""Many small leaves packed into a few vectors, and taken apart again.

A program that treats thousands of leaves one by one takes XLA minutes to compile, however small they are.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Packing(NamedTuple):
    """Which leaves lie one after another in which vector; a group of one is a leaf kept as it is."""

    groups: list[list[int]]
    shapes: list[tuple[int, ...]]

    def pack(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """One array for every group."""
        return [
            leaves[group[0]] if len(group) == 1 else jnp.concatenate([leaves[i].ravel() for i in group])
            for group in self.groups
        ]

    def unpack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The leaves, in their first order, from arrays like those that ``pack`` gives."""
        leaves: dict[int, jax.Array] = {}
        for group, array in zip(self.groups, arrays, strict=True):
            if len(group) == 1:
                leaves[group[0]] = array
                continue
            start = 0
            for i in group:
                size = math.prod(self.shapes[i])
                leaves[i] = array[start : start + size].reshape(self.shapes[i])
                start += size
        return [leaves[i] for i in range(len(self.shapes))]


def plan(leaves: Sequence[jax.Array], *, below: int, at_most: int) -> Packing:
    """Group the leaves of fewer than ``below`` elements, at most ``at_most`` together.

    Only leaves of one dtype that vary over the same axes (inside ``jax.shard_map``) come together.
    """
    groups: list[list[int]] = []
    filling: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        if x.size >= below:
            groups.append([i])
            continue
        kind = (x.dtype, getattr(jax.typeof(x), "manual_axis_type", None))
        if kind not in filling or len(filling[kind]) == at_most:
            filling[kind] = []
            groups.append(filling[kind])
        filling[kind].append(i)
    return Packing(groups, [x.shape for x in leaves])
