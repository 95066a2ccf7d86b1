"""What methods that learn how to round have in common: four functions, and what they end in."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

from ggjax._internal import trees

Mask: TypeAlias = trees.Mask | Literal["kernels"]
"""The leaves to round: "kernels" for ``ggjax.masks.kernels``, or any mask of this package."""


class Frozen(NamedTuple):
    """Rounded weights, and the whole numbers to code them by."""

    weights: Any  # tree like the parameters: shapes and dtypes as before
    levels: Any  # the same tree: int32 arrays like the weights, None for the leaves that were not rounded
    side_bits: int  # what a file needs beside the levels, together: scales, ranges, bit lengths


class Reparameterization(NamedTuple):
    """A way to train weights for few bits: parameters become latents, and the latents are trained.

    ``latent`` is a tree of arrays (a NamedTuple whose first field, ``weights``, is a tree like the parameters),
    so that every optax transform takes it; labels of ``optax.partition`` can be given by its fields. All four
    functions are pure and run under jit, and the middle two are differentiable in the latent.
    """

    init: Callable[[Any], Any]  # params -> latent
    apply: Callable[..., Any]  # (latent, key=None) -> the weights of the forward pass, a tree like params
    rate: Callable[
        ..., jax.Array
    ]  # (latent, key=None) -> bits per rounded weight, a float32 scalar for the loss
    freeze: Callable[[Any], Frozen]  # latent -> the weights in the end


def flatten(params: Any, mask: Mask, *, finite: bool = True) -> trees.Flat:
    """The tree with the leaves selected that are to be rounded, all of them finite unless that does not matter.

    Raises:
      ValueError: no floating leaf, a mask that does not fit, or a NaN or infinite weight (where it is known).
    """
    flat = trees.flatten(params, mask)
    if finite:
        trees.check_finite(flat.weight_names(), flat.weights())
    return flat


def beside(flat: trees.Flat, values: Sequence[Any]) -> Any:
    """A tree like the flattened one: a value for every selected leaf, in order, and None for the others."""
    return flat._replace(leaves=[None] * len(flat.leaves)).replace(values)


def values_of(flat: trees.Flat, tree: Any) -> list[Any]:
    """The values that ``beside`` made such a tree of."""
    values = flat.treedef.flatten_up_to(tree)
    return [v for v, s in zip(values, flat.selected, strict=True) if s]


def split(key: jax.Array | None, flat: trees.Flat) -> Any:
    """A key for every selected leaf, or None for each."""
    n = sum(flat.selected)
    return [None] * n if key is None else jax.random.split(key, max(n, 1))[:n]


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise ValueError naming the argument unless it is a whole number of this range (traced numbers pass)."""
    trees.check_not_negative(name, value)
    if trees.is_concrete(value) and not (value == int(value) and low <= value <= high):
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
