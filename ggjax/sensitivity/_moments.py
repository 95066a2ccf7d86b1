"""A sensitivity from Adam's second moments, for those who have nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ggjax._internal import trees
from ggjax.sensitivity import _state
from ggjax.sensitivity._state import HALVES, Factors, Sensitivity


def from_second_moments(
    second_moments: Any, batch_size: float, *, b2: float | None = None, mask: trees.Mask = None, **options: Any
) -> Sensitivity:
    """The sensitivity that an optimizer's running mean of squared gradients amounts to.

    A diagonal: E[g^2] of a mean over a batch is 1/batch_size of the Fisher matrix's diagonal, plus the square
    of the mean gradient. Both factors of a matrix are its marginal sums, so that rows and columns are told
    apart but single weights are not. The gradients were those of the labels of the data, which near a minimum
    is nearly the same.

    Args:
      second_moments: a tree like the weights, or the state of an optax optimizer that holds one named ``nu``
        (Adam and its kin, in a chain or wrapped).
      batch_size: how many examples (in the sense of ``estimate``) each gradient was the mean over.
      b2: the decay of the running mean, to undo its start from zero; None takes the moments as they are.
      mask, options: as in ``init``.

    Raises:
      KeyError: an optimizer state with no ``nu`` or several.
      ValueError: as ``init``; a batch_size that is not positive.
    """
    trees.check_positive("batch_size", batch_size)
    nu, count = second_moments, None
    if not _is_tree_of_moments(second_moments):
        nu = optax.tree_utils.tree_get(second_moments, "nu")
        count = optax.tree_utils.tree_get(second_moments, "count") if b2 is not None else None
        if nu is None:
            raise KeyError("the optimizer state has no field nu: pass the tree of second moments itself")
    unbiased = 1.0 if b2 is None or count is None else 1 / (1 - b2 ** jnp.asarray(count, jnp.float32))
    state = _state.init(nu, mask=mask, **(options | {"max_dim": 0}))
    flat = trees.flatten(nu, mask)
    factors = {}
    for name, x in zip(flat.weight_names(), flat.weights(), strict=True):
        f = state.factors[name]
        v = f.view.matrices(x.astype(jnp.float32)) * unbiased * batch_size / HALVES
        rows, columns = (jnp.stack([v.sum(axis)] * HALVES) for axis in (2, 1))
        factors[name] = Factors(rows, columns, f.view)
    return Sensitivity(factors, jnp.full(HALVES, 1 / HALVES, jnp.float32), jnp.asarray(HALVES, jnp.int32))


def _is_tree_of_moments(x: Any) -> bool:
    """Whether this is a plain tree of floating arrays, and not an optimizer's state, which counts steps."""
    return not any(
        jnp.issubdtype(jnp.result_type(leaf), jnp.integer) for leaf in jax.tree.leaves(x)
    ) and not isinstance(x, optax.ScaleByRmsState)
