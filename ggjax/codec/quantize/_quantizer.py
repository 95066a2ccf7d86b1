"""What a quantizer is: from weights to keys, unsigned 32-bit numbers that tokens are made of, and back.

Each quantizer is a file of its own, and none knows another; ``_quantizers`` lists them. Its functions take
arrays of NumPy and of JAX, which may be traced: few weights are quantized on the host, many by a program.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

FLOATS = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
"""The floating dtypes that weights are kept in."""


class Prepared(NamedTuple):
    """An array that is ready to be quantized."""

    x: np.ndarray  # what the keys are made of: the weights, or codes of them; of the shape of the weights
    params: Any  # what a file states of the quantizer: a NamedTuple of numbers
    settings: tuple[Any, ...]  # NumPy numbers that ``keys_of`` takes


def no_zeros(rows: np.ndarray) -> np.ndarray:
    """The ``zeros_of`` of a quantizer that has no such bits."""
    return np.zeros(len(rows), np.int64)


class Quantizer(NamedTuple):
    """What differs between quantizers.

    ``zeros`` is a number that each part of an array has: the bits at the end of all its weights that are 0 and
    are left out of their keys; 0 for most quantizers. ``params`` is of the quantizer's own type.
    """

    dtypes: Collection[str]  # of the weights that it takes; others are kept as they are
    signed: bool  # keys are two's complement numbers, so that 0xFFFFFFFF lies next to 0
    has_step: bool
    is_finite: bool  # it takes finite weights only
    prepare: Callable[[np.ndarray, np.float32, float, tuple[float, ...]], Prepared | None]
    """(weights, step, dead zone, centroids): a quantizer ignores what is not its own. None for weights that it
    cannot take."""
    keys_of: Callable[[Any, tuple[Any, ...], Any], Any]
    """(prepared array or a piece of it, settings, zeros): the keys, uint32 of the same shape."""
    values_of: Callable[[Any, str, tuple[Any, ...], Any], Any]
    """(keys, dtype, arguments, zeros): what the keys stand for, in the dtype of ``held``."""
    keys: Callable[[Any, str, int], int]
    """(params, dtype, zeros): how many keys there are; a decoder refuses those from this number on."""
    stated: Callable[[Any], dict[str, Any]]
    """(params): the params as JSON has them in a file."""
    read: Callable[[dict[str, Any], str, tuple[int, ...]], Any]
    """(what ``stated`` gave, or anything else; dtype; shape of the weights): the params. ValueError says what
    is wrong with them."""
    arguments: Callable[[Any], tuple[np.ndarray, ...]] = lambda params: ()
    """(params): the numbers that ``values_of`` takes."""
    held: Callable[[str], str] = lambda dtype: dtype
    """(dtype of weights): the dtype of their values until the array is whole. A NaN is safe as bits only: a
    device may widen a 16-bit type and back."""
    weights_of: Callable[[Any, Any, str, Any], Any] = lambda values, params, dtype, steps: values
    """(values, params, dtype, steps of rows and columns): the weights of a whole array."""
    wrapped: Callable[[Any, Any, str], Any] | None = None
    """(values, params, dtype): an array that multiplies without being decoded, where there is one."""
    has_classes: bool = True  # rows of like scale may be parts of their own
    zeros_of: Callable[[np.ndarray], np.ndarray] = no_zeros
    """(matrix): the zeros of every row, int64."""
    most_zeros: Callable[[str], int] = lambda dtype: 0
    """(dtype): the zeros that a part can have at most."""


def only(stated: dict[str, Any], *names: str) -> None:
    """Raise ValueError for parameters of other names."""
    odd = sorted(stated.keys() - set(names))
    if odd:
        raise ValueError(f"unknown parameter {odd[0]!r:.50}")
