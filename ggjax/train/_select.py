"""The leaves that BackSlash acts on, and their updates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ggjax._internal import trees

NO_PARAMS = (
    "backslash works on the parameters and got none: call update(updates, state, params), and put "
    "backslash after the optimizer in optax.chain"
)


def select(params: Any, updates: Any, mask: trees.Mask) -> tuple[trees.Flat, trees.Flat]:
    """The parameters and the updates, of which those leaves are selected that the mask selects and that have an
    update.

    Raises:
      ValueError: no params, or trees that do not fit each other.
    """
    if params is None:
        raise ValueError(NO_PARAMS)
    flat = trees.flatten(params, mask, needs_weights=False)
    steps = flat.treedef.flatten_up_to(updates)
    selected = [s and is_given(u) for s, u in zip(flat.selected, steps, strict=True)]
    flat = flat._replace(selected=selected)
    return flat, flat._replace(leaves=steps)


def is_given(update: Any) -> bool:
    """Whether there is an update for a leaf: it may be None or ``optax.MaskedNode`` instead."""
    return update is not None and not isinstance(update, optax.MaskedNode)


def kept(flat: trees.Flat, field: jax.Array, values: jax.Array) -> jax.Array:
    """Values of the selected leaves as the field of a state has them: one entry for every leaf, or a scalar."""
    return jnp.zeros_like(field).at[np.flatnonzero(flat.selected)].set(values) if values.ndim else values
