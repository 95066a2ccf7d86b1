"""A small array where a traced program has a float array."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ggjax.serve import _kinds


class Held(NamedTuple):
    """A small array as the program sees it: with axes in another order, with more of size 1, cast."""

    array: Any
    order: tuple[int | None, ...]  # which axis of the small array an axis of the program's is; None: of size 1
    dtype: Any  # of the program's array

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = _kinds.sizes(self.array)
        return tuple(1 if a is None else sizes[a] for a in self.order)

    @property
    def in_order(self) -> bool:
        return self.order == tuple(range(len(self.order)))

    def part(self, index: Iterable[Any]) -> "Held | None":
        """A part of it, by a slice for each of the first axes; None where it has to be decoded for that."""
        own: list[Any] = [slice(None)] * len(_kinds.sizes(self.array))
        for a, i in zip(self.order, index, strict=False):
            if a is not None:
                own[a] = i
            elif range(1)[i] != range(1):
                return None  # none of an axis of size 1 that the small array does not have
        while own and own[-1] == slice(None):
            own.pop()
        array = _kinds.index(self.array, tuple(own)) if own else self.array
        return None if array is None else self._replace(array=array)

    def without(self, axes: Sequence[int], at: Any = 0) -> "Held | None":
        """Without some axes, at one place along them; None where it has to be decoded for that."""
        gone = {own for a in axes if (own := self.order[a]) is not None}
        last = max(gone, default=-1)
        index = tuple(at if a in gone else slice(None) for a in range(last + 1))
        array = _kinds.index(self.array, index) if index else self.array
        if array is None:
            return None
        left = [own for a, own in enumerate(self.order) if a not in axes]
        order = tuple(own if own is None else own - sum(g < own for g in gone) for own in left)
        return Held(array, order, self.dtype)


def hold(array: Any) -> Held:
    """The small array as it is."""
    return Held(array, tuple(range(len(_kinds.sizes(array)))), jax.dtypes.canonicalize_dtype(array.dtype))


def is_held(x: Any) -> bool:
    return isinstance(x, Held)


def floats(x: Any) -> Any:
    """The program's array, decoded if it is held."""
    if not is_held(x):
        return x
    values = _kinds.decode(x.array).transpose([a for a in x.order if a is not None])
    return jnp.expand_dims(values, [i for i, a in enumerate(x.order) if a is None]).astype(x.dtype)


def all_floats(values: Sequence[Any]) -> list[Any]:
    return [floats(x) for x in values]


def out(x: Any) -> Any:
    """A result for the caller: the small array itself where it was only passed on."""
    if is_held(x) and x.in_order and jax.dtypes.canonicalize_dtype(x.array.dtype) == x.dtype:
        return x.array
    return floats(x)
