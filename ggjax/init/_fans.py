"""Fans: how many inputs and outputs a weight array connects, from its shape and what its axes are."""

import math
import operator
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

Mode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
MODES: tuple[Mode, ...] = get_args(Mode)

Axes: TypeAlias = int | Sequence[int]
"""One axis or several, negative ones counted from the end."""


def positions(name: str, axes: Axes, ndim: int) -> tuple[int, ...]:
    """The axes as a tuple of numbers from 0 to ndim - 1; ``name`` is what an error calls them.

    >>> positions("in_axis", (-1, 0), 3)
    (2, 0)
    """
    axes = tuple(map(operator.index, axes if isinstance(axes, Sequence) else (axes,)))
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"{name}={axes} does not exist in an array of {ndim} axes")
    return tuple(a % ndim for a in axes)


def fan(shape: tuple[int, ...], mode: Mode, in_axis: Axes, out_axis: Axes, batch_axis: Axes) -> float:
    """The number that divides the variance: inputs, outputs, or a mean of both.

    As in ``jax.nn.initializers.variance_scaling``, every axis that is neither an input, an output nor a batch
    axis belongs to the receptive field of a convolution, which multiplies inputs and outputs alike.

    Raises:
      ValueError: an axis that does not exist, one that is named twice, or the default in_axis for an array of
        fewer than two axes.

    >>> fan((3, 3, 16, 32), "fan_in", -2, -1, ())
    144.0
    """
    ndim = len(shape)
    if in_axis == -2 and ndim < 2:
        # The words of jax.nn.initializers, so that people find what they know.
        raise ValueError(
            f"Can't compute input and output sizes of a {ndim}-dimensional weights tensor with default in_axis."
            f" Must be at least 2D or specify in_axis explicitly. (The shape is {shape}.)"
        )
    given = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    found = {name: positions(name, axes, ndim) for name, axes in given.items()}
    every = sum(found.values(), ())
    if len(set(every)) < len(every):
        axes = ", ".join(f"{name}={axes}" for name, axes in given.items())
        raise ValueError(f"an axis of shape {shape} is named twice: {axes}")

    inputs, outputs, _ = (math.prod(shape[a] for a in axes) for axes in found.values())
    field = math.prod(n for a, n in enumerate(shape) if a not in every)
    fan_in, fan_out = float(inputs * field), float(outputs * field)
    if mode == "fan_in":
        return fan_in
    if mode == "fan_out":
        return fan_out
    return (fan_in + fan_out) / 2 if mode == "fan_avg" else math.sqrt(fan_in * fan_out)
