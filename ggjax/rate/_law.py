"""The fitted law as a code: what the generalized Gaussian says a level costs.

Everything here is in units of the step, so that a level is a whole number and neither tiny nor huge weights
leave the range of float32 when they are squared.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from ggjax import gennorm
from ggjax.gennorm import _levels

_LN2 = math.log(2)
"""Nats in a bit: a Python number, which keeps float32 arrays float32 where a NumPy one would not."""


class Law(NamedTuple):
    """The law about 0 of the weights over the step."""

    nu: jax.Array  # float32 (), shape
    scale: jax.Array  # float32 (), alpha over the step; 0 when all weights are 0


def fit(first: jax.Array, second: jax.Array, size: jax.Array) -> Law:
    """The law that ``gennorm.fit`` finds, from sum |x| and sum x^2 of so many weights over the step."""
    some = first != 0  # NaN counts as some
    first, second = jnp.where(some, first, 1), jnp.where(some, second, 1)  # keeps the gradients finite
    nu = jnp.where(some, gennorm.shape_from_ratio((second / first) * (size / first)), 2)
    scale = jnp.where(some, jnp.sqrt(second / size), 0) / gennorm.std(nu).astype(jnp.float32)
    return Law(nu, scale)


def entropy_bits(law: Law) -> jax.Array:
    """The differential entropy in bits, -inf for a law of width 0."""
    some = law.scale > 0
    scale = jnp.where(some, law.scale, 1)
    nats = 1 / law.nu - jnp.log(law.nu / (2 * scale)) + gammaln(1 / law.nu)
    return jnp.where(some, nats / _LN2, -jnp.inf)


def level_bits(levels: jax.Array, law: Law) -> jax.Array:
    """-log2 of the probability of each level (int32 (k,)): the mass of the law in (q - 1/2, q + 1/2)."""
    inner = jnp.maximum(jnp.abs(levels).astype(jnp.float32), 1) - 0.5
    nats = _LN2 - _levels.log_mass(inner, law.nu, law.scale)
    return jnp.where(levels == 0, -jnp.log(_levels.mass_below(0.5, law.nu, law.scale)), nats) / _LN2
