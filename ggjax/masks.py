"""Masks for the ``mask=`` argument of this package's functions and of optax's: which leaves to act on.

A mask is a tree of bools like the parameters, a prefix of one, or a function from the parameters to one. The
functions here are of the last kind: ``optax.masked(transform, ggjax.masks.kernels)``.
"""

from typing import Any

import jax

from ggjax._internal import names, trees


def kernels(params: Any) -> Any:
    """True for the leaves that hold connections: those of two and more axes, embeddings and tokens among them.

    Left out by name are biases, scales of normalization layers and their statistics (so that those of layers
    stacked by ``nn.scan`` or ``vmap``, which have two axes, do not count as kernels), parameters such as
    temperatures and layer scales, and buffers that are no weights: causal masks, rotary frequencies, caches. In
    a tree without any kernel (a linear model whose weights are one vector, say) the number of axes does not
    count, only the name.

    Args:
      params: a tree of arrays, or of ``jax.ShapeDtypeStruct``.

    Returns:
      A tree of bools like params.

    >>> import jax.numpy as jnp
    >>> kernels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "norm": {"scale": jnp.ones((4, 3))}})
    {'bias': False, 'kernel': True, 'norm': {'scale': False}}
    """
    found = _by_kind(params, least_axes=2)
    return found if any(jax.tree.leaves(found)) else _by_kind(params, least_axes=0)


def floating(params: Any) -> Any:
    """True for every leaf of a floating dtype: what ``mask=None`` selects.

    >>> import jax.numpy as jnp
    >>> floating({"w": jnp.ones(2), "steps": jnp.array(3)})
    {'steps': False, 'w': True}
    """
    return jax.tree.map(trees.is_weight, params)


_NO_KERNELS: tuple[names.Kind, ...] = ("buffer", "statistic", "bias", "scale", "special")


def _by_kind(params: Any, least_axes: int) -> Any:
    """True for floating leaves of so many axes and more whose names may be those of kernels."""

    def chosen(path: Any, leaf: Any) -> bool:
        if not trees.is_weight(leaf) or len(leaf.shape) < least_axes:
            return False
        return names.kind_of(trees.leaf_name(path)) not in _NO_KERNELS

    return jax.tree_util.tree_map_with_path(chosen, params)
