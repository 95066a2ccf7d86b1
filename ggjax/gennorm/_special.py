"""Special functions of the law that stay exact where those of ``jax.scipy.special`` do not.

With t = |z|^nu and a = 1/nu, the probability of a value nearer to the centre than z is the incomplete gamma
function P(a, t), and that of one further away is Q(a, t) = 1 - P(a, t). JAX computes both from t. For a large
nu, t is below the smallest float although z is an ordinary number, and Q is 1 minus a rounded P. So wherever
t <= 1 these functions are computed from log z instead, by the series

    P(a, t) = z exp(-t) / Gamma(1 + a) * (1 + t / (a + 1) + t^2 / ((a + 1) (a + 2)) + ...)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammainc, gammaincc, gammaln
from jax.typing import ArrayLike
from numpy.polynomial import Chebyshev, Polynomial


@jax.custom_jvp
def log_gamma1p(a: jax.Array) -> jax.Array:
    """log Gamma(1 + a) for a >= 0.

    Below a = 1 in float32 by a polynomial, to 1e-8: the general function is off by 7e-7 there, which is more
    than the whole value for a large nu.
    """
    general = gammaln(1 + a)
    if a.dtype != np.float32:
        return general
    small = jnp.minimum(a, 1)
    last, *others = _gamma_coefficients()[::-1]
    near = last
    for c in others:
        near = near * small + c
    return jnp.where(a < 1, small * (small - 1) * near, general)


@log_gamma1p.defjvp
def _log_gamma1p_jvp(primals: Any, tangents: Any) -> Any:
    (a,), (da,) = primals, tangents
    return log_gamma1p(a), digamma(1 + a) * da


_GAMMA_DEGREE = 8
"""Degree at which the polynomial of ``log_gamma1p`` is as exact as float32."""


@functools.cache
def _gamma_coefficients() -> np.ndarray:
    """log Gamma(1 + a) / (a (a - 1)) from a = 0 to 1, lowest power first."""
    from scipy.special import gammaln as gammaln64  # scipy comes with jax

    series = Chebyshev.interpolate(lambda a: gammaln64(1 + a) / (a * (a - 1)), _GAMMA_DEGREE, domain=[0, 1])
    return series.convert(kind=Polynomial).coef.astype(np.float32)


def log_inner(log_z: jax.Array, t: jax.Array, nu: jax.Array) -> jax.Array:
    """log P(1/nu, t): of the probability of a value nearer to the centre than z."""
    by_jax = jnp.log(_positive(gammainc(1 / nu, jnp.maximum(t, 1))))
    return jnp.where(t < 1, _log_inner_below_one(log_z, t, nu), by_jax)


def outer(log_z: jax.Array, t: jax.Array, nu: jax.Array) -> jax.Array:
    """Q(1/nu, t): the probability of a value further from the centre than z."""
    by_jax = gammaincc(1 / nu, jnp.maximum(t, 1))
    return jnp.where(t < 1, -jnp.expm1(_log_inner_below_one(log_z, t, nu)), by_jax)


def log_outer(log_z: jax.Array, t: jax.Array, nu: jax.Array) -> jax.Array:
    """log Q(1/nu, t)."""
    return jnp.log(_positive(outer(log_z, t, nu)))


def log_inner_of_one(nu: jax.Array) -> jax.Array:
    """log P(1/nu, 1): where the series ends."""
    return _log_inner_below_one(0.0, 1.0, nu)


def _log_inner_below_one(log_z: ArrayLike, t: ArrayLike, nu: jax.Array) -> jax.Array:
    """log P(1/nu, t) for t <= 1, and some finite number above."""
    a, t = 1 / nu, jnp.minimum(t, 1)
    return jnp.minimum(log_z, 0) - log_gamma1p(a) - t + jnp.log1p(_series(a, t))


def _series(a: jax.Array, t: jax.Array) -> jax.Array:
    """t / (a + 1) + t^2 / ((a + 1) (a + 2)) + ... for t up to 1."""
    last = 10 if a.dtype == np.float32 else 18  # what follows is below 1 / (last + 1)!, the dtype's rounding
    total = t / (a + last)
    for k in range(last - 1, 0, -1):
        total = t / (a + k) * (1 + total)
    return total


def _positive(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
