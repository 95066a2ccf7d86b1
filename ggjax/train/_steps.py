"""Quantization steps for ``backslash_to_rate``: one for all weights, or a tree of steps of leaves and rows.

Weights of several steps are measured and moved as weights over their relative steps r (their own over the
geometric mean of all), which all have the mean step: the rate is that of theta / r.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees
from ggjax.train import _law


def check(step: Any) -> None:
    """Raise a ValueError or TypeError that names the step, or the leaf of it, that cannot be used."""
    if is_tree(step):
        for path, value in jax.tree_util.tree_flatten_with_path(step)[0]:
            _check(f"step of leaf {trees.leaf_name(path)!r}", value)
        return
    _check("step", step)
    if np.ndim(step):
        raise ValueError(
            f"step must be one number or a tree of steps like the parameters, got an array of shape "
            f"{np.shape(step)}"
        )


LEAST = 1e-15
"""Weights in units of a smaller step have squares that float32 cannot hold."""


def _check(name: str, value: Any) -> None:
    trees.check_positive(name, value)
    if trees.is_concrete(value) and np.any(np.asarray(value) < LEAST):
        raise ValueError(f"{name} must be {LEAST:g} or more, got {value!r}")


def is_tree(step: Any) -> bool:
    """Whether this is a tree of steps, and not a single one."""
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(step))


def of_leaves(
    step: Any, names: Sequence[str], leaves: Sequence[jax.Array], axes: Sequence[_law.Axes]
) -> tuple[jax.Array, list[jax.Array] | None]:
    """The geometric mean of the steps, float32, and the relative steps of every leaf, None for a single step.

    Args:
      step: a number, or a tree whose leaves have the names of the weights and broadcast to their shapes.
      names, leaves: the weights.
      axes: the mesh axes that each is split over, as ``_law.shard_axes`` gives them.

    Raises:
      ValueError: a leaf has no step, or one that does not broadcast to it; the message names the leaf.
    """
    if not is_tree(step):
        return jnp.asarray(step, jnp.float32), None
    given = {trees.leaf_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(step)[0]}
    own = [_own(given, name, jnp.shape(x)) for name, x in zip(names, leaves, strict=True)]
    sums = [jnp.mean(jnp.log(s)) * float(np.size(x)) for s, x in zip(own, leaves, strict=True)]
    mean = jnp.exp(
        jnp.sum(_law.over_shards(sums, axes)) / float(_law.sizes([x.shape for x in leaves], axes).sum())
    )
    return mean, [s / mean for s in own]


def _own(given: dict[str, Any], name: str, shape: tuple[int, ...]) -> jax.Array:
    if name not in given:
        raise ValueError(f"leaf {name!r} has no step: step has the leaves {sorted(given)}")
    own = jnp.asarray(given[name], jnp.float32)
    axes = zip(own.shape[::-1], shape[::-1], strict=False)
    fits = own.ndim <= len(shape) and all(a in (1, b) for a, b in axes)
    if not fits:
        raise ValueError(
            f"leaf {name!r} of shape {shape} has steps of shape {own.shape}, which do not broadcast"
        )
    return own.reshape((1,) * (len(shape) - own.ndim) + own.shape)


def scaled(
    pull: jax.Array, eps: jax.Array, nu: jax.Array, relative: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The pull and eps for ``_step.shrink`` of weights theta whose rate is that of theta / r.

    The gradient of (|theta / r| + eps)^nu is nu (|theta| + eps r)^(nu - 1) r^-nu.
    """
    if relative is None:
        return pull, eps
    return pull * relative ** (-nu), eps * relative
