"""Numbers that the elements of an array share along some of its axes: exponents of codes, steps of levels.

They have as many dimensions as the array, and size 1 along the axes that share one: what an index, a new shape
or an order of axes does to the array has to be said again for these smaller ones.
"""

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WHOLE = slice(None)


def index_of(shape: Sequence[int], index: Any) -> tuple[Any, ...]:
    """The index of shared numbers that fits ``array[index]``.

    An axis that shares one number keeps its size of 1 under a slice, is dropped by a number, and becomes axes
    of size 1 under an array of numbers. On the other axes the index stays as it is.

    Args:
      shape: of the numbers, each size 1 or that of the array.
      index: any that the array accepts (NumPy's rules), except single bools.

    Raises:
      IndexError: a single bool, which is an index to arrays but would add an axis here; more indices than axes.
    """
    entries: list[Any] = []
    for e in index if isinstance(index, tuple) else (index,):
        if isinstance(e, (bool, np.bool_)) or (_is_mask(e) and e.ndim == 0):
            raise IndexError(f"a single bool is no index to a coded array, got {e!r}: decode it first")
        entries += np.nonzero(np.asarray(e)) if _is_mask(e) else [e]
    used = sum(e is not None and e is not Ellipsis for e in entries)
    if used > len(shape):
        raise IndexError(f"too many indices: {used}, expected at most {len(shape)}")
    out: list[Any] = []
    axis = 0
    for e in entries:
        if isinstance(e, EllipsisType):
            out += [_WHOLE] * (len(shape) - used)
            axis += len(shape) - used
        elif e is None:
            out.append(None)
        else:
            out.append(_at_shared(e) if shape[axis] == 1 else e)
            axis += 1
    return tuple(out)


def _is_mask(e: Any) -> bool:
    return getattr(e, "dtype", None) == np.bool_


def _at_shared(e: Any) -> Any:
    """The index along an axis of size 1 that gives what the index e would give of equal numbers."""
    if isinstance(e, slice):
        return _WHOLE
    return np.zeros((1,) * np.ndim(e), np.int32) if np.ndim(e) else 0


def shape_of(shape: Sequence[int], codes: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """The shape of exponents that fits codes reshaped from ``codes`` to ``new``.

    Both shapes are cut into the smallest groups of neighbouring axes of equal size. A group whose axes all
    share their exponent still does, and one where every weight has its own still has.

    Raises:
      ValueError: some axes of a group share their exponent and others do not.
    """
    out: list[int] = []
    i = j = 0
    while i < len(codes) or j < len(new):
        old_group, new_group = [i], [j]
        i, j = min(i + 1, len(codes)), min(j + 1, len(new))
        while math.prod(codes[old_group[0] : i]) != math.prod(new[new_group[0] : j]):
            if math.prod(codes[old_group[0] : i]) < math.prod(new[new_group[0] : j]):
                i += 1
            else:
                j += 1
        own, full = shape[old_group[0] : i], codes[old_group[0] : i]
        if math.prod(own) == 1:
            out += [1] * (j - new_group[0])
        elif tuple(own) == tuple(full):
            out += new[new_group[0] : j]
        else:
            raise ValueError(
                f"exponents of shape {tuple(shape)} do not follow codes of shape {tuple(codes)} to shape "
                f"{tuple(new)}, which mixes axes that share an exponent with axes that do not: decode first"
            )
    return tuple(out)


def grouped(numbers: jax.Array, shape: Sequence[int], groups: Sequence[Sequence[int]]) -> jax.Array:
    """Shared numbers of an array of this shape that gets one axis for every group of its axes.

    Where some axes of a group share their number and others do not, they are repeated.
    """
    order = [a for group in groups for a in group]
    own = [math.prod(numbers.shape[a] for a in group) for group in groups]
    sizes = [math.prod(shape[a] for a in group) for group in groups]
    full = [
        numbers.shape[a] if n == 1 else shape[a] for group, n in zip(groups, own, strict=True) for a in group
    ]
    numbers = jnp.broadcast_to(numbers.transpose(order), full)
    return numbers.reshape([1 if n == 1 else size for n, size in zip(own, sizes, strict=True)])
