"""BackSlash by strength: the step in units of the learning rate, and its hyperparameters in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ggjax

PARAMS = {"a": 0.1 * jax.random.normal(jax.random.key(0), (32, 16)), "c": 0.2 * jnp.ones((8, 4))}
UPDATES = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), PARAMS)


def reference(theta, u, strength, rate, nu, eps):
    """The step in float64, from the formula."""
    new = np.asarray(theta, np.float64) + np.asarray(u, np.float64)
    return np.asarray(u) - strength * rate * nu * np.sign(new) * (np.abs(new) + eps) ** (nu - 1)


@pytest.mark.parametrize("eps", [1.0, 1e-3])
def test_step_is_a_share_of_the_learning_rate(eps):
    schedule = optax.linear_schedule(1e-2, 0.0, 10)
    tx = ggjax.backslash(strength=0.3, learning_rate=schedule, eps=eps)
    state = tx.init(PARAMS)
    for count in range(3):
        new, state = tx.update(UPDATES, state, PARAMS)
        rate = 1e-2 * (1 - count / 10)
        for k in PARAMS:
            want = reference(PARAMS[k], UPDATES[k], 0.3, rate, float(state.gg_shape), eps)
            np.testing.assert_allclose(new[k], want, rtol=2e-5, atol=1e-9)
        np.testing.assert_allclose(state.rate_weight, 0.3 * rate * (32 * 16 + 32), rtol=1e-5)


def test_strength_and_rate_weight_are_the_same_step_in_two_units():
    n = 32 * 16 + 32
    by_strength = ggjax.backslash(strength=0.3, learning_rate=1e-2)
    by_weight = ggjax.backslash(0.3 * 1e-2 * n)
    a, _ = by_strength.update(UPDATES, by_strength.init(PARAMS), PARAMS)
    b, _ = by_weight.update(UPDATES, by_weight.init(PARAMS), PARAMS)
    for k in PARAMS:
        np.testing.assert_allclose(a[k], b[k], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of rate_weight and strength"),
        (
            {"rate_weight": 1.0, "strength": 1.0, "learning_rate": 1.0},
            "exactly one of rate_weight and strength",
        ),
        ({"strength": 0.1}, "strength and learning_rate belong together"),
        ({"rate_weight": 1.0, "learning_rate": 0.1}, "strength and learning_rate belong together"),
        ({"strength": -0.1, "learning_rate": 0.1}, "strength must be at least 0"),
        ({"strength": 0.1, "learning_rate": -0.1}, "learning_rate must be at least 0"),
        ({"rate_weight": 1.0, "mask": "biases"}, "mask"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ggjax.backslash(**arguments)


def test_hyperparameters_in_the_state_have_names_of_their_own():
    schedule = optax.linear_schedule(1e-2, 0.0, 10)
    tx = optax.inject_hyperparams(ggjax.backslash, hyperparam_dtype=jnp.float32)(
        strength=0.3, learning_rate=schedule, eps=0.1, gg_shape=0.9
    )
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(PARAMS)
        new, state = jax.jit(tx.update)(UPDATES, state, PARAMS)
    for name, value in {"strength": 0.3, "eps": 0.1, "gg_shape": 0.9, "shape_in_use": 0.9}.items():
        np.testing.assert_allclose(optax.tree.get(state, name), value, rtol=1e-6)
    want = reference(PARAMS["a"], UPDATES["a"], 0.3, 1e-2, 0.9, 0.1)
    np.testing.assert_allclose(new["a"], want, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("every", [1, 2])
def test_shards_of_one_model_share_its_law(every):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    params, updates = {"a": PARAMS["a"]}, {"a": UPDATES["a"]}

    def update(tx):
        return lambda u, p: tx.update(u, tx.init(p), p)[0]

    tx = ggjax.backslash(5.0, axis_name="d", estimate_every=every)
    mapped = jax.shard_map(update(tx), mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    whole = update(ggjax.backslash(5.0))(updates, params)
    np.testing.assert_allclose(jax.jit(mapped)(updates, params)["a"], whole["a"], rtol=1e-5, atol=1e-8)


def test_shards_without_the_name_of_their_axis_are_refused():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    tx = ggjax.backslash(5.0)
    mapped = jax.shard_map(
        lambda u, p: tx.update(u, tx.init(p), p)[0], mesh=mesh, in_specs=P("d"), out_specs=P("d")
    )
    with pytest.raises(ValueError, match="leaf 'a' is split over the mesh axes.*pass axis_name"):
        mapped({"a": UPDATES["a"]}, {"a": PARAMS["a"]})
