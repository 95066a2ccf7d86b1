"""Compressed trees: what ``compress`` makes and ``decompress`` takes."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ggjax._internal import trees
from ggjax.codec._coded import Coded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array that is coded in blocks, one for every shard: a pytree of the blocks."""

    blocks: tuple[Any, ...]  # Coded, or arrays as they are
    starts: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    sharding: Any = dataclasses.field(
        default=None, metadata={"static": True}
    )  # None: to be put together on the default device

    @property
    def size(self) -> int:
        """The number of elements of the array."""
        return math.prod(self.shape)

    @property
    def size_at_hand(self) -> int:
        """The number of elements of the blocks that this process has."""
        return sum(b.size for b in self.blocks)

    @property
    def nbytes(self) -> int:
        """The bytes that the blocks at hand take in a file."""
        return sum(b.nbytes for b in self.blocks)

    def __post_init__(self) -> None:
        tell_flax()

    def __reduce__(self) -> Any:
        """For pickle: without the sharding, whose devices belong to this process."""
        return Blocks, (self.blocks, self.starts, self.shape, self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed tree: a pytree of arrays, which jit takes and checkpoints hold.

    ``tree`` is like the tree that was compressed, with a coded array in place of every leaf that was coded, and
    the other leaves as they were. It can be pickled (sharded leaves then come back on one device), saved by
    orbax, serialized by ``flax.serialization``, and written by ``save_file``. What a decoder has to know is no
    array but part of the structure. In the state dicts of ``flax.serialization`` it is an array, so these can
    be saved by orbax, and restored where nothing but shapes and dtypes is known (RECIPES.md).
    """

    tree: Any

    def __post_init__(self) -> None:
        tell_flax()

    def __reduce__(self) -> Any:
        """For pickle: made anew, so that Flax is told in every process."""
        return Compressed, (self.tree,)

    @property
    def nbytes(self) -> int:
        """The bytes of all leaves: of their streams, and of the tables that each uses. Functions and other
        leaves that are neither arrays nor numbers do not count."""
        held = ((x if hasattr(x, "nbytes") else np.asarray(x)) for _, x in self.leaves() if is_array(x))
        return sum(x.nbytes for x in held)

    @property
    def bits(self) -> dict[str, float]:
        """Bits per parameter of every coded leaf, by its name (of the shards at hand)."""
        coded = ((n, x) for n, x in self.leaves() if is_coded(x))
        sizes = ((n, x, x.size_at_hand if isinstance(x, Blocks) else x.size) for n, x in coded)
        return {n: 8 * x.nbytes / max(size, 1) for n, x, size in sizes}

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """(name, leaf) of every leaf, coded or not."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.tree, is_leaf=is_coded):
            yield trees.leaf_name(path), leaf


def is_coded(x: Any) -> bool:
    """Whether this is the coded form of an array."""
    return isinstance(x, (Coded, Blocks))


def is_array(x: Any) -> bool:
    """Whether a leaf is numbers: an array, coded or not, or a number; not a function, a text or a PRNG key."""
    if is_coded(x) or isinstance(x, (bool, int, float, complex)):
        return True
    return hasattr(x, "dtype") and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)


def _state_of(x: Any) -> dict[str, Any]:
    from ggjax.codec import _state_dict

    return _state_dict.state_of(x)


def _restored(target: Any, state: dict[str, Any]) -> Any:
    from ggjax.codec import _state_dict

    return _state_dict.restored(target, state)


@functools.cache
def tell_flax() -> None:
    """Let ``flax.serialization`` know these types: when the first tree of them is made, since files can be read
    and checked in less time than Flax takes to load."""
    from flax import serialization

    for kind in (Compressed, Blocks, Coded):
        serialization.register_serialization_state(kind, _state_of, _restored)
