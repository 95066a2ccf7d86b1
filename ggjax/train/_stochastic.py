"""Adding small updates to low-precision weights without losing them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ggjax._internal import trees
from ggjax.train import _select


def apply_updates_stochastic(params: optax.Params, updates: optax.Updates, key: jax.Array) -> optax.Params:
    """``optax.apply_updates`` that rounds at random, so that the sum is right on average.

    Adding 2e-5 to a bfloat16 weight of 0.05 leaves it as it was; here one sum in so many moves by a whole ulp.
    Leaves of float32 and wider, and leaves that are not floating, are added as optax does; leaves without an
    update, and floats that are no weights (of fewer than eight bits, say), stay as they are.

    Args:
      params: a tree of arrays.
      updates: a tree like params; keep the updates themselves in float32 (a float32 gradient, or a cast before
        the optimizer), since rounding them first loses what this function saves.
      key: an unused PRNG key, a new one every step. Inside ``jax.shard_map`` fold the index of the device into
        it, or all parts of a leaf are rounded alike.

    Returns:
      The new parameters, dtypes as before. E[result] = params + updates wherever the sum is in range.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.full(1000, 1.0, jnp.bfloat16)
    >>> new = apply_updates_stochastic({"w": w}, {"w": jnp.full(1000, -1e-3)}, jax.random.key(0))["w"]
    >>> bool(abs(new.astype(jnp.float32).mean() - 0.999) < 5e-4)
    True
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    keys = jax.random.split(key, max(len(leaves), 1))
    pairs = zip(leaves, treedef.flatten_up_to(updates), keys, strict=False)
    return treedef.unflatten([_add(p, u, k) for p, u, k in pairs])


def _add(p: Any, u: Any, key: jax.Array) -> Any:
    if p is None or not _select.is_given(u) or jnp.result_type(u) == jax.dtypes.float0:
        return p
    if not trees.is_weight(p):
        odd = hasattr(p, "dtype") and jnp.issubdtype(p.dtype, np.floating)  # of too few bits to be added to
        return p if odd else optax.apply_updates(p, u)
    if jnp.finfo(p.dtype).bits < 32:
        return _add_at_random(p, u, key)
    dtype = trees.wide_dtype(p.dtype, jnp.result_type(u))
    return (jnp.asarray(p, dtype) + jnp.asarray(u, dtype)).astype(p.dtype)


@jax.jit
def _add_at_random(p: jax.Array, u: jax.Array, key: jax.Array) -> jax.Array:
    exact = trees.wide(p) + jnp.asarray(u, jnp.float32)
    near = exact.astype(p.dtype)
    error = exact - near.astype(jnp.float32)
    end = float(jnp.finfo(p.dtype).max)  # not infinity, which some floats of eight bits lack
    other = jnp.nextafter(near, jnp.where(error > 0, end, -end).astype(p.dtype))
    gap = jnp.abs(other.astype(jnp.float32) - near.astype(jnp.float32))
    uniform = jax.random.uniform(key, exact.shape, jnp.float32)
    return jnp.where(uniform * gap < jnp.abs(error), other, near)
