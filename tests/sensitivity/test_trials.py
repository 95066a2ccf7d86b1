"""Trial roundings: what they measure is what rounding by one half of the gradients costs on the other half."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from ggjax import sensitivity
from ggjax.sensitivity import _planned, _search, _trials, _tuning

KEY = jax.random.key(3)
MODEL = nn.Sequential([nn.Dense(24), nn.tanh, nn.Dense(12)])
BATCHES = [2 * jax.random.normal(jax.random.key(i), (32, 16)) for i in range(4)]
PARAMS = MODEL.init(KEY, BATCHES[0])


@pytest.fixture(scope="module")
def known():
    return sensitivity.estimate(MODEL.apply, PARAMS, BATCHES, key=KEY)


def test_what_is_measured_is_the_divergence_on_the_other_half(known):
    chosen = {f"params/layers_{i}/kernel": PARAMS["params"][f"layers_{i}"]["kernel"] for i in (0, 2)}
    plans = _planned.planned(chosen, known)
    typical = _planned.typical(plans)
    plans = _tuning.tuned(plans, typical * _trials.STEPS[1], _search.CAP)
    # Of 16 groups of two examples each, every second one is of the second half.
    held = np.concatenate([np.asarray(x).reshape(16, 2, 16)[1::2].reshape(16, 16) for x in BATCHES])
    found = []
    for step in _trials.STEPS:
        levels = _planned.rounded(plans, typical * step, _search.CAP, _planned.FIRST)
        new = jax.tree.map(lambda x: x, PARAMS)
        for i in (0, 2):
            new["params"][f"layers_{i}"]["kernel"] = levels[f"params/layers_{i}/kernel"].values
        p, q = (log_softmax(np.asarray(MODEL.apply(w, held), np.float64), -1) for w in (PARAMS, new))
        each = np.sum(np.exp(p) * (p - q), -1)
        predicted = sensitivity.predict(PARAMS, new, known, half=1).total
        error = each.std() / each.mean() / np.sqrt(each.size)
        trust = _trials.DOUBT**2 / (_trials.DOUBT**2 + error**2)
        assert 0.5 < trust < 1
        found.append((float(predicted), float(predicted) * (each.mean() / float(predicted)) ** trust))
    np.testing.assert_allclose(known.measured, sorted(found), rtol=3e-4)


def test_corrections_are_those_of_the_trials_nearby():
    measured = np.array([[0.01, 0.02], [0.04, 0.02], [0.1, 100.0]])
    ratios = {0.001: 2, 0.01: 2, 0.02: 1, 0.04: 0.5, 1.0: _search.MOST}
    for predicted, ratio in ratios.items():
        assert _search.correction(measured, predicted) == pytest.approx(ratio)
    assert _search.correction(np.zeros((0, 2)), 0.1) == _search.correction(measured, 0.0) == 1


def test_predicted_rises_are_corrected(known):
    chosen = {"params/layers_0/kernel": PARAMS["params"]["layers_0"]["kernel"]}
    twice = known._replace(measured=np.array([[1e-6, 2e-6], [10.0, 20.0]], np.float32))
    without = known._replace(measured=known.measured[:0])
    one, other = (_search.at(_planned.planned(chosen, k), 1.5, 0.1) for k in (twice, without))
    for name, rise in other.rises.items():
        assert one.rises[name] == pytest.approx(2 * rise, rel=1e-4)
        np.testing.assert_array_equal(one.levels[name].levels, other.levels[name].levels)
    assert sum(_search.near(one, 0.02).rises.values()) == pytest.approx(0.02, rel=0.05)


def test_there_are_none_without_a_second_half_or_kernels(known):
    one = sensitivity.estimate(MODEL.apply, PARAMS, BATCHES[:1], key=KEY, groups=1)
    off = sensitivity.estimate(MODEL.apply, PARAMS, BATCHES, key=KEY, trials=False)
    small = sensitivity.estimate(lambda p, x: x * p["b"][None], {"b": jnp.ones(16)}, BATCHES, key=KEY)
    assert len(one.measured) == len(off.measured) == len(small.measured) == 0
    for a, b in zip(jax.tree.leaves(off.factors), jax.tree.leaves(known.factors), strict=True):
        np.testing.assert_array_equal(a, b)


def test_single_gradients_go_to_the_halves_in_turn():
    found = sensitivity.estimate(MODEL.apply, PARAMS, BATCHES, key=KEY, groups=1)
    assert found.examples.tolist() == [64, 64] and len(found.measured) == len(_trials.STEPS)


def test_half_the_squared_error_of_several_outputs():
    params = {"kernel": jax.random.normal(KEY, (16, 20))}

    def apply(p, x):
        y = x @ p["kernel"]
        return {"a": y, "b": y.sum(1)}

    found = sensitivity.estimate(apply, params, BATCHES, key=KEY, output="values")
    # The model is linear: its quadratic model is the truth, up to the noise of so few examples.
    ratios = np.asarray(found.measured)[:, 1] / np.asarray(found.measured)[:, 0]
    assert len(ratios) == 3 and np.all((0.5 < ratios) & (ratios < 2))


def test_files_keep_them(known, tmp_path):
    sensitivity.save(known, tmp_path / "s")
    np.testing.assert_array_equal(sensitivity.load(tmp_path / "s").measured, known.measured)
