"""The rate as a term of the loss."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import trees
from ggjax.train import _law, _packs


def penalty(
    params: Any,
    *,
    eps: ArrayLike = 1.0,
    gg_shape: ArrayLike | None = None,
    mask: trees.Mask | Literal["kernels"] = "kernels",
) -> jax.Array:
    """The rate term of BackSlash in the loss: (1/n) sum (|theta| + eps)^nu, differentiable in params.

    Add ``rate_weight * penalty(params)`` to a loss (arXiv 2504.16968). The gradient is finite everywhere,
    0 at a weight of 0. The rate is that of the law up to a factor and a constant, so its value is in no unit.

    Args:
      params: a tree of arrays.
      eps: added to |theta|, positive; 1 in the paper.
      gg_shape: nu, positive; None to fit it to the weights by moments, as ``backslash`` does, which takes at
        most 2 (no gradient flows through the fit).
      mask: the leaves that count, as for ``backslash``: by default the kernels; None for all floating leaves.

    Returns:
      A float32 scalar (float64 for float64 leaves); 0 when there are no weights.

    Raises:
      ValueError: eps or gg_shape is not positive, no floating leaf, a mask that does not fit, weights that
        ``jax.shard_map`` has split, or (outside jit) a NaN or infinite weight. A leaf that cannot be fitted, as
        ``backslash`` defines it, is left out.

    >>> float(penalty({"w": jnp.array([-1.0, 3.0])}, gg_shape=2.0))
    10.0
    """
    trees.check_positive("eps", eps)
    if gg_shape is not None:
        trees.check_positive("gg_shape", gg_shape)
    flat = trees.flatten(params, mask)
    trees.check_finite(flat.weight_names(), flat.weights())
    _law.check_not_split(flat.weight_names(), flat.weights(), "take the penalty outside of shard_map")
    return _penalty(flat.weights(), eps, gg_shape)


@jax.jit
def _penalty(leaves: list[Any], eps: Any, gg_shape: Any) -> jax.Array:
    arrays = [trees.wide(x) for x in leaves]
    if not arrays:
        return jnp.zeros((), jnp.float32)
    here = ((),) * len(arrays)  # no leaf is summed over a mesh
    packing = _packs.plan(arrays, arrays, allowed=False)
    law = _law.fit(lax.stop_gradient(arrays), gg_shape, packing=packing, axes=here, per_leaf=False)
    nu, eps = jnp.asarray(law.nu if gg_shape is None else gg_shape), jnp.asarray(eps)
    dtype = trees.wide_dtype(*(x.dtype for x in arrays))
    total = jnp.zeros((), dtype)
    for x, fitted in zip(arrays, jnp.unstack(law.fitted), strict=True):
        x = jnp.where(fitted, x, 0)
        size = jnp.sign(x) * x  # |x|, but with gradient 0 at 0 (that of jnp.abs is 1 there)
        powers = jnp.exp(nu.astype(x.dtype) * jnp.log(size + eps.astype(x.dtype)))  # faster than a power
        total = total + jnp.where(fitted, jnp.sum(powers), 0).astype(dtype)
    return total / _law.size(law.fitted, packing.shapes, here).astype(dtype)
