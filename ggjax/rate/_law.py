"""The fitted law as a code: what the generalized Gaussian says a level costs.

Everything here is in units of the step, so that a level is a whole number and neither tiny nor huge weights
leave the range of float32 when they are squared.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammainc, gammaln

from ggjax import gennorm

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


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
"""Gaussian quadrature on (-1, 1): 24 nodes give the integral below to float32's precision for all nu >= 0.1."""

_LARGEST_EXPONENT = 80.0
"""exp of this is still a float32; a level that costs more nats than that takes bits of the same order."""

_REST = 18.0
"""exp(-18) = 1.5e-8: what the integrand leaves beyond this is less than the rounding of float32."""


def level_bits(levels: jax.Array, law: Law) -> jax.Array:
    """-log2 of the probability of each level (int32 (k,)): the mass of the law in (q - 1/2, q + 1/2).

    With t = (|x| / scale)^nu, the mass of a level other than 0 is the integral of t^(a - 1) exp(-t) / (2
    Gamma(a)), a = 1/nu, over t0 <= t <= t1. It is a difference of incomplete gamma functions, which cancel in
    float32 when the step is small and underflow in the tail; so it is written as t0^(a - 1) exp(-t0) times an
    integral that is close to 1, for Gaussian quadrature, and kept as a logarithm.
    """
    nu, a = law.nu, 1 / law.nu
    log_unit = -jnp.log(jnp.maximum(law.scale, jnp.finfo(jnp.float32).tiny))
    zero = gammainc(a, jnp.exp(jnp.minimum(nu * (log_unit - _LN2), _LARGEST_EXPONENT)))

    inner = jnp.maximum(jnp.abs(levels).astype(jnp.float32), 1) - 0.5
    log_t = jnp.clip(nu * (log_unit + jnp.log(inner)), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    t = jnp.exp(log_t)
    grow = jnp.expm1(nu * jnp.log1p(1 / inner))  # t1 / t0 - 1
    end = jnp.minimum(t * grow, _REST)  # of t - t0
    s = end[:, None] * jnp.asarray((1 + _NODES) / 2, jnp.float32)[None]
    values = jnp.exp((a - 1) * jnp.log1p(s / t[:, None]) - s)
    integral = end * jnp.sum(values * jnp.asarray(_WEIGHTS / 2, jnp.float32)[None], -1)
    log_mass = jnp.log(integral) + (a - 1) * log_t - t - gammaln(a) - _LN2
    return jnp.where(levels == 0, -jnp.log(zero), -log_mass) / _LN2
