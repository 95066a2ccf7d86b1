"""The strength of BackSlash as a dual variable: raised while the weights take more bits than asked, or lowered.

The logarithm of the strength is a sum of two parts, as in the controllers of engineering:

    log c = I + PROPORTIONAL e,    I <- I + RISE e dt,    e = d within -1 and 1, d = bits - target

The second part alone would be dual ascent, which swings, since the bits follow the strength late; the first
damps it. Weights that are far above the target are not hurried: e is HURRY (1 + d) at most. A pull that has
them at the target before they have learned anything costs loss: 4 to 7 % at 6 and 8 bits in
tests/benchmarks/bench_to_rate.py.

Time t is counted in how far the optimizer can have carried a weight, in units of a weight: dt = learning rate /
mean |theta|. So the same constants serve long and short trainings, and nothing is wound up while the learning
rate is so low that no strength could move the weights. The strength rises by SLEW of its logarithm in an update
at most: with optimizers whose steps are far below the learning rate (SGD), the first pull would otherwise wipe
the weights out. And I falls faster than it rises (FALL in place of RISE): towards the end of a training, as the
learning rate goes to 0, weights that were jolted about zero settle there, which takes bits away with no
stronger pull.
"""

import math

import jax
import jax.numpy as jnp

PROPORTIONAL, RISE, FALL = 8.0, 8.0, 24.0

HURRY = 0.1
"""How much of the bits above the target counts, where they are many."""

WEAK = 0.03
"""A strength that hardly a training feels: up to there I is hurried."""

LONGEST = 0.1
"""dt at most: SGD has learning rates above the size of its weights."""

SLEW = 0.2
"""By how much log c can rise in an update."""

LEAST, MOST = 1e-4, 10.0
"""Of exp(I). The least is a pull that no training feels; the most moves weights against any step of Adam's."""


def advance(
    log_strength: jax.Array,
    strength: jax.Array,
    *,
    bits: jax.Array,
    target: jax.Array,
    learning_rate: jax.Array,
    mean: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The strength for this update, and the I of the next; float32 scalars, as are the arguments.

    Args:
      log_strength: I.
      strength: that of the last update.
      bits, target: per parameter, what there is and what is asked.
      learning_rate: of this update.
      mean: of |theta|; where it is 0, there is nothing to control.
    """
    d = bits - target
    whole = jnp.clip(d, -1, 1)
    e = jnp.minimum(whole, HURRY * (1 + d))
    dt = jnp.where(mean > 0, jnp.minimum(learning_rate / jnp.where(mean > 0, mean, 1), LONGEST), 0)
    change = jnp.where(log_strength < math.log(WEAK), whole, e)
    new = jnp.clip(log_strength + jnp.where(e > 0, RISE, FALL) * change * dt, math.log(LEAST), math.log(MOST))
    highest = jnp.minimum(jnp.maximum(strength, math.exp(-PROPORTIONAL) * LEAST) * math.exp(SLEW), MOST)
    wanted = jnp.minimum(jnp.exp(new + PROPORTIONAL * e), highest)
    known = jnp.isfinite(wanted)  # a target that is traced may be NaN
    return jnp.where(known, wanted, 0), jnp.where(known, new, log_strength)
