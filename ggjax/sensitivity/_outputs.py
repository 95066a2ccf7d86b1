"""The outputs of a model, and how far those of two models diverge."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Output: TypeAlias = Literal["logits", "values"]


def floating(outputs: Any) -> list[jax.Array]:
    """The floating outputs of a model, as float32.

    Raises:
      ValueError: there is none, or the first has no axis.
    """
    leaves = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(jnp.result_type(x), np.floating)]
    if not leaves or jnp.ndim(leaves[0]) == 0:
        raise ValueError(
            f"apply must give floating-point arrays whose first axis counts examples, got "
            f"{[getattr(x, 'shape', x) for x in leaves]}"
        )
    return [x.astype(jnp.float32) for x in leaves]


def examples_of(outputs: list[jax.Array], output: Output) -> int:
    """How many examples some outputs are."""
    shape = outputs[0].shape
    return int(np.prod(shape[:-1] if output == "logits" else shape[:1]))


def divergences(before: list[jax.Array], after: list[jax.Array], output: Output) -> jax.Array:
    """The Kullback-Leibler divergence of outputs, or half their squared error, of each example."""
    total = jnp.zeros(examples_of(before, output), jnp.float32)
    for old, new in zip(before, after, strict=True):
        if output == "logits":
            each = _kl(jax.nn.log_softmax(old), jax.nn.log_softmax(new))
        else:
            each = jnp.square(new - old) / 2
        total += each.reshape(total.size, -1).sum(1) if each.size >= total.size else each.sum() / total.size
    return total


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """The Kullback-Leibler divergence of logarithms of probabilities, along the last axis.

    It is summed as e^p (e^d - 1 - d) with d = q - p. These terms are all above zero, where those of e^p (p - q)
    cancel: of a divergence of 1e-6 float32 would keep one digit. Both p and q may be -inf.
    """
    never = jnp.isneginf(p)
    d = jnp.where(never, 0.0, q - p)
    near = jnp.exp(p) * (jnp.expm1(jnp.minimum(d, 1.0)) - d)
    far = jnp.exp(q) - jnp.exp(p) * (1 + d)  # what the exponential would overflow
    return jnp.sum(jnp.where(never | (d > 1), far, near), -1)
