"""Candidates for a training of ours with rounding in the loop, to be chosen from by experiment.

The rate is that of the discretised generalized Gaussian law at the step that the weights will be rounded to:
the mean -log2 of the mass of the bin around w / step + noise, under the law that the moments of each leaf say
(no gradient flows through its fit). What the task sees, and whether steps are trained, are the candidates. A
training with any of them can end in calibrated rounding of the latent weights.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ggjax._internal.gradients import straight_through
from ggjax.baselines import Frozen, Reparameterization
from ggjax.baselines._priors import gg_bits
from ggjax.baselines._reparameterization import beside, flatten, split, values_of
from ggjax.gennorm._fit import fit_leaves

Forward = Literal["round", "noise", "none"]
FIRST_STEP = 0.5
"""The step of a leaf at first, in units of the root mean square of its first weights."""


class LoopLatent(NamedTuple):
    """What is trained: weights, and a step for each leaf."""

    weights: Any
    log_steps: Any  # the same tree: float32 (); None for leaves that are not rounded


def in_the_loop(forward: Forward = "round", *, trained_steps: bool = True) -> Reparameterization:
    """Weights trained for the rate at the step that they are rounded to.

    Args:
      forward: the task sees rounded weights, with gradients straight through; or weights with noise as wide as
        a step; or weights as they are.
      trained_steps: whether steps are trained, by the loss of the task and by the rate.
    """

    def init(params: Any) -> LoopLatent:
        flat = flatten(params, "kernels")
        widths = [jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(x, jnp.float32)))) for x in flat.weights()]
        return LoopLatent(params, beside(flat, [jnp.log(FIRST_STEP * jnp.maximum(w, 1e-20)) for w in widths]))

    def leaves_of(latent: LoopLatent) -> tuple[Any, list[tuple[jax.Array, jax.Array]]]:
        flat = flatten(latent.weights, "kernels")
        logs = values_of(flat, latent.log_steps)
        steps = [jnp.exp(s if trained_steps else lax.stop_gradient(s)) for s in logs]
        return flat, [(jnp.asarray(x, jnp.float32), s) for x, s in zip(flat.weights(), steps, strict=True)]

    def apply(latent: LoopLatent, key: jax.Array | None = None) -> Any:
        flat, leaves = leaves_of(latent)
        if forward == "none":
            return latent.weights
        keys = split(key if forward == "noise" else None, flat)
        return flat.replace(_seen(x, s, k) for (x, s), k in zip(leaves, keys, strict=True))

    def rate(latent: LoopLatent, key: jax.Array | None = None) -> jax.Array:
        flat, leaves = leaves_of(latent)
        total, number = jnp.zeros((), jnp.float32), 0
        for (x, s), k in zip(leaves, split(key, flat), strict=True):
            x = x / s
            law = fit_leaves([lax.stop_gradient(x)])
            scale = jnp.maximum(law.scale, 1e-3)
            x = straight_through(jnp.round(x), x) if k is None else x + jax.random.uniform(k, x.shape) - 0.5
            total, number = total + jnp.sum(gg_bits(x, jnp.maximum(law.nu, 0.2), scale)), number + x.size
        return total / max(number, 1)

    def freeze(latent: LoopLatent) -> Frozen:
        flat, leaves = leaves_of(latent)
        levels = [jnp.round(x / s).astype(jnp.int32) for x, s in leaves]
        weights = flat.replace(q * s for q, (_, s) in zip(levels, leaves, strict=True))
        return Frozen(weights, beside(flat, levels), 32 * len(leaves))

    return Reparameterization(init, apply, rate, freeze)


def _seen(x: jax.Array, step: jax.Array, key: jax.Array | None) -> jax.Array:
    if key is None:
        return step * straight_through(jnp.round(x / step), x / step)
    return x + step * (jax.random.uniform(key, x.shape) - 0.5)
