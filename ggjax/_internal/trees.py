"""Parameter trees: leaf names, which leaves count as weights, masks, and checks that name the leaf.

A *weight leaf* is an array of a floating dtype. Everything else that a tree may hold (integers, complex
numbers, PRNG keys, functions, strings) passes through every function of this package untouched, as do ``None``
and ``optax.MaskedNode``, which hold no leaf at all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

PyTree: TypeAlias = Any
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None
"""Which leaves to select: a tree of bools, a prefix of one, a function from the tree to one, "kernels" (those
that ``ggjax.masks.kernels`` selects), or None (all)."""


class Flat(NamedTuple):
    """A flattened parameter tree: one name, one leaf and one choice for every leaf, in tree order."""

    names: list[str]
    leaves: list[Any]
    selected: list[bool]
    treedef: Any

    def weights(self) -> list[Any]:
        """The selected leaves, in order."""
        return [x for x, s in zip(self.leaves, self.selected, strict=True) if s]

    def weight_names(self) -> list[str]:
        """The names of the selected leaves, in order."""
        return [n for n, s in zip(self.names, self.selected, strict=True) if s]

    def replace(self, weights: Iterable[Any]) -> PyTree:
        """The tree with its selected leaves replaced, in order, and the others as they were."""
        new = iter(weights)
        pairs = zip(self.leaves, self.selected, strict=True)
        return self.treedef.unflatten([next(new) if s else x for x, s in pairs])

    def with_named(self, new: Mapping[str, Any]) -> PyTree:
        """The tree with those of its selected leaves replaced whose names are given."""
        pairs = zip(self.weight_names(), self.weights(), strict=True)
        return self.replace(new.get(n, x) for n, x in pairs)

    def other_arrays(self) -> list[Any]:
        """The arrays that are not selected, in order."""
        return [x for x, s in zip(self.leaves, self.selected, strict=True) if not s and _is_array(x)]

    def rebuilt(self, weights: Iterable[Any], others: Iterable[Any]) -> PyTree:
        """The tree of these selected leaves and other arrays, none of which is then a constant of a trace."""
        rest, pairs = iter(others), zip(self.leaves, self.selected, strict=True)
        leaves = [next(rest) if not s and _is_array(x) else x for x, s in pairs]
        return self._replace(leaves=leaves).replace(weights)


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


ROOT = "(root)"
"""The name of a tree that is a single leaf."""


def leaf_name(path: Sequence[Any]) -> str:
    """The name of a leaf as messages, masks and files spell it, e.g. ``params/layers_0/kernel``."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/") if path else ROOT


def is_weight(leaf: Any) -> bool:
    """Whether the leaf is an array (or an abstract one) of a dtype that weights are kept in."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and is_weight_dtype(dtype)


def is_weight_dtype(dtype: Any) -> bool:
    """Whether the dtype is a floating one with a sign, a zero and at least eight bits.

    float8_e8m0fnu has neither sign nor zero: it holds scales. Floats of four and six bits hold codes whose
    scales are kept elsewhere. Neither kind can be rounded, shrunk or fitted like a weight.
    """
    if not jnp.issubdtype(dtype, np.floating):
        return False
    return jnp.dtype(dtype) != jnp.float8_e8m0fnu and jnp.finfo(dtype).bits >= 8


def flatten(tree: PyTree, mask: Mask = None, *, needs_weights: bool = True) -> Flat:
    """Flatten a tree and choose its weight leaves.

    Args:
      tree: any pytree of arrays.
      mask: the leaves to choose among; the floating ones of these are selected.
      needs_weights: refuse a tree that has leaves, none of them floating.

    Raises:
      ValueError: the mask does not fit the tree, or there are leaves but no floating one.
      TypeError: the mask holds something other than bools.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [leaf_name(path) for path, _ in paths]
    leaves = [leaf for _, leaf in paths]
    chosen = _resolve_mask(tree, mask, names)
    selected = [c and is_weight(leaf) for c, leaf in zip(chosen, leaves, strict=True)]
    if needs_weights and leaves and not any(map(is_weight, leaves)):
        dtype = getattr(leaves[0], "dtype", type(leaves[0]).__name__)
        raise ValueError(
            f"no floating-point array to work on: all {len(leaves)} leaves are something else "
            f"(the first, {names[0]!r}, is {dtype})"
        )
    return Flat(names, leaves, selected, treedef)


def _resolve_mask(tree: PyTree, mask: Mask, names: list[str]) -> list[bool]:
    mask = named_mask(mask) if isinstance(mask, str) else mask
    if mask is None or not names:  # a tree without leaves, as optax.tree_map_params has them, fits any mask
        return [True] * len(names)
    mask = mask(tree) if _is_function(mask) else mask
    try:
        chosen = jax.tree.leaves(jax.tree.broadcast(mask, tree))
    except ValueError as e:
        raise ValueError(f"mask does not fit the tree (neither the same nor a prefix of it): {e}") from e
    for name, c in zip(names, chosen, strict=True):
        if not isinstance(c, (bool, np.bool_)):
            raise TypeError(f"mask at leaf {name!r}: expected a bool, got {c!r}")
    return [bool(c) for c in chosen]


def named_mask(mask: str) -> Callable[[PyTree], PyTree]:
    """The mask of a name; raises ValueError for one that there is not."""
    if mask != "kernels":
        raise ValueError(f'mask must be "kernels", a tree of bools or a function to one, got {mask!r}')
    from ggjax import masks  # which is built on this module

    return masks.kernels


def _is_function(mask: Any) -> bool:
    """Whether the mask is a function from trees to masks, and not a tree of bools that can also be called (an
    Equinox module, say): the rule of ``optax.masked``."""
    leaves = jax.tree.leaves(mask)
    return bool(leaves) and all(map(callable, leaves))


def is_concrete(*values: Any) -> bool:
    """Whether no value is traced or abstract, so that the numbers can be looked at."""
    return not any(isinstance(v, (jax.core.Tracer, jax.ShapeDtypeStruct)) for v in values)


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError naming the argument unless it is positive and finite (traced numbers pass)."""
    number = _number(name, value)
    if number is not None and not (np.all(np.isfinite(number)) and np.all(number > 0)):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError naming the argument unless it is at least 0 and finite (traced numbers pass)."""
    number = _number(name, value)
    if number is not None and not (np.all(np.isfinite(number)) and np.all(number >= 0)):
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}")


def _number(name: str, value: Any) -> np.ndarray | None:
    if not is_concrete(value):
        return None
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def check_finite(names: Sequence[str], leaves: Sequence[Any]) -> None:
    """Raise ValueError naming the first leaf that holds a NaN or an infinity.

    Looks at concrete arrays only, those that a function under trace closes over among them: nothing can be
    raised about numbers that are still traced.
    """
    if not leaves or not is_concrete(*leaves):
        return
    with jax.ensure_compile_time_eval():
        finite = jax.device_get(_all_finite(list(leaves)))
    for name, leaf, ok in zip(names, leaves, finite, strict=True):
        if not ok:
            values = np.asarray(leaf, np.float64)
            bad = np.argwhere(~np.isfinite(values))
            where = tuple(int(i) for i in bad[0])
            raise ValueError(
                f"leaf {name!r}: expected finite weights, got {values[where]} at index {where} "
                f"({len(bad)} of {values.size} are NaN or infinite)"
            )


@jax.jit
def _all_finite(leaves: list[Any]) -> list[jax.Array]:
    return [jnp.isfinite(x).all() for x in leaves]


def wide_dtype(*dtypes: Any) -> Any:
    """The dtype that sums are taken in: float32, or float64 when one of the dtypes is float64."""
    return jnp.float64 if any(jnp.dtype(d) == np.float64 for d in dtypes) else jnp.float32


def wide(x: Any) -> jax.Array:
    """The array as float32, or as it is when it is float64."""
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype))


def size(leaves: Sequence[Any]) -> int:
    """The number of elements of all leaves together: a Python int, so it cannot overflow."""
    return sum(int(np.prod(np.shape(x), dtype=object)) for x in leaves)
