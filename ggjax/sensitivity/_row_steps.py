"""Quantization steps of rows, from what a change of each row costs."""

import math

import jax
import jax.numpy as jnp

from ggjax._internal import trees
from ggjax.sensitivity._state import Factors, Sensitivity, diagonal


def row_steps(
    state: Sensitivity, step: jax.typing.ArrayLike, *, damping: jax.typing.ArrayLike = 0.01
) -> dict[str, jax.Array]:
    """Steps under which every row adds the same to the loss when it is rounded: for ``backslash_to_rate``.

    The step of a row is in proportion to 1 / sqrt(s), where s is the sensitivity of its weights (the mean
    second derivative of the loss): at high rates no other steps have a lower loss at the same bits. Rows are
    those of the matrices that the sensitivity sees (of a Flax kernel, the inputs).

    Args:
      state: the sensitivity, of ``estimate`` or, from Adam's second moments, of ``from_second_moments``.
      step: the geometric mean of the steps, over all weights; positive.
      damping: added to every s, relative to the mean s of all weights: no step is more than 1 / sqrt(damping)
        times that of a row of mean sensitivity. Positive.

    Returns:
      A dict from leaf name to the steps, float32 arrays that broadcast to the leaf. Under jit too.

    Raises:
      ValueError: step or damping is not positive, or the state knows of no gradient.

    >>> from ggjax import sensitivity
    >>> state = sensitivity.init({"w": jnp.zeros((2, 3))})
    >>> state = sensitivity.update(state, {"w": jnp.array([[4.0, 4.0, 4.0], [1.0, 1.0, 1.0]])})
    >>> [round(float(s), 3) for s in row_steps(state, 0.1, damping=1e-6)["w"][:, 0]]
    [0.05, 0.2]
    """
    trees.check_positive("step", step)
    trees.check_positive("damping", damping)
    if trees.is_concrete(state.updates) and not int(state.updates):
        raise ValueError("the sensitivity knows of no gradient yet, expected one or more updates")
    found = {name: _second_derivatives(f) for name, f in state.factors.items()}
    sizes = {name: float(math.prod(f.view.shape)) for name, f in state.factors.items()}
    n = max(sum(sizes.values()), 1.0)
    # A mean over the rows of a leaf is one over its weights: its rows are equally long.
    mean = sum(jnp.mean(x) * sizes[name] for name, x in found.items() if sizes[name]) / n
    mean = jnp.where(mean > 0, mean, 1)
    logs = {name: -jnp.log(x / mean + damping) / 2 for name, x in found.items()}
    centre = sum(jnp.mean(x) * sizes[name] for name, x in logs.items() if sizes[name]) / n
    return {name: jnp.asarray(step, jnp.float32) * jnp.exp(x - centre) for name, x in logs.items()}


def _second_derivatives(f: Factors) -> jax.Array:
    """The mean second derivative of the loss along every row, times the number of examples; of the leaf's axes,
    with size 1 where they are columns."""
    rows, _, _ = f.summed(slice(None))
    view = f.view
    narrow = view._replace(shape=tuple(1 if a in view.columns else n for a, n in enumerate(view.shape)))
    return narrow.leaf(diagonal(rows)) / max(view.sizes[2], 1)
