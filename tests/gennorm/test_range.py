"""The law's functions over the whole range of shapes, scales and probabilities, against SciPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

from ggjax import gennorm

NUS = np.float32([0.1, 0.2, 0.5, 0.9, 1, 1.1, 2, 3, 10, 30, 100])[:, None]
SCALES = np.float32([1e-30, 1e-10, 1.0, 1e10, 1e30])
HALF = np.float32(0.5)
NEAR = np.logspace(-7, -0.4, 12).astype(np.float32)
Q = np.unique(
    np.concatenate([[1e-37, 1e-30, 1e-12], NEAR, HALF - NEAR, HALF + NEAR, 1 - NEAR]).astype(np.float32)
)


def quantile64(q, nu):
    """As scipy.stats.gennorm.ppf, but for its two faults: 1 - q rounds, and a small |x|^nu underflows."""
    q, nu = np.float64(q), np.float64(nu)
    inner, outer = np.abs(2 * q - 1), 2 * np.minimum(q, 1 - q)
    t = np.where(outer < 0.5, sp.gammainccinv(1 / nu, outer), sp.gammaincinv(1 / nu, inner))
    line = inner * sp.gamma(1 + 1 / nu)
    return np.sign(q - 0.5) * np.where(line**nu < 1e-17, line, t ** (1 / nu))


def test_quantiles_everywhere():
    got = gennorm.ppf(Q[None], NUS)
    # Halving the digits of t = |x|^nu costs x at nu = 0.1 ten times as many of its own.
    np.testing.assert_allclose(got, quantile64(Q, NUS), rtol=3e-5)
    np.testing.assert_allclose(got[1:], quantile64(Q, NUS[1:]), rtol=1e-5)
    plain = (np.abs(Q - 0.5) > 0.1) & (Q > 1e-12) & (Q < 1 - 1e-5)
    np.testing.assert_allclose(got[:, plain], st.gennorm.ppf(np.float64(Q[plain]), np.float64(NUS)), rtol=3e-5)


def test_quantiles_in_float64():
    with jax.enable_x64(True):
        q, nu = np.float64(Q)[None], np.float64(NUS)
        np.testing.assert_allclose(gennorm.ppf(q, nu), quantile64(q, nu), rtol=1e-12)


def test_quantiles_scale_and_shift():
    np.testing.assert_allclose(
        gennorm.ppf(np.float32(0.9), np.float32(0.7), SCALES, SCALES),
        np.float64(SCALES) * (1 + st.gennorm(0.7).ppf(0.9)),
        rtol=1e-5,
    )


@pytest.mark.parametrize("scale", SCALES)
def test_density_and_distribution_at_every_scale(scale):
    z = np.float32([-20, -3, -1.2, -1, -0.6, -1e-3, 0, 1e-3, 0.3, 0.97, 1.03, 2, 15])[None]
    x, nu, wide = z * scale, np.float64(NUS), np.float64(scale)
    law = st.gennorm(nu, scale=wide)
    z64 = np.float64(x) / wide
    r = np.abs(z64) ** nu
    density = gennorm.logpdf(x, NUS, scale)
    # The rounding of x / scale, 6e-8, grows nu-fold in the power; where that overflows, so does the answer.
    want = np.where(r < 3e38, law.logpdf(np.float64(x)), -np.inf)
    np.testing.assert_allclose(density, want, rtol=1e-6 + 2e-7 * np.float64(NUS).max(), atol=2e-6)
    tail = 0.5 * sp.gammaincc(1 / nu, r)
    want = np.where(z64 <= 0, tail, 1 - tail)
    known = want > 1e-35
    got = np.asarray(gennorm.cdf(x, NUS, scale))
    np.testing.assert_allclose(got[known], want[known], rtol=1e-4)
    np.testing.assert_array_less(got[~known], 2e-35)


def test_spread_and_entropy_at_every_scale():
    nu, scale = np.float64(NUS), np.float64(SCALES)[None]
    var = sp.gammaln(3 / nu) - sp.gammaln(1 / nu)
    with np.errstate(over="ignore"):  # 5e42 at nu = 0.1 and scale 1e30
        want = np.float32(scale * np.exp(var / 2))
    np.testing.assert_allclose(gennorm.std(NUS, SCALES[None]), want, rtol=1e-5)
    entropy = 1 / nu + np.log(2 * scale) + sp.gammaln(1 + 1 / nu)
    np.testing.assert_allclose(gennorm.entropy(NUS, SCALES[None]), entropy, rtol=1e-6, atol=2e-6)
    rho = sp.gammaln(3 / nu) + sp.gammaln(1 / nu) - 2 * sp.gammaln(2 / nu)
    np.testing.assert_allclose(gennorm.rho(NUS), np.exp(rho), rtol=3e-5)
    np.testing.assert_allclose(gennorm.rho(NUS[2:]), np.exp(rho[2:]), rtol=2e-6)


def test_shapes_beyond_all_use_tend_to_the_uniform_law():
    for nu in np.float32([1e3, 1e6, 1e30]):
        np.testing.assert_allclose(gennorm.std(nu), 3**-0.5, rtol=2e-3)
        np.testing.assert_allclose(gennorm.rho(nu), 4 / 3, rtol=2e-3)
        np.testing.assert_allclose(gennorm.entropy(nu), np.log(2), rtol=3e-3)
        np.testing.assert_allclose(gennorm.ppf(np.float32([0.05, 0.6]), nu), [-0.9, 0.2], rtol=1e-3)
        np.testing.assert_allclose(gennorm.cdf(np.float32([-0.9, 0.2]), nu), [0.05, 0.6], atol=1e-3)


@functools.cache
def slopes(f):
    """The derivatives with respect to all four arguments, for vectors of them."""
    return jax.jit(jax.vmap(jax.grad(f, (0, 1, 2, 3))))


@pytest.mark.parametrize("f", [gennorm.logpdf, gennorm.cdf])
def test_gradients_survive_every_size(f):
    """In units of the scale they are those at scale 1, and none is NaN where a power overflows."""
    ones = np.ones_like(SCALES)
    dx, dnu, dscale, dloc = slopes(f)(0.7 * SCALES, np.float32(1.3) * ones, SCALES, np.float32(0.2) * SCALES)
    scaled = np.stack([dx * SCALES, dnu, dscale * SCALES, dloc * SCALES], 1)
    np.testing.assert_allclose(scaled, np.broadcast_to(scaled[2], scaled.shape), rtol=2e-5)
    x, nu, scale = np.meshgrid([-1e30, -1e10, 0, 1e-30, 1e20, 1e30], [0.1, 0.5, 2.0, 100.0], SCALES)
    x, nu, scale = (np.float32(v).ravel() for v in (x, nu, scale))
    assert not np.any(np.isnan(slopes(f)(x, nu, scale, 0 * x)))


def test_forward_derivatives_of_an_overflow_are_no_nan():
    for f in (gennorm.logpdf, gennorm.cdf):
        tangent = jax.jvp(lambda x, f=f: f(x, 2.0, 1e-30), (jnp.float32(1e30),), (jnp.float32(1),))[1]
        assert not np.isnan(tangent)


@pytest.mark.parametrize("nu", [0.3, 1.0, 4.0, 40.0])
def test_gradients_with_the_shape(nu):
    step = 1e-5 * nu
    x, q = np.float32([-1.4, -0.6, 0.02, 0.95]), np.float32([1e-4, 0.3, 0.52, 0.97])
    nus, one, zero = (np.full(4, v, np.float32) for v in (nu, 1, 0))
    slope = (st.gennorm.cdf(x, nu + step) - st.gennorm.cdf(x, nu - step)) / (2 * step)
    np.testing.assert_allclose(slopes(gennorm.cdf)(x, nus, one, zero)[1], slope, rtol=2e-3, atol=1e-6)
    slope = (quantile64(q, nu + step) - quantile64(q, nu - step)) / (2 * step)
    np.testing.assert_allclose(slopes(gennorm.ppf)(q, nus, one, zero)[1], slope, rtol=5e-3, atol=2e-6)
