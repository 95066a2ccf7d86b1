"""What BackSlash does not move: frozen weights, leaves that no law fits, biases, weights at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ggjax

KERNEL = 0.1 * jax.random.normal(jax.random.key(0), (32, 16))
SMALL = jnp.full((32, 16), 1e-3)


def step(tx, params, updates):
    new, state = tx.update(updates, tx.init(params), params)
    return new, state


def test_weights_frozen_by_optax_do_not_move():
    params = {"frozen": KERNEL, "trained": KERNEL + 1}
    tx = optax.chain(
        optax.partition(
            {"train": optax.sgd(0.1), "freeze": optax.set_to_zero()}, {"frozen": "freeze", "trained": "train"}
        ),
        ggjax.backslash(5.0),
    )
    grads = jax.tree.map(jnp.ones_like, params)
    new, _ = step(tx, params, grads)
    assert not new["frozen"].any()
    assert (new["trained"] < -0.1).all()  # beyond the optimizer's own step


def test_weights_without_an_update_move_when_asked():
    params, zeros = {"w": KERNEL}, {"w": jnp.zeros_like(KERNEL)}
    assert not step(ggjax.backslash(5.0), params, zeros)[0]["w"].any()
    moved = step(ggjax.backslash(5.0, move_idle=True), params, zeros)[0]["w"]
    np.testing.assert_array_equal(jnp.sign(moved), -jnp.sign(KERNEL))


@pytest.mark.parametrize("fill", [np.finfo("f").min, -np.inf, np.nan, -1e30])
@pytest.mark.parametrize("per_leaf", [False, True])
def test_a_leaf_that_no_law_fits_harms_no_other(fill, per_leaf):
    params = {"w": KERNEL, "scores": jnp.triu(jnp.full((8, 8), fill, jnp.float32), 1)}
    updates = {"w": SMALL, "scores": jnp.ones((8, 8))}
    tx = ggjax.backslash(5.0, clamp=True, per_leaf=per_leaf)
    new, state = step(tx, params, updates)
    alone, alone_state = step(tx, {"w": KERNEL}, {"w": SMALL})
    np.testing.assert_allclose(new["w"], alone["w"], rtol=1e-6)
    np.testing.assert_array_equal(new["scores"], updates["scores"])
    shape, shape_alone = state.gg_shape, alone_state.gg_shape
    assert (shape[1] if per_leaf else shape) == (shape_alone[0] if per_leaf else shape_alone)


def test_nothing_that_can_be_fitted_leaves_the_updates_as_they_are():
    params = {"w": jnp.full((4, 4), jnp.nan)}
    new, _ = step(ggjax.backslash(5.0), params, {"w": jnp.ones((4, 4))})
    np.testing.assert_array_equal(new["w"], jnp.ones((4, 4)))


def test_only_kernels_are_selected_by_default():
    params = {"kernel": KERNEL, "bias": jnp.ones(16), "norm": {"scale": jnp.ones((4, 16))}}
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    new, state = step(ggjax.backslash(5.0), params, updates)
    alone, alone_state = step(ggjax.backslash(5.0), {"kernel": KERNEL}, {"kernel": updates["kernel"]})
    np.testing.assert_array_equal(new["kernel"], alone["kernel"])
    np.testing.assert_array_equal(new["bias"], updates["bias"])
    np.testing.assert_array_equal(new["norm"]["scale"], updates["norm"]["scale"])
    assert state.gg_shape == alone_state.gg_shape
    everything, _ = step(ggjax.backslash(5.0, mask=None), params, updates)
    assert (everything["bias"] < updates["bias"]).all()


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32])
def test_trees_without_a_weight_pass(dtype):
    params = {"w": jnp.ones((3, 3), dtype)}
    tx = ggjax.backslash(1.0)
    new, state = tx.update(params, tx.init(params), params)
    assert new["w"] is params["w"] and state.count == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_clamped_weights_stop_at_zero_exactly(dtype):
    """Also after the sum of optax.apply_updates has been rounded."""
    keys = jax.random.split(jax.random.key(1), 2)
    params = {"w": (0.01 * jax.random.normal(keys[0], (64, 64))).astype(dtype)}
    updates = {"w": (0.01 * jax.random.normal(keys[1], (64, 64))).astype(dtype)}
    tx = ggjax.backslash(20.0, gg_shape=1, clamp=True)  # a step of 20 / 64^2, about 0.005
    new = optax.apply_updates(params, step(tx, params, updates)[0])["w"].astype(jnp.float32)
    led_to = np.asarray(params["w"], np.float64) + np.asarray(updates["w"], np.float64)
    assert (np.asarray(new) * led_to >= 0).all()
    reached = np.abs(led_to) < 0.9 * 20 / 64**2
    assert reached.any() and not np.asarray(new)[reached].any()


def test_a_masked_update_of_a_weight_is_left_out():
    params = {"kernel": jnp.ones((2, 3)), "other": {"kernel": jnp.ones((3, 4))}}
    tx = ggjax.backslash(1.0)
    updates = {"kernel": optax.MaskedNode(), "other": {"kernel": jnp.full((3, 4), 0.1)}}
    found, state = tx.update(updates, tx.init(params), params)
    assert isinstance(found["kernel"], optax.MaskedNode)
    assert state.fitted.tolist() == [False, True]
    assert (found["other"]["kernel"] < 0.1).all()
