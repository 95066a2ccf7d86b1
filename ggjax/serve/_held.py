"""A small array where a traced program has a float array."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ggjax.serve import _kinds


class Held(NamedTuple):
    """A small array as the program sees it: with axes in another order, cast to another dtype."""

    array: Any
    order: tuple[int, ...]  # axis i of the program's array is axis order[i] of the small one
    dtype: Any  # of the program's array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[a] for a in self.order)

    @property
    def in_order(self) -> bool:
        return self.order == tuple(range(len(self.order)))

    def again(self, array: Any) -> "Held | None":
        """Another array, with axes in order, in place of this one; None stays None."""
        return None if array is None else Held(array, tuple(range(len(array.shape))), self.dtype)


def hold(array: Any) -> Held:
    """The small array as it is."""
    return Held(array, tuple(range(len(array.shape))), array.dtype)


def is_held(x: Any) -> bool:
    return isinstance(x, Held)


def floats(x: Any) -> Any:
    """The program's array, decoded if it is held."""
    if not is_held(x):
        return x
    values = _kinds.decode(x.array)
    return jax.numpy.transpose(values, x.order).astype(x.dtype)


def all_floats(values: Sequence[Any]) -> list[Any]:
    return [floats(x) for x in values]


def out(x: Any) -> Any:
    """A result for the caller: the small array itself where it was only passed on."""
    if is_held(x) and x.in_order and x.dtype == x.array.dtype:
        return x.array
    return floats(x)
