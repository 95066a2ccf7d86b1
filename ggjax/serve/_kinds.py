"""What counts as a small array, and what can be done with one: the one place to add another kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ggjax import codec, rf8
from ggjax._internal import trees
from ggjax.codec import Blocks, Coded, Compressed, LevelArray, TwelveBitArray
from ggjax.codec._compressed import is_coded
from ggjax.codec.serving import _array as levels
from ggjax.codec.serving._floats_needed import Small
from ggjax.rf8 import RF8Array
from ggjax.rf8 import _array as codes


def is_small(x: Any) -> bool:
    """Whether x is an array in a few bits a weight, which ``in_place`` works with as it is: an ``RF8Array``, a
    ``LevelArray``, a ``TwelveBitArray``, or an array of a ``Compressed`` tree."""
    return isinstance(x, (Small, RF8Array)) or is_coded(x)


def nbytes(tree: Any) -> int:
    """The bytes of all arrays of a tree as they lie in memory, small ones and others.

    >>> nbytes({"w": rf8.encode(jnp.ones((8, 4))), "b": jnp.zeros(4)})  # a byte a weight, and an exponent
    49
    """
    return sum(x.nbytes for x in jax.tree.leaves(tree) if hasattr(x, "nbytes"))


def tree_decode(tree: Any) -> Any:
    """The tree with every small array decoded to its own dtype, and the other leaves as they were.

    >>> tree_decode({"w": rf8.encode(jnp.array([0.5, 0.6]))})
    {'w': Array([0.5  , 0.625], dtype=float32)}
    """
    return jax.tree.map(lambda x: _decode(x) if is_small(x) else x, opened(tree), is_leaf=is_small)


def opened(tree: Any) -> Any:
    """The tree with every ``Compressed`` in it as the tree of coded arrays that it holds."""

    def is_leaf(x: Any) -> bool:
        return isinstance(x, Compressed) or is_small(x)

    if not any(isinstance(x, Compressed) for x in jax.tree.leaves(tree, is_leaf=is_leaf)):
        return tree
    return jax.tree.map(lambda x: x.tree if isinstance(x, Compressed) else x, tree, is_leaf=is_leaf)


def sizes(a: Any) -> tuple[int, ...]:
    """The shape of the float array that a small one stands for."""
    return (len(a.states), *a.shape) if _has_layers(a) else a.shape


def checked(a: Any, name: str) -> jax.ShapeDtypeStruct:
    """The shape, dtype and (on an Explicit mesh) sharding of the float array that a small one stands for.

    Raises:
      TypeError or ValueError: its fields do not fit together, or it is coded by "zstd" and traced; the message
        begins with the name.
    """
    if is_coded(a):
        coders = {b.meta.coder for b in (a.blocks if isinstance(a, Blocks) else (a,)) if isinstance(b, Coded)}
        if coders - {"rans"} and not trees.is_concrete(*jax.tree.leaves(a)):
            raise ValueError(
                f"{name}: coded by 'zstd', which decodes on the host only: decompress it outside jit"
            )
        return jax.ShapeDtypeStruct(sizes(a), a.dtype)
    if isinstance(a, RF8Array):
        codes.check_form(a, name)
    elif isinstance(a, LevelArray):
        levels.check_form(a, name)
    try:
        return jax.eval_shape(_decode, a)
    except (TypeError, ValueError) as e:
        raise (TypeError if isinstance(e, TypeError) else ValueError)(f"{name}: {e}") from e


def decode(a: Any) -> jax.Array:
    """The float array that a small one stands for."""
    return _decode(a)


def _decode(a: Any) -> jax.Array:
    if _has_layers(a):
        return lax.map(codec.decompress, a)
    if is_coded(a):
        return codec.decompress(a)
    return rf8.decode(a) if isinstance(a, RF8Array) else a.decode()


def einsum(subscripts: str, x: jax.Array, a: Any, dtype: DTypeLike) -> jax.Array:
    """``jnp.einsum(subscripts, x, decode(a))`` without decoding all of a, unless it is an entropy-coded one."""
    if _has_layers(a) or (is_coded(a) and a.dtype != x.dtype):
        x, a = lax.optimization_barrier((x, a))  # not decoded before its turn
        a = _decode(a).astype(x.dtype)
    return codec.einsum(subscripts, x, a, preferred_element_type=dtype)


def rows(a: Any, at: jax.Array) -> jax.Array:
    """``decode(a)[at]`` for numbers of rows, of which only these are decoded where that can be."""
    small = index(a, at)
    return decode(a)[at] if small is None else decode(small)


def index(a: Any, at: Any) -> Any:
    """Some of the array, still small; None where it has to be decoded for that."""
    if is_coded(a):
        first, *others = at if isinstance(at, tuple) else (at,)
        is_of_layers = _has_layers(a) and not others and (isinstance(first, slice) or not np.ndim(first))
        return jax.tree.map(lambda stream: stream[first], a) if is_of_layers else None
    try:
        return a[at]
    except IndexError:  # patches are found along some axes only
        return None


def reshape(a: Any, shape: tuple[int, ...]) -> Any:
    """The array in another shape; None where it has to be decoded for that."""
    try:
        return a.reshape(shape) if isinstance(a, RF8Array) else None
    except ValueError:  # mixes axes that share an exponent with axes that do not
        return None


def stacked(a: Any) -> Any:
    """The array for ``scan`` to take apart: what its layers share is there for each of them. None where it has
    to be decoded for that."""
    if is_coded(a):
        return a if _has_layers(a) else None
    if isinstance(a, (LevelArray, TwelveBitArray)) and a.axis % a.ndim == 0:
        return None  # patches and packed halves are told from whole rows
    return jax.tree.map(lambda part: jnp.broadcast_to(part, (a.shape[0], *part.shape[1:])), a)


def _has_layers(a: Any) -> bool:
    """Whether this is what ``codec.layers`` makes: its streams have one axis more, and its shape one less."""
    return isinstance(a, Coded) and np.ndim(a.states) > 1
