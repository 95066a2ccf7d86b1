"""The law against scipy.stats.gennorm and float64 quadrature, and the sampler against the law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

from ggjax import gennorm
from ggjax.gennorm import _sample

NUS = [0.1, 0.3, 0.5, 0.7, 1.0, 1.37, 2.0, 3.0]


def rho64(nu):
    return sp.gamma(1 / nu) * sp.gamma(3 / nu) / sp.gamma(2 / nu) ** 2


def draw(nu, n, seed=0, scale=1.0):
    """Samples by an independent route: |x|^nu is a gamma variable of shape 1/nu."""
    r = np.random.default_rng(seed)
    return scale * r.gamma(1 / nu, size=n) ** (1 / nu) * r.choice([-1.0, 1.0], n)


@pytest.mark.parametrize("nu", NUS)
def test_rho_is_the_ratio_of_gammas(nu):
    np.testing.assert_allclose(gennorm.rho(nu), rho64(nu), rtol=3e-5)


def test_table_is_rho_in_float64():
    nus, ratios = gennorm.table()
    np.testing.assert_array_equal(nus, np.round(np.linspace(0.10, 3.00, 291), 2))
    np.testing.assert_allclose(ratios, rho64(nus), rtol=1e-12)
    assert np.all(np.diff(ratios) < 0)


def test_shape_from_ratio_gives_every_entry_back():
    nus, ratios = gennorm.table()
    np.testing.assert_array_equal(gennorm.shape_from_ratio(ratios.astype(np.float32)), nus.astype(np.float32))


def test_shape_from_ratio_takes_the_nearest_or_interpolates():
    ratio = rho64(np.array([0.703, 1.204]))
    np.testing.assert_allclose(gennorm.shape_from_ratio(ratio), [0.70, 1.20], rtol=1e-6)
    interpolated = gennorm.shape_from_ratio(ratio, method="interp")
    np.testing.assert_allclose(interpolated, [0.703, 1.204], atol=2e-4)
    ends = gennorm.shape_from_ratio(jnp.array([1e6, 1.0, jnp.nan]))
    np.testing.assert_array_equal(ends, np.float32([0.10, 3.00, np.nan]))
    with pytest.raises(ValueError, match='method must be "table" or "interp", got \'nearest\''):
        gennorm.shape_from_ratio(2.0, method="nearest")


@pytest.mark.parametrize("nu", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("center", [False, True])
def test_fit_matches_moments_in_float64(nu, center):
    x = draw(nu, 30_000, scale=0.02) + 0.003
    tree = {"a": x[:10_000].reshape(100, 100), "b": [x[10_000:], np.arange(3)]}
    tree = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32 if v.dtype == float else jnp.int32), tree)
    law = gennorm.fit(tree, center=center)
    exact = gennorm.fit(tree, center=center, method="interp")
    x = np.float64(np.float32(x))
    loc = x.mean() if center else 0.0
    ratio = np.mean((x - loc) ** 2) / np.mean(np.abs(x - loc)) ** 2
    nus = np.linspace(0.1, 3, 29001)
    best = nus[np.argmin(np.abs(rho64(nus) - ratio))]
    assert abs(law.nu - best) <= 0.00501  # half a step of the table
    assert abs(exact.nu - best) <= 0.0005
    std = np.sqrt(np.mean((x - loc) ** 2))
    alpha = std * np.sqrt(sp.gamma(1 / float(law.nu)) / sp.gamma(3 / float(law.nu)))
    np.testing.assert_allclose(law.scale, alpha, rtol=2e-5)
    np.testing.assert_allclose(law.loc, loc, atol=1e-7)


def test_fit_of_degenerate_weights_is_defined():
    for tree in ({}, {"w": jnp.zeros((0, 3))}, {"w": jnp.zeros(5)}):
        np.testing.assert_array_equal(gennorm.fit(tree), [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(gennorm.fit(jnp.full(4, 0.5), center=True), [2.0, 0.0, 0.5])
    constant = gennorm.fit(jnp.full(4, 0.5))
    assert constant.nu == 3.0 and jnp.isfinite(constant.scale)
    assert jnp.isnan(jax.jit(gennorm.fit)(jnp.array([1.0, jnp.nan])).nu)


def test_fit_selects_by_mask_and_joins_dtypes():
    x = draw(0.5, 4000)
    tree = {"w": jnp.asarray(x, jnp.float32), "b": jnp.ones(100, jnp.bfloat16)}
    only = gennorm.fit({"w": tree["w"]})
    np.testing.assert_array_equal(gennorm.fit(tree, mask={"w": True, "b": False}), only)
    by_name = gennorm.fit(tree, mask=lambda t: {k: k == "w" for k in t})
    np.testing.assert_array_equal(by_name, only)
    both = np.concatenate([x, np.ones(100)])
    ratio = np.mean(both**2) / np.mean(np.abs(both)) ** 2
    assert abs(rho64(float(gennorm.fit(tree, method="interp").nu)) - ratio) < 2e-3


def test_bad_weights_are_named():
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got nan at index \(1, 0\)"):
        gennorm.fit({"a": {"w": jnp.array([[1.0, 2.0], [jnp.nan, 0.0]])}})
    with pytest.raises(ValueError, match="no floating-point array.*'ids', is int32"):
        gennorm.fit({"ids": jnp.arange(3)})
    with pytest.raises(ValueError, match="no floating-point array.*'name', is str"):
        gennorm.fit({"name": "w"})
    with pytest.raises(ValueError, match="mask does not fit the tree"):
        gennorm.fit({"w": jnp.ones(3)}, mask={"v": True})
    with pytest.raises(TypeError, match="mask at leaf 'w': expected a bool, got 0.5"):
        gennorm.fit({"w": jnp.ones(3)}, mask={"w": 0.5})


@pytest.mark.parametrize("nu", NUS)
def test_density_and_distribution_match_scipy(nu):
    x = np.concatenate([-np.logspace(-4, 2, 60)[::-1], [0.0], np.logspace(-4, 2, 60)])
    law = st.gennorm(nu, loc=0.25, scale=0.5)
    x = np.float32(x)
    np.testing.assert_allclose(gennorm.logpdf(x, nu, 0.5, 0.25), law.logpdf(x), rtol=2e-5, atol=2e-5)
    keep = law.cdf(x) > 1e-30
    np.testing.assert_allclose(gennorm.cdf(x, nu, 0.5, 0.25)[keep], law.cdf(x)[keep], rtol=3e-4)
    np.testing.assert_allclose(gennorm.entropy(nu, 0.5), law.entropy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gennorm.std(nu, 0.5), law.std(), rtol=1e-5)


@pytest.mark.parametrize("nu", NUS)
def test_quantile_inverts_the_distribution(nu):
    q = np.float32([1e-12, 1e-5, 0.01, 0.2, 0.4999, 0.5, 0.50003, 0.6, 0.9, 0.9999])
    want = st.gennorm(nu).ppf(np.float64(q))
    np.testing.assert_allclose(gennorm.ppf(q, nu), want, rtol=2e-4, atol=1e-30)
    ends = gennorm.ppf(jnp.array([0.0, 1.0, -0.1]), nu)
    np.testing.assert_array_equal(ends, [-np.inf, np.inf, np.nan])


@pytest.mark.parametrize("nu", [0.5, 1.0, 1.7])
def test_gradients_are_finite_and_right(nu):
    law = st.gennorm(nu)
    for x in (0.0, 0.3, -2.0):
        assert np.isfinite(jax.grad(gennorm.logpdf)(x, nu))
        np.testing.assert_allclose(jax.grad(gennorm.cdf)(x, nu), law.pdf(x), rtol=1e-5)
        step = 1e-4
        for f, g in ((gennorm.cdf, st.gennorm.cdf), (gennorm.logpdf, st.gennorm.logpdf)):
            slope = (g(x, nu + step) - g(x, nu - step)) / (2 * step)
            np.testing.assert_allclose(jax.grad(f, 1)(x, nu), slope, rtol=2e-3, atol=1e-5)
    for q in (0.03, 0.5, 0.8):
        np.testing.assert_allclose(jax.grad(gennorm.ppf)(q, nu), 1 / law.pdf(law.ppf(q)), rtol=1e-3)
        slope = (st.gennorm.ppf(q, nu + 1e-4) - st.gennorm.ppf(q, nu - 1e-4)) / 2e-4
        np.testing.assert_allclose(jax.grad(gennorm.ppf, 1)(q, nu), slope, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("nu", [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0])
def test_samples_follow_the_law(nu):
    n = 10**6
    x = np.asarray(gennorm.sample(jax.random.key(7), nu, (n,)), np.float64)
    assert st.kstest(x, st.gennorm(nu).cdf).pvalue > 1e-3
    for k in (1, 2, 3, 4):
        raw = [0.0 if j % 2 else sp.gamma((j + 1) / nu) / sp.gamma(1 / nu) for j in (k, 2 * k)]
        assert abs(np.mean(x**k) - raw[0]) < 5 * np.sqrt((raw[1] or sp.gamma((2 * k + 1) / nu)) / n)


@pytest.mark.parametrize("nu", [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0])
def test_the_sampler_s_own_law_has_the_right_moments(nu):
    """The moments of the piecewise-linear quantile function itself, free of sampling noise."""
    edge, rise = _sample._quantile_cells(nu)
    cells = 2**10
    weight = np.repeat(2.0 ** np.arange(-31, 0) / cells, cells)
    start, end = edge[1:-1], edge[1:-1] + rise[1:-1]
    for k, bound in (
        (1, 1e-3),
        (2, 1e-3),
        (3, 0.02 if nu < 0.5 else 1e-3),
        (4, 0.15 if nu < 0.5 else 2e-3),
    ):
        # mean of u^k over a cell in which u is uniform from start to end
        mean = np.where(
            start - end < 1e-9 * start,
            start**k,
            (start ** (k + 1) - end ** (k + 1)) / np.where(start > end, (k + 1) * (start - end), 1),
        )
        moment = np.sum(weight * mean) + 2.0**-31 * edge[0] ** k
        np.testing.assert_allclose(moment, sp.gamma((k + 1) / nu) / sp.gamma(1 / nu), rtol=bound)


def test_sampling_dtypes_shapes_and_errors():
    key = jax.random.key(1)
    full = gennorm.sample(key, 0.7, (64, 3))
    half = gennorm.sample(key, 0.7, (64, 3), jnp.bfloat16)
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))
    assert gennorm.sample(key, 0.7).shape == () and gennorm.sample(key, 0.7, (0, 2)).shape == (0, 2)
    assert jnp.isfinite(jax.jit(lambda v: gennorm.sample(key, v, (5,)))(0.7)).all()
    for nu in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="nu must be positive and finite, got"):
            gennorm.sample(key, nu)
    with pytest.raises(ValueError, match="nu must be at least 0.1, got 0.05"):
        gennorm.sample(key, 0.05)
    with pytest.raises(TypeError, match="dtype must be a floating one, got int32"):
        gennorm.sample(key, 1.0, dtype=jnp.int32)
    with pytest.raises(ValueError, match="scale must be positive and finite, got 0.0"):
        gennorm.cdf(1.0, 1.0, 0.0)
