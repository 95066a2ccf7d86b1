"""How exponents follow their codes through indexing and reshaping.

Exponents have as many dimensions as codes, and size 1 along the axes that share one: what an index or a new
shape does to the codes has to be said again for these smaller arrays.
"""

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np

_WHOLE = slice(None)


def index_of_exponents(shape: Sequence[int], index: Any) -> tuple[Any, ...]:
    """The index of exponents that fits ``codes[index]``.

    An axis that shares one exponent keeps its size of 1 under a slice, is dropped by a number, and becomes axes
    of size 1 under an array of numbers. On the other axes the index stays as it is.

    Args:
      shape: of the exponents, each size 1 or that of codes.
      index: any that codes accept (NumPy's rules), except single bools.

    Raises:
      IndexError: a single bool, which is an index to arrays but would add an axis here; more indices than axes.
    """
    entries: list[Any] = []
    for e in index if isinstance(index, tuple) else (index,):
        if isinstance(e, (bool, np.bool_)) or (_is_mask(e) and e.ndim == 0):
            raise IndexError(f"a single bool is no index to an RF8Array, got {e!r}: decode it first")
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
    """The index along an axis of size 1 that gives what the index e would give of equal exponents."""
    if isinstance(e, slice):
        return _WHOLE
    return np.zeros((1,) * np.ndim(e), np.int32) if np.ndim(e) else 0


def shape_of_exponents(shape: Sequence[int], codes: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
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
