"""Text from the demo's model, byte after byte, by weights in whatever form they are kept."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ggjax import serve
from ggjax.app._lm import Cache, Model


@functools.partial(jax.jit, static_argnames=("model", "count"))
def generate(model: Model, params: Any, prompt: jax.Array, count: int) -> jax.Array:
    """Continue texts greedily: every byte is the likeliest one after those before it.

    Args:
      model: the model.
      params: its parameters: floats, small arrays, or a ``Compressed`` tree of them.
      prompt: the texts to continue, uint8 (batch, at least 1).
      count: how many bytes to add.

    Returns:
      The texts with what was added, uint8 (batch, length of the prompt + count).
    """
    batch, given = prompt.shape
    text = jnp.pad(prompt, ((0, 0), (0, count)))

    def step(i: jax.Array, carry: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
        text, cache = carry
        logits, cache = serve.apply(model, {"params": params}, _at(text, i), cache)
        best = jnp.argmax(logits, -1).astype(text.dtype)
        best = jnp.where(i + 1 < given, _at(text, i + 1), best)
        return lax.dynamic_update_slice_in_dim(text, best, i + 1, axis=1), cache

    return lax.fori_loop(0, given + count - 1, step, (text, empty_cache(model, batch, given + count)))[0]


def empty_cache(model: Model, batch: int, context: int) -> Cache:
    """A cache that has seen nothing, with room for so many bytes."""
    shape = (model.depth, batch, context, model.heads, model.width // model.heads)
    return Cache(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros((), jnp.int32))


def _at(text: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(text, i, 1, axis=1)
