"""What the frontier compares: every method trains, and is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from ggjax import baselines, gennorm
from tests.benchmarks.frontier import loop, methods, rounding, training
from tests.benchmarks.frontier.methods import METHODS, Run, Setting
from tests.benchmarks.frontier.training import Trained
from tests.benchmarks.tiny import tiny


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name):
    """It lowers the loss from that of the first weights, which are rounded as the method does."""
    problem, setting = tiny(), Setting(METHODS[name].values[0])
    found = training.train(problem, Run(name, setting, 0, 30))
    params = training.weights_of(found.latent, METHODS[name])
    before = problem.judge(problem.init(0, 0.25, 2.0)[0], {}, "test")["loss"]
    assert problem.judge(params, {}, "test")["loss"] < before - 0.1
    if "own" in rounding.ways_of(name):
        weights, bits = rounding._own(METHODS[name], setting.own, found)(1.0)
        assert 0 < bits < 32 and jax.tree.structure(weights) == jax.tree.structure(params)
        coarse, fewer = rounding._own(METHODS[name], setting.own, found)(4.0)
        change = [float(jnp.abs(w["kernel"] - params["kernel"]).mean()) for w in (weights, coarse)]
        assert fewer < bits and change[0] < change[1]


def test_muon_is_for_the_kernels_between_the_outer_layers():
    """Their updates have singular values nearly alike and a root mean square near 0.4; others are Adam's."""
    shapes = {"embed": (8, 6), "up_0": (6, 24), "Conv_1": (3, 3, 4, 6), "bias": (6,)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    grads = {n: jax.random.normal(k, shape) for k, (n, shape) in zip(keys, shapes.items(), strict=True)}
    muon, adam = methods._scale_by_muon(), optax.scale_by_adam(nesterov=True)
    updates, _ = muon.update(grads, muon.init(grads), grads)
    expected, _ = adam.update(grads, adam.init(grads))
    for name in ("embed", "bias"):
        np.testing.assert_allclose(updates[name], 2 * expected[name], rtol=1e-5)
    for name in ("up_0", "Conv_1"):
        singular = np.linalg.svd(updates[name].reshape(-1, shapes[name][-1]), compute_uv=False)
        before = np.linalg.svd(grads[name].reshape(-1, shapes[name][-1]), compute_uv=False)
        assert singular.max() / singular.min() < min(2, before.max() / before.min())
        assert float(jnp.sqrt(jnp.mean(updates[name] ** 2))) == pytest.approx(0.4, rel=0.3)
        assert float(jnp.vdot(updates[name], grads[name])) > 0


def test_rate_of_the_loop_is_the_cross_entropy_under_the_law():
    """Of rounded weights, by SciPy's distribution function and the moments of the weights."""
    kernel = 0.3 * jax.random.laplace(jax.random.key(0), (64, 64))
    form = loop.in_the_loop()
    latent = form.init({"kernel": kernel, "bias": jnp.zeros(3)})
    step = float(jnp.exp(latent.log_steps["kernel"]))
    assert step == pytest.approx(loop.FIRST_STEP * float(jnp.sqrt(jnp.mean(kernel**2))), rel=1e-5)
    x = np.asarray(kernel, np.float64) / step
    law = gennorm.fit({"kernel": jnp.asarray(x, jnp.float32)})
    levels, cdf = np.round(x), scipy.stats.gennorm(float(law.nu), scale=float(law.scale)).cdf
    bits = -np.log2(cdf(levels + 0.5) - cdf(levels - 0.5)).mean()
    assert float(form.rate(latent)) == pytest.approx(bits, abs=1e-3)
    frozen = form.freeze(latent)
    assert np.array_equal(frozen.levels["kernel"], levels) and frozen.levels["bias"] is None
    np.testing.assert_allclose(frozen.weights["kernel"], form.apply(latent)["kernel"], rtol=1e-5)
    slope = jax.grad(form.rate)(latent)
    assert slope.log_steps["kernel"] < 0  # coarser steps take fewer bits
    fixed = jax.grad(loop.in_the_loop(trained_steps=False).rate)(latent)
    assert fixed.log_steps["kernel"] == 0 and np.any(np.asarray(fixed.weights["kernel"]))


def test_an_own_curve_is_of_the_better_network():
    """The loss of a method that rounds in training is that of the rounded weights where that is lower."""
    problem = tiny()
    form = baselines.epr()
    latent = form.init(problem.init(0, 1.0, 2.0)[0])
    curve = rounding.frontier(problem, "epr", 0.03, Trained(latent, {}, {}), "own", "test")
    assert curve["loss"] <= problem.judge(latent.weights, {}, "test")["loss"]
    assert [p["bits"] for p in curve["points"]] == sorted((p["bits"] for p in curve["points"]), reverse=True)
