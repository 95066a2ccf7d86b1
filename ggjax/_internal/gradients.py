"""Gradients that are not those of what is computed."""

import jax
from jax import lax


def straight_through(value: jax.Array, x: jax.Array) -> jax.Array:
    """The value, exactly, with the gradient of x."""
    return lax.stop_gradient(value) + (x - lax.stop_gradient(x))
