"""What the law says of levels, whole numbers that its values are rounded to; everything in units of the step.

In these units a level is neither tiny nor huge, so that nothing leaves the range of float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammainc, gammaincc, gammaln

_LN2 = math.log(2)
"""Nats in a bit: a Python number, which keeps float32 arrays float32 where a NumPy one would not."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
"""Gaussian quadrature on (-1, 1): 24 nodes give the integral below to float32's precision for all nu >= 0.1."""

_LARGEST_EXPONENT = 80.0
"""exp of this is still a float32; a level that costs more nats than that takes bits of the same order."""

_REST = 18.0
"""exp(-18) = 1.5e-8: what the integrand leaves beyond this is less than the rounding of float32."""

_COUNTED = 32
"""Levels whose probabilities are added up one by one. Beyond, the density hardly changes within a level, and
the integral of its logarithm takes the place of the sum: an error below 2e-5 of the entropy."""


def log_mass(inner: jax.Array, nu: jax.Array, scale: jax.Array) -> jax.Array:
    """log of the probability that |x| lies in (inner, inner + 1), for inner > 0.

    With t = (|x| / scale)^nu, that is the integral of t^(a - 1) exp(-t) / Gamma(a), a = 1/nu, over t0 <= t <=
    t1. It is a difference of incomplete gamma functions, which cancel in float32 when the step is small and
    underflow in the tail; so it is written as t0^(a - 1) exp(-t0) times an integral that is close to 1, for
    Gaussian quadrature, and kept as a logarithm.

    Args:
      inner: float32, any shape.
      nu, scale: float32, arrays that broadcast with it.
    """
    a = 1 / nu
    log_t = jnp.clip(nu * (jnp.log(inner) - _log(scale)), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    t = jnp.exp(log_t)
    grow = jnp.expm1(nu * jnp.log1p(1 / inner))  # t1 / t0 - 1
    end = jnp.minimum(t * grow, _REST)  # of t - t0
    nodes, weights = (
        jnp.asarray(v / 2, jnp.float32).reshape((1,) * end.ndim + (-1,)) for v in (1 + _NODES, _WEIGHTS)
    )
    s = end[..., None] * nodes
    values = jnp.exp((a - 1) * jnp.log1p(s / t[..., None]) - s)
    return jnp.log(end * jnp.sum(values * weights, -1)) + (a - 1) * log_t - t - gammaln(a)


def mass_below(outer: float, nu: jax.Array, scale: jax.Array) -> jax.Array:
    """The probability that |x| is below a number."""
    return gammainc(1 / nu, _power(outer, nu, scale))


def floor_entropy(nu: jax.Array, scale: jax.Array) -> jax.Array:
    """The entropy in bits of floor(|x|) under the law.

    Args:
      nu, scale: float32 scalars, nu from 0.1 to 3; a scale of 0 means that all x are 0.

    Returns:
      A float32 scalar, exact to 1e-4 of itself or 1e-6.
    """
    a, log_gamma = 1 / nu, gammaln(1 / nu)
    t = jnp.stack([_power(1.0, nu, scale), _power(float(_COUNTED), nu, scale)])
    above_first, beyond = jnp.unstack(gammaincc(a, t))  # together: each takes a while to compile
    log_p = log_mass(jnp.arange(1, _COUNTED, dtype=jnp.float32), nu, scale)
    head = -_xlogx(1 - above_first) - jnp.sum(jnp.exp(log_p) * log_p)
    # Beyond: the integral of -f log f, where log f = log(nu / (scale Gamma(a))) - t. That of t f is a Q(a + 1,
    # t), and Q(a + 1, t) = Q(a, t) + t^a exp(-t) / Gamma(a + 1).
    log_peak = jnp.log(nu) - _log(scale) - log_gamma
    edge = jnp.exp(jnp.minimum(a * jnp.log(t[1]) - t[1] - log_gamma, _LARGEST_EXPONENT))
    tail = (a - log_peak) * beyond + edge
    return jnp.where(scale > 0, jnp.maximum(head + tail, 0) / _LN2, 0)


def two_way_entropy(p: jax.Array) -> jax.Array:
    """The entropy in bits of what has probability p, and otherwise does not happen."""
    return -(_xlogx(p) + _xlogx(1 - p)) / _LN2


def _xlogx(p: jax.Array) -> jax.Array:
    return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)


def _log(scale: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))


def _power(x: float, nu: jax.Array, scale: jax.Array) -> jax.Array:
    """(x / scale)^nu, within the range of floats."""
    return jnp.exp(jnp.minimum(nu * (math.log(x) - _log(scale)), _LARGEST_EXPONENT))
