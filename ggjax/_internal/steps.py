"""Quantization steps that levels can be computed with."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees


def step_limits(leaves: list[Any]) -> jnp.finfo:
    """The floats that a step is rounded to before it divides the leaves: float64 only if all leaves are."""
    narrow = any(trees.wide_dtype(jnp.result_type(x)) == jnp.float32 for x in leaves)
    return jnp.finfo(jnp.float32 if narrow else jnp.float64)


def check_step(step: Any, leaves: list[Any]) -> None:
    """Raise ValueError unless the step is one positive number that levels can be computed with."""
    trees.check_positive("step", step)
    if np.shape(step) != ():
        raise ValueError(f"step must be one number, got an array of shape {np.shape(step)}")
    if trees.is_concrete(step):
        limits = step_limits(leaves)
        smallest, largest = float(limits.smallest_normal), float(limits.max)
        if not smallest <= float(np.asarray(step)) <= largest:
            raise ValueError(
                f"step must be a normal number of {limits.dtype}, {smallest:.3g} to {largest:.3g}, got {step!r}"
            )
