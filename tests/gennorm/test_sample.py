"""Draws: large shapes, shapes that are traced, arrays of shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

from ggjax import gennorm
from ggjax.gennorm import _sample

KEY = jax.random.key(11)
N = 200_000


def distribution64(x, nu):
    """As scipy.stats.gennorm.cdf, also where |x|^nu underflows."""
    r = np.abs(x) ** nu
    inner = np.where(r < 1e-17, np.abs(x) / sp.gamma(1 + 1 / nu), sp.gammainc(1 / nu, r))
    return 0.5 + 0.5 * np.sign(x) * inner


@pytest.mark.parametrize("nu", [5.0, 20.0, 100.0, 1000.0, 1e6])
def test_large_shapes_follow_the_law(nu):
    x = np.asarray(gennorm.sample(KEY, nu, (N,)), np.float64)
    assert st.kstest(x, lambda v: distribution64(v, nu)).pvalue > 1e-3
    for k in (1, 2, 4):
        moment, square = (np.exp(sp.gammaln((j + 1) / nu) - sp.gammaln(1 / nu)) for j in (k, 2 * k))
        assert abs(np.mean(np.abs(x) ** k) - moment) < 5 * np.sqrt((square - moment**2) / N)


@jax.jit
def traced(nu):
    return gennorm.sample(KEY, nu, (N,))


@pytest.mark.parametrize("nu", [0.1, 0.7, 2.0, 1000.0])
def test_a_traced_shape_draws_the_values_of_a_known_one(nu):
    np.testing.assert_allclose(traced(np.float32(nu)), gennorm.sample(KEY, nu, (N,)), rtol=3e-5)


def test_a_traced_shape_draws_the_same_tails():
    for nu in (0.1, 0.5, 1.0, 3.0, 300.0):
        known, traced = _sample._quantile_cells(nu), _sample._traced_quantile_cells(jnp.float32(nu))
        np.testing.assert_allclose(traced[0], known[0], rtol=3e-5)


def test_shapes_known_only_as_arrays():
    known = gennorm.sample(KEY, 0.7, (5,))
    for nu in (np.float32(0.7), jnp.float32(0.7), np.float64(np.float32(0.7))):
        np.testing.assert_allclose(gennorm.sample(KEY, nu, (5,)), known, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(lambda nu=nu: gennorm.sample(KEY, nu, (5,)))(), known, rtol=1e-5)


def test_an_array_of_shapes_broadcasts():
    nus, rows = np.float32([0.5, 1.0, 40.0]), (3, 10_000)
    x = gennorm.sample(KEY, nus[:, None], rows, scale=np.float32([2.0]))
    for row, nu in zip(np.asarray(x, np.float64), nus, strict=True):
        assert st.kstest(row, st.gennorm(float(nu), scale=2.0).cdf).pvalue > 1e-3
    for row, nu in enumerate(nus):
        known = gennorm.sample(KEY, nu, rows, scale=2.0)
        np.testing.assert_allclose(x[row], known[row], rtol=1e-4, atol=1e-5)


def test_the_shape_of_draws():
    nus = np.float32([0.5, 1.0, 40.0])
    for got, want in (
        (lambda: gennorm.sample(KEY, nus), (3,)),
        (lambda: gennorm.sample(KEY, nus, (2, 3), jnp.bfloat16), (2, 3)),
        (lambda: gennorm.sample(KEY, 1.0, scale=np.ones((2, 1), np.float32)), (2, 1)),
        (lambda: gennorm.sample(KEY, nus, scale=np.ones((2, 1), np.float32)), (2, 3)),
        (lambda: gennorm.sample(KEY, nus[:0]), (0,)),
    ):
        assert jax.eval_shape(got).shape == want


def test_arguments_that_do_not_broadcast_are_named():
    with pytest.raises(ValueError, match=r"nu of shape \(3,\) does not broadcast to the shape \(2,\)"):
        gennorm.sample(KEY, np.ones(3, np.float32), (2,))
    with pytest.raises(ValueError, match=r"scale of shape \(2, 1\) does not broadcast to the shape \(2,\)"):
        gennorm.sample(KEY, 1.0, (2,), scale=np.ones((2, 1), np.float32))
    with pytest.raises(ValueError, match="nu must be at least 0.1, got"):
        gennorm.sample(KEY, np.float32([1.0, 0.05]))


def test_draws_can_be_differentiated():
    """The derivative with the shape is that of the quantile, along a fixed random number."""
    nu, step = 0.9, 1e-4
    slope = (gennorm.sample(KEY, nu + step, (50,)) - gennorm.sample(KEY, nu - step, (50,))) / (2 * step)
    got = jax.jit(jax.jacfwd(lambda v: gennorm.sample(KEY, v[None], (50,))))(jnp.float32(nu))
    np.testing.assert_allclose(got, slope, rtol=0.02, atol=0.01)
    by_scale = jax.jacfwd(lambda s: gennorm.sample(KEY, nu, (50,), scale=s))(1.0)
    np.testing.assert_allclose(by_scale, gennorm.sample(KEY, nu, (50,)), rtol=1e-6)


@pytest.mark.parametrize(
    "nu", [1.3, jnp.float32(1.3), np.array([1.3, 0.7], np.float32)], ids=["known", "array", "each"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_draws_are_the_same_under_x64(nu, dtype):
    key, shape = jax.random.key(4), (50, 2)
    narrow = np.asarray(gennorm.sample(key, nu, shape, "float32"), np.float64)
    with jax.enable_x64(True):
        wide = gennorm.sample(key, nu, shape, dtype)
        assert wide.dtype == dtype
        wide = np.asarray(wide, np.float64)
    np.testing.assert_allclose(wide, narrow, rtol=1e-2 if dtype == "bfloat16" else 2e-5, atol=1e-6)
