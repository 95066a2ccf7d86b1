"""The rate in closed form against SciPy in float64, and, set right by a count, the entropy of the levels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp

import ggjax
from ggjax import gennorm
from ggjax.gennorm import _levels
from ggjax.train import _measure

FLOOR_ENTROPY = jax.jit(_levels.floor_entropy)
LEVEL_BITS = jax.jit(_measure.level_bits)


def floor_entropy(nu, scale):
    """Bits of floor(|x|), in float64: level by level as far as they differ, and the integral of -f log2 f."""
    a, edges = 1 / nu, np.arange(10_001.0)
    t = (edges / scale) ** nu
    below, above = sp.gammainc(a, t), sp.gammaincc(a, t)
    p = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))
    p = p[p > 0]
    log_peak = math.log(nu / scale) - sp.gammaln(a)
    rest = a * sp.gammaincc(a + 1, t[-1]) - log_peak * sp.gammaincc(a, t[-1])
    return (rest - np.sum(p * np.log(p))) / math.log(2)


@pytest.mark.parametrize("nu", [0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_entropy_of_whole_numbers_under_the_law(nu):
    unit = math.exp((sp.gammaln(3 / nu) - sp.gammaln(1 / nu)) / 2)
    for deviation in 2.0 ** np.arange(-8, 13, 2.9):
        want = floor_entropy(nu, deviation / unit)
        got = FLOOR_ENTROPY(jnp.float32(nu), jnp.float32(deviation / unit))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)
    assert FLOOR_ENTROPY(jnp.float32(nu), jnp.float32(0)) == 0


def reference(z):
    """Bits per weight of weights in steps: the closed form of the docstring, in float64."""
    size = np.abs(np.asarray(z, np.float64))
    y = np.maximum(size - 0.5, 0)
    p = np.mean(size > 0.5)
    if not y.any():
        return 0.0
    first, second = (y.sum() / (p * size.size), np.square(y).sum() / (p * size.size))
    shapes, ratios = gennorm.table()
    nu = shapes[np.abs(ratios - second / first**2).argmin()]
    scale = math.sqrt(second) / math.exp((sp.gammaln(3 / nu) - sp.gammaln(1 / nu)) / 2)
    two_way = -sum(q * math.log2(q) for q in (p, 1 - p) if q)
    return two_way + p * (1 + floor_entropy(nu, scale))


def entropy(z):
    counts = np.unique(np.round(z), return_counts=True)[1] / np.size(z)
    return -np.sum(counts * np.log2(counts))


def drawn(nu, size=200_000):
    """Weights with the law of a shape and unit variance."""
    rng = np.random.default_rng(round(10 * nu))
    x = rng.gamma(1 / nu, size=size) ** (1 / nu) * rng.choice([-1, 1], size)
    return x / math.exp((sp.gammaln(3 / nu) - sp.gammaln(1 / nu)) / 2)


def measured(params, step, **options):
    """The bits in the state after an update that does nothing."""
    return float(state_of(params, step, **options).bits)


def in_closed_form(params, step, **options):
    state = state_of(params, step, **options)
    return float(state.bits - state.correction)


def state_of(params, step, **options):
    tx = ggjax.backslash_to_rate(4.0, step, learning_rate=0.0, **options)
    return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[1]


@pytest.mark.parametrize("nu", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("deviation", [0.25, 0.5, 1.0, 4.0, 30.0])  # in steps: 0.3 to 7 bits
def test_bits_of_weights_with_a_law(nu, deviation):
    x = drawn(nu)
    params = {"w": jnp.asarray(x, jnp.float32).reshape(400, -1)}
    got = in_closed_form(params, 1 / deviation)
    np.testing.assert_allclose(got, reference(deviation * x), rtol=2e-4)
    np.testing.assert_allclose(got, entropy(deviation * x), rtol=0.012)
    np.testing.assert_allclose(measured(params, 1 / deviation), entropy(deviation * x), rtol=1e-4)


def test_bits_of_a_heavy_tail():
    for deviation in (0.25, 1.0, 8.0):
        x = drawn(0.2, 1_000_000) * deviation
        params = {"w": jnp.asarray(x[None], jnp.float32)}
        np.testing.assert_allclose(in_closed_form(params, 1.0), entropy(x), rtol=0.025)


@pytest.mark.parametrize("zeros", [0.3, 0.8, 0.97])
def test_bits_of_weights_of_which_many_are_zero(zeros):
    """For these the law of all weights is far off: it takes the zeros for a peak."""
    x = drawn(1.0) * (np.random.default_rng(0).random(200_000) > zeros)
    for step in (1.0, 2.0**-3, 2.0**-6):
        params = {"w": jnp.asarray(x[None], jnp.float32)}
        np.testing.assert_allclose(in_closed_form(params, step), entropy(x / step), rtol=0.01)
    assert ggjax.rate.bits(params, 2.0**-6, code="gg_closed_form") > 1.1 * entropy(x / 2.0**-6)


def test_bits_by_leaf_are_the_mean_of_those_of_each():
    x = jnp.asarray(drawn(1.0, 20_000), jnp.float32).reshape(100, 200)
    params = {"a": x, "c": 8 * x[:50], "bias": jnp.ones(3)}
    each = [measured({"w": w}, 0.5) for w in (params["a"], params["c"])]
    got = measured(params, 0.5, per_leaf=True)
    np.testing.assert_allclose(got, (2 * each[0] + each[1]) / 3, rtol=1e-5)
    assert got < measured(params, 0.5)


def test_weights_that_are_all_zero_or_all_alike_take_no_or_few_bits():
    for w, bits in ((jnp.zeros((4, 4)), 0.0), (jnp.full((4, 4), 0.2), 0.0), (jnp.full((4, 4), 0.6), 1.0)):
        np.testing.assert_allclose(in_closed_form({"w": w}, 1.0), bits, atol=1e-6)
        assert measured({"w": w}, 1.0) == 0
    ones = jnp.ones(1)
    for got in (
        LEVEL_BITS(0 * ones, 0 * ones, 0 * ones, 0 * ones),
        LEVEL_BITS(ones, 0 * ones, 0 * ones, 0 * ones),
    ):
        assert got == 0


def test_a_leaf_that_cannot_be_fitted_counts_in_nothing():
    x = jnp.asarray(drawn(1.0, 2000), jnp.float32).reshape(40, 50)
    odd = {
        "w": x,
        "nan": x.at[0, 0].set(jnp.nan),
        "huge": jnp.full((4, 4), 1e30),
        "inf": jnp.full((4, 4), -jnp.inf),
    }
    assert measured(odd, 0.25) == measured({"w": x}, 0.25)
    assert measured({"nan": odd["nan"]}, 0.25) == 0
    assert measured({"w": x, "far": jnp.full((4, 4), 1e15)}, 1e-6) == measured({"w": x}, 1e-6)


def test_bits_of_low_precision_are_those_of_its_values():
    x = jnp.asarray(drawn(1.0, 20_000), jnp.bfloat16).reshape(100, 200)
    np.testing.assert_allclose(measured({"w": x}, 0.1), measured({"w": x.astype(jnp.float32)}, 0.1), rtol=1e-6)
