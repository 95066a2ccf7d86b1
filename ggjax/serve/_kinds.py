"""What counts as a small array, and what can be done with one: the one place to add another kind."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ggjax import rf8
from ggjax.rf8 import RF8Array

KINDS = (RF8Array,)


def is_small(x: Any) -> bool:
    """Whether x is an array in a few bits a weight, which ``in_place`` multiplies by as it is."""
    return isinstance(x, KINDS)


def nbytes(tree: Any) -> int:
    """The bytes of all arrays of a tree as they lie in memory, small ones and others.

    >>> nbytes({"w": rf8.encode(jnp.ones((8, 4))), "b": jnp.zeros(4)})  # a byte a weight, and an exponent
    49
    """
    return sum(x.nbytes for x in jax.tree.leaves(tree) if hasattr(x, "nbytes"))


def shape(a: Any) -> jax.ShapeDtypeStruct:
    """The shape, dtype and (on an Explicit mesh) sharding of the float array that a small one stands for."""
    return jax.eval_shape(rf8.decode, a)


def decode(a: Any) -> jax.Array:
    """The float array that a small one stands for."""
    return rf8.decode(a)


def einsum(subscripts: str, x: jax.Array, a: Any, dtype: DTypeLike) -> jax.Array:
    """``jnp.einsum(subscripts, x, decode(a))`` without decoding all of a."""
    return rf8.einsum(subscripts, x, a, preferred_element_type=dtype)


def index(a: Any, at: Any) -> Any:
    """Some of the array, or of the array with more axes, still small."""
    return a[at]


def reshape(a: Any, shape: tuple[int, ...]) -> Any:
    """The array in another shape; None where it would have to be decoded for that."""
    try:
        return a.reshape(shape)
    except ValueError:  # mixes axes that share an exponent with axes that do not
        return None


def stacked(a: Any) -> Any:
    """The same array, for ``scan`` to take apart: what its layers share is there for each of them."""
    return jax.tree.map(lambda part: jnp.broadcast_to(part, (a.shape[0], *part.shape[1:])), a)
