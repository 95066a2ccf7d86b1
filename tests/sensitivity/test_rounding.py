"""Calibrated rounding of trees: what is asked is met, it beats one step for all, and odd leaves are handled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import sensitivity

KEY = jax.random.key(1)
MODEL = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(10)])
MIXING = jax.random.normal(jax.random.key(2), (48, 48)) * jnp.exp(jnp.linspace(-3, 1, 48))[:, None]
BATCHES = [jax.random.normal(jax.random.key(i), (64, 48)) @ MIXING / 4 for i in range(10)]
PARAMS = MODEL.init(KEY, BATCHES[0])


@pytest.fixture(scope="module")
def known():
    return sensitivity.estimate(MODEL.apply, PARAMS, BATCHES[:8], key=KEY)


def divergence(params):
    """Measured on batches that the calibration did not see, in nats."""
    found = []
    for x in BATCHES[8:]:
        old, new = (jax.nn.log_softmax(MODEL.apply(p, x)) for p in (PARAMS, params))
        found.append(jnp.sum(jnp.exp(old) * (old - new), -1).mean())
    return float(np.mean(found))


def kernels(tree):
    return {k: v["kernel"] for k, v in tree["params"].items()}


def entropy(levels):
    counts = np.unique(levels, return_counts=True)[1]
    return -np.sum(counts * np.log2(counts / counts.sum()))


@pytest.mark.parametrize("rise", [0.001, 0.01])
def test_a_rise_that_is_asked_for_is_met(known, rise):
    got = sensitivity.round_to(PARAMS, known, loss_rise=rise)
    assert got.rise == pytest.approx(rise, rel=0.05)
    assert 0.5 * rise < divergence(got.params) < 1.4 * rise
    for name, bias in (("layers_0", 64), ("layers_2", 10)):  # what is no kernel stays
        np.testing.assert_array_equal(got.params["params"][name]["bias"], np.zeros(bias))


def test_the_same_loss_in_fewer_bits_than_with_one_step_for_all(known):
    got = sensitivity.round_to(PARAMS, known, bits=4)
    assert got.bits == pytest.approx(4, rel=0.006)
    weights = kernels(PARAMS)
    size = sum(w.size for w in weights.values())
    for step in (0.05, 0.04, 0.03, 0.025, 0.02, 0.015):
        levels = {k: np.rint(np.asarray(w) / step) for k, w in weights.items()}
        if sum(map(entropy, levels.values())) / size >= 4:
            break
    plain = {
        "params": {k: {"kernel": q * step, "bias": PARAMS["params"][k]["bias"]} for k, q in levels.items()}
    }
    assert divergence(got.params) < 0.7 * divergence(plain)


def test_weights_are_levels_times_their_steps(known):
    got = sensitivity.round_to(PARAMS, known, bits=3)
    for name, leaf in got.levels.items():
        k = np.asarray(leaf.row_steps, np.int32)[0][:, None] + np.asarray(leaf.column_steps, np.int32)[0][None]
        steps = float(leaf.step) * 2.0 ** (np.minimum(k, int(leaf.limit[0])) / 8)
        np.testing.assert_allclose(leaf.steps[0], steps, rtol=1e-6)
        w = got.params["params"][name.split("/")[1]]["kernel"]
        np.testing.assert_allclose(w, np.asarray(leaf.levels)[0] * steps, rtol=1e-6)
        std = float(np.std(kernels(PARAMS)[name.split("/")[1]]))
        assert steps.max() <= 4 * std * 1.001


def test_odd_leaves():
    params = {
        "stack": jax.random.normal(KEY, (3, 8, 6)),
        "table": jax.random.normal(KEY, (40, 8)),
        "half": jax.random.normal(KEY, (16, 8), jnp.bfloat16),
        "zeros": jnp.zeros((8, 8)),
        "unused": jax.random.normal(KEY, (8, 8)),
        "empty": jnp.zeros((0, 8)),
        "outlier": jax.random.normal(KEY, (8, 8)).at[0, 0].set(175.0),
        "steps": jnp.arange(3),
    }
    state = sensitivity.init(params, max_dim=20, batch_axis=lambda name, x: 0 if name == "stack" else ())
    assert state.factors["table"].rows.ndim == 3  # a diagonal
    for i in range(4):
        grads = {k: jax.random.normal(jax.random.fold_in(KEY, i), x.shape) for k, x in params.items()}
        grads["unused"] = jnp.zeros((8, 8))
        grads["table"] = grads["table"].at[5:].set(0)
        state = sensitivity.update(state, grads, 8)
    got = sensitivity.round_to(params, state, bits=6)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(got.params))
    assert not np.asarray(got.params["zeros"]).any()
    assert set(got.levels) == {"stack", "table", "half", "zeros", "unused", "outlier"}
    np.testing.assert_allclose(got.params["outlier"][0, 0], 175, rtol=0.02)
    np.testing.assert_array_equal(got.params["steps"], params["steps"])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "give one of bits and loss_rise"),
        ({"bits": 3, "loss_rise": 0.1}, "give one of bits and loss_rise"),
        ({"bits": 0}, "bits must be positive"),
        ({"loss_rise": -1.0}, "loss_rise must be positive"),
        ({"bits": 0.01}, "bits=0.01 cannot be reached"),
        ({"loss_rise": 1e6}, "loss_rise=.* cannot be reached"),
    ],
)
def test_what_cannot_be_asked_is_refused(known, given, match):
    with pytest.raises(ValueError, match=match):
        sensitivity.round_to(PARAMS, known, **given)


def test_what_does_not_fit_is_named(known):
    other = {"params": {"layers_0": {"kernel": jnp.ones((48, 63))}}}
    with pytest.raises(ValueError, match=r"'params/layers_0/kernel' has shape \(48, 63\) in params"):
        sensitivity.round_to(other, known, bits=3)
    with pytest.raises(ValueError, match="'w' is not in the sensitivity, which has 4 leaves"):
        sensitivity.round_to({"w": jnp.ones((4, 4))}, known, bits=3)
    with pytest.raises(ValueError, match="'params/layers_0/kernel': expected finite weights"):
        bad = jax.tree.map(lambda w: w, PARAMS)
        bad["params"]["layers_0"]["kernel"] = PARAMS["params"]["layers_0"]["kernel"].at[0, 0].set(jnp.nan)
        sensitivity.round_to(bad, known, bits=3)
    with pytest.raises(ValueError, match="knows too few gradients"):
        sensitivity.round_to(PARAMS, sensitivity.init(PARAMS), bits=3)
