"""Many small leaves packed into a few arrays, and taken apart again.

A program that treats thousands of leaves one by one takes XLA minutes to compile, however small they are.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import mesh

T = TypeVar("T")

MOST = 64
"""Leaves in a pack at most: the time that XLA takes rises with the square of the slices of one array."""

ROW = 128
"""Elements in a row of ``in_rows``."""


def one_device() -> bool:
    """Whether there is one device only. Elsewhere leaves may be sharded, and packing would gather them; under
    jit it is not known which are."""
    return jax.device_count() == 1


def runs(items: Iterable[T], kind: Callable[[T], Hashable], *, at_most: int) -> list[list[T]]:
    """The items in lists of one kind, in order, of at most so many items each."""
    of_kinds: dict[Hashable, list[list[T]]] = {}
    for item in items:
        of_kind = of_kinds.setdefault(kind(item), [[]])
        if len(of_kind[-1]) == at_most:
            of_kind.append([])
        of_kind[-1].append(item)
    return [run for of_kind in of_kinds.values() for run in of_kind]


def in_rows(leaves: Sequence[jax.Array]) -> jax.Array:
    """Leaves of one dtype as a matrix of rows: each starts a new row and fills its last one with zeros."""
    flat = [x.ravel() for x in leaves]
    parts = [y for x in flat for y in (x, np.zeros(-x.size % ROW, x.dtype))]
    return jnp.concatenate(parts).reshape(-1, ROW)


def rows(size: int) -> int:
    """How many rows a leaf of this size takes."""
    return -(-size // ROW)


def owners(sizes: Sequence[int]) -> np.ndarray:
    """Which leaf each row belongs to, int32 (rows,)."""
    return np.repeat(np.arange(len(sizes), dtype=np.int32), [rows(n) for n in sizes])


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
    small = [i for i, x in enumerate(leaves) if x.size < below]
    groups = runs(small, lambda i: (leaves[i].dtype, mesh.varies(leaves[i])), at_most=at_most)
    groups += [[i] for i, x in enumerate(leaves) if x.size >= below]
    return Packing(sorted(groups), [x.shape for x in leaves])
