"""PowerQuant, the exact compander and EntQuant: rounding without data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
import scipy.stats as st

from ggjax import baselines
from ggjax.baselines import _powerquant

R = np.random.default_rng(0)
W = R.normal(size=(40, 50)).astype(np.float32)


def power_error(w, bits, a):
    """The squared error of the power quantizer from its definition, float64."""
    w, most, top = np.asarray(w, np.float64), 2 ** (bits - 1) - 1, np.abs(w).max()
    q = np.round(most * np.sign(w) * (np.abs(w) / top) ** a)
    return np.sum((np.sign(q) * top * (np.abs(q) / most) ** (1 / a) - w) ** 2)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("bits", [2, 5])
def test_levels_of_values_are_their_levels(a, bits):
    most = 2 ** (bits - 1) - 1
    levels = jnp.arange(-most, most + 1)
    values = _powerquant.from_levels(levels, a, most, jnp.float32(3.0))
    np.testing.assert_array_equal(_powerquant.to_levels(values, a, most), levels)
    assert values[0] == -3 and values[most] == 0 and np.all(np.diff(values) > 0)


def test_power_one_is_plain_rounding():
    top = np.abs(W).max()
    rounded = baselines.power_quant({"w": jnp.asarray(W)}, 4, exponent=1.0)
    np.testing.assert_array_equal(rounded.levels["w"], np.round(7 * np.sign(W) * (np.abs(W) / top)))
    np.testing.assert_allclose(rounded.weights["w"], np.round(W / top * 7) / 7 * top, rtol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_exponent_loses_least(bits):
    a = float(baselines.power_exponent(jnp.asarray(W), bits))
    best = min(power_error(W, bits, v) for v in np.linspace(0.1, 2, 400))
    assert power_error(W, bits, a) <= min(1.02 * best, power_error(W, bits, 1.0) * 1.0001)
    error = np.sum((np.asarray(baselines.power_quant({"w": jnp.asarray(W)}, bits).weights["w"]) - W) ** 2)
    np.testing.assert_allclose(error, power_error(W, bits, a), rtol=1e-3)


@pytest.mark.parametrize("nu", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("bits", [1, 4])
def test_the_compander_is_scipys(nu, bits):
    rounded = baselines.gg_compand({"w": jnp.asarray(W)}, bits, nu=nu)
    unit = np.sqrt(np.mean(np.float64(W) ** 2)) / st.gennorm(nu).std()
    law = st.gennorm(nu, scale=unit * 3 ** (1 / nu))
    places = law.cdf(W) * 2**bits
    inside = np.abs(places - np.round(places)) > 1e-4  # of a cell, as far as float32 can tell
    levels = np.asarray(rounded.levels["w"])
    np.testing.assert_array_equal(levels[inside], np.floor(places)[inside])
    np.testing.assert_allclose(rounded.weights["w"], law.ppf((levels + 0.5) / 2**bits), rtol=2e-5)


def test_the_compander_reaches_panter_and_dites_error():
    w = st.norm.ppf((np.arange(30_000) + 0.5) / 30_000).astype(np.float32)[:, None]
    error = np.mean((np.asarray(baselines.gg_compand({"w": w}, 8, nu=2.0).weights["w"]) - w) ** 2)
    np.testing.assert_allclose(error, np.sqrt(3) * np.pi / 2 / 4**8, rtol=0.03)
    power = np.mean((np.asarray(baselines.power_quant({"w": w}, 8).weights["w"]) - w) ** 2)
    assert error < power  # the power is an approximation


def objective(w, scale, rate_weight, most):
    """EntQuant's, of a matrix whose columns have a scale each."""
    w = np.asarray(w, np.float64)
    q = np.clip(np.round(w / scale), -most, most)
    return np.abs(scale * q - w).sum() / np.abs(w).sum() + rate_weight * np.abs(q).mean()


@pytest.mark.parametrize("most", [3, 127])
@pytest.mark.parametrize("rate_weight", [0.0, 0.01, 0.1, 0.5])
def test_entquant_beats_plain_rounding_and_a_search_of_every_column(rate_weight, most):
    w = W.reshape(400, 5) * np.geomspace(0.01, 10, 5).astype(np.float32)
    rounded = baselines.entquant({"w": jnp.asarray(w)}, rate_weight, most=most)
    q = np.asarray(rounded.levels["w"], np.float64)
    got = np.abs(np.asarray(rounded.weights["w"]) - w).sum() / np.abs(w).sum() + rate_weight * np.abs(q).mean()
    plain = np.abs(w).max(0) / most
    assert got <= objective(w, plain, rate_weight, most) * (1 + 1e-6)
    total = 0.0
    for j in range(w.shape[1]):  # the part of each column, by brute force

        def part(s, j=j):
            k = np.clip(np.round(w[:, j] / s), -most, most)
            return np.abs(s * k - w[:, j]).sum() / np.abs(w).sum() + rate_weight * np.abs(k).sum() / w.size

        total += so.brute(part, [(plain[j] / 8, 2.1 * np.abs(w[:, j]).max())], Ns=1000, full_output=True)[1]
    assert got <= 1.02 * total


def test_entquants_levels_shrink_with_the_rate_weight_and_follow_the_axis():
    params = {"w": jnp.asarray(W), "bias": jnp.ones(3)}
    means = [float(jnp.abs(baselines.entquant(params, r).levels["w"]).mean()) for r in (0.001, 0.1, 1.0, 100.0)]
    assert means[0] > means[1] > means[2] > means[3] == 0
    rounded = baselines.entquant(params, 0.1)
    assert rounded.side_bits == 16 * 50 and rounded.levels["bias"] is None
    other = baselines.entquant({"w": params["w"].T}, 0.1, axis=0)
    np.testing.assert_array_equal(other.levels["w"].T, rounded.levels["w"])
    traced = jax.jit(baselines.entquant)(params, 0.1)
    np.testing.assert_allclose(traced.weights["w"], rounded.weights["w"], rtol=1e-4)


METHODS = {
    "power": functools.partial(baselines.power_quant, bits=6, mask=None),
    "compand": functools.partial(baselines.gg_compand, bits=6, mask=None),
    "entquant": functools.partial(baselines.entquant, rate_weight=1e-3, mask=None),
}


@pytest.mark.parametrize("name", METHODS)
def test_leaves_of_every_kind(name):
    params = {
        "brain": jnp.asarray(W[:8, :8], jnp.bfloat16),
        "cube": jnp.asarray(W[:4, :30].reshape(4, 5, 6)),
        "zeros": jnp.zeros((3, 4)),
        "empty": jnp.zeros((0, 4)),
        "scalar": jnp.asarray(0.3),
        "count": jnp.arange(3),
        "none": None,
    }
    got = jax.jit(METHODS[name])(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got.weights) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert not np.any(np.asarray(got.weights["zeros"]))
    assert got.levels["count"] is None and got.levels["cube"].dtype == np.int32
    np.testing.assert_allclose(got.weights["scalar"], 0.3, rtol=0.02 if name != "compand" else 1)
    for leaf in ("brain", "cube"):
        wide = [np.asarray(t[leaf], np.float32) for t in (got.weights, params)]
        np.testing.assert_allclose(*wide, atol=0.15 if name != "compand" else 0.5)


def test_wrong_arguments():
    params = {"w": jnp.ones((2, 2))}
    for call, words in [
        (lambda: baselines.power_quant(params, 1), "bits must be a whole number from 2 to 16, got 1"),
        (lambda: baselines.power_quant(params, 4, exponent=-1), "exponent must be positive and finite, got -1"),
        (lambda: baselines.power_exponent(jnp.ones(3), 20), "bits must be .*got 20"),
        (lambda: baselines.gg_compand(params, 0), "bits must be a whole number from 1 to 16, got 0"),
        (lambda: baselines.gg_compand(params, 3, nu=0.01), "nu must lie between 0.1 and 100, got 0.01"),
        (lambda: baselines.entquant(params, -1.0), "rate_weight must be at least 0 and finite, got -1.0"),
        (lambda: baselines.entquant(params, 1.0, most=0), "most must be .*got 0"),
        (lambda: baselines.entquant(params, jnp.ones(2)), r"one number, got an array of shape \(2,\)"),
        (lambda: baselines.entquant({"w": jnp.full((2, 2), jnp.nan)}, 1.0), "leaf 'w': .*got nan at index"),
        (lambda: baselines.power_quant({"w": jnp.full((2, 2), jnp.inf)}, 4), "leaf 'w': .*got inf at index"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)])
def test_empty_leaves(shape):
    params = {"w": jnp.ones((4, 4)), "empty": jnp.ones(shape)}
    assert baselines.entquant(params, 0.1, mask=None).weights["empty"].shape == shape


def test_one_exponent_for_all():
    with pytest.raises(ValueError, match=r"exponent must be one number, got an array of shape \(2,\)"):
        baselines.power_quant({"w": jnp.ones((2, 2))}, 4, exponent=jnp.array([0.5, 1.0]))
