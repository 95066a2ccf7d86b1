"""Stochastic rounding of updates to weights of low precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ggjax


def test_low_precision_weights_lose_small_steps_unless_rounded_at_random():
    w = {"w": jnp.full((4000,), 0.05, jnp.bfloat16)}
    tx = ggjax.backslash(2e-5 * 4000, gg_shape=1.0, mask=None, move_idle=True)
    updates, _ = tx.update({"w": jnp.zeros(4000, jnp.float32)}, tx.init(w), w)
    np.testing.assert_allclose(updates["w"], -2e-5, rtol=1e-5)
    with jax.numpy_dtype_promotion("standard"):  # optax adds float32 to bfloat16
        assert (optax.apply_updates(w, updates)["w"] == w["w"]).all()
    total = w
    for key in jax.random.split(jax.random.key(0), 20):
        total = ggjax.apply_updates_stochastic(total, updates, key)
    assert total["w"].dtype == jnp.bfloat16
    drift = float(jnp.mean(total["w"].astype(jnp.float32) - w["w"].astype(jnp.float32)))
    np.testing.assert_allclose(drift, -20 * 2e-5, rtol=0.15)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_stochastic_rounding_gives_a_neighbour_and_is_right_on_average(dtype):
    exact = np.float32(np.linspace(-1.3, 1.3, 41))
    p = jnp.zeros((2000, 41), dtype)
    u = jnp.broadcast_to(exact, (2000, 41))
    got = np.float32(ggjax.apply_updates_stochastic(p, u, jax.random.key(2)))
    ulp = np.maximum(np.abs(exact), 2.0**-14) * 2.0 ** -(jnp.finfo(dtype).nmant)
    assert np.all(np.abs(got - exact) <= ulp)
    assert np.all(np.abs(np.float64(got).mean(0) - exact) <= ulp / 8)


def test_leaves_that_cannot_be_added_to_stay():
    key = jax.random.key(0)
    params = {
        "none": None,
        "activation": jax.nn.relu,
        "key": key,
        "scales": jnp.ones(3, jnp.float8_e8m0fnu),
        "codes": jnp.ones(3, jnp.float4_e2m1fn),
        "counts": jnp.arange(3),
        "steps": jnp.arange(3),
        "w": jnp.ones(3, jnp.float8_e4m3fn),
    }
    updates = {
        "none": None,
        "activation": None,
        "key": None,
        "scales": jnp.ones(3),
        "codes": jnp.ones(3),
        "counts": np.zeros(3, jax.dtypes.float0),  # the gradient that JAX gives integers
        "steps": jnp.ones(3, jnp.int32),
        "w": jnp.ones(3),
    }
    new = ggjax.apply_updates_stochastic(params, updates, key)
    for k in ("none", "activation", "key", "scales", "codes", "counts"):
        assert new[k] is params[k]
    np.testing.assert_array_equal(new["steps"], [1, 2, 3])
    np.testing.assert_array_equal(np.float32(new["w"]), [2, 2, 2])


def test_float32_weights_are_added_as_optax_does():
    p, u = jnp.linspace(-1, 1, 64), jnp.linspace(0, 1e-3, 64)
    got = ggjax.apply_updates_stochastic({"w": p}, {"w": u}, jax.random.key(0))
    np.testing.assert_array_equal(got["w"], optax.apply_updates({"w": p}, {"w": u})["w"])


@pytest.mark.parametrize(
    "dtype",
    ["float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e5m2", "float8_e3m4"],
)
@pytest.mark.parametrize("start", [0.0, 1.0, -1.5])
def test_floats_of_eight_bits_are_right_on_average(dtype, start):
    """Some of them have no infinity to step towards."""
    p = jnp.full(20_000, start, dtype)
    for update in (0.01, -0.003):
        new = ggjax.apply_updates_stochastic(p, jnp.full(p.shape, update), jax.random.key(0))
        values = np.unique(np.asarray(new, np.float64))
        assert len(values) <= 2
        spread = max(np.ptp(values), 1e-9)
        assert abs(np.asarray(new, np.float64).mean() - (start + update)) < 5 * spread / 20_000**0.5 + 1e-7


def test_numbers_of_python_are_updated_and_masked_updates_left_out():
    params, updates = {"s": 0.5, "w": jnp.ones(3)}, {"s": jnp.float32(0.25), "w": optax.MaskedNode()}
    found = ggjax.apply_updates_stochastic(params, updates, jax.random.key(0))
    assert float(found["s"]) == 0.75
    np.testing.assert_array_equal(found["w"], 1)
