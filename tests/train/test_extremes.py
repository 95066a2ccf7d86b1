"""BackSlash at the ends of the numbers: weights clamped at zero, sums that overflow or vanish."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as hs

import ggjax

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
NUMBERS = hs.lists(hs.tuples(hs.floats(-2, 2, width=16), hs.floats(-2, 2, width=16)), min_size=8, max_size=8)


@functools.cache
def clamped(fused):
    def update(params, updates, rate_weight, eps):
        tx = ggjax.backslash(rate_weight, eps=eps, clamp=True, mask=None)
        new, state = tx.update(updates, tx.init(params), params)
        return (optax.apply_updates(params, new) if fused else new), state

    return jax.jit(update)


@pytest.mark.parametrize("update_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(NUMBERS, hs.floats(0, 10), hs.sampled_from([1e-3, 1.0]))
@example([(0.1, -0.15)] * 8, 0.5, 1.0)
@example([(1.0, -0.999)] * 8, 1e-2, 1.0)
@example([(1e-3, 1.0)] * 8, 8.0, 1.0)
def test_clamped_weights_never_change_their_sign(dtype, update_dtype, numbers, rate_weight, eps):
    """As optax.apply_updates adds them, whether XLA fuses that with the update or not."""
    p, u = (jnp.array(v, d) for v, d in zip(zip(*numbers, strict=True), (dtype, update_dtype), strict=True))
    led_to = np.float64(p) + np.float64(u)
    with jax.numpy_dtype_promotion("standard"):  # optax adds one dtype to another
        fused, state = clamped(True)(p, u, rate_weight, eps)
        apart = optax.apply_updates(p, clamped(False)(p, u, rate_weight, eps)[0])
    for new in map(np.float64, (fused, apart)):
        assert (new * led_to >= 0).all()
        if jnp.finfo(update_dtype).nmant >= jnp.finfo(dtype).nmant and dtype != jnp.bfloat16:
            nu = float(state.gg_shape)
            step = rate_weight / 8 * nu * (np.abs(led_to) + eps) ** (nu - 1)
            reached = (np.float64(u) != 0) & (step > np.abs(led_to) * 1.001 + 1e-6)
            assert not new[reached].any()


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-10, 1e15, 1e18])
def test_weights_of_any_size_give_numbers(scale):
    params = {"w": scale * jax.random.normal(jax.random.key(0), (16, 16))}
    tx = ggjax.backslash(1.0)
    updates, state = tx.update({"w": jnp.full((16, 16), 1e-3 * scale)}, tx.init(params), params)
    assert np.isfinite(updates["w"]).all()
    vanish = 1e-30 < scale < 1e-20  # the squares, but not the weights: no law can be fitted
    assert state.gg_shape == 0 if vanish else 0 < state.gg_shape <= 3


def test_sums_that_overflow_only_together_do_not():
    """Each leaf's squares sum up to less than the largest float32, both together to more."""
    params = {k: jnp.full((4, 4), 0.9 * np.sqrt(np.finfo("f").max) / 4, jnp.float32) for k in "ab"}
    params["c"] = jnp.linspace(-1, 1, 16).reshape(4, 4)
    ones = jax.tree.map(jnp.ones_like, params)
    tx = ggjax.backslash(1.0)
    updates, state = tx.update(ones, tx.init(params), params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
    assert np.isfinite(state.gg_shape) and np.isfinite(state.bits)


@pytest.mark.parametrize("options", [{"rate_weight": 0.0}, {"strength": 0.1, "learning_rate": 0.0}], ids=str)
def test_a_weight_of_zero_leaves_the_updates_alone(options):
    params = {"w": jnp.linspace(-1, 1, 16).reshape(4, 4)}
    updates = {"w": -params["w"] * (1 - 1e-7)}
    tx = ggjax.backslash(clamp=True, **options)
    np.testing.assert_array_equal(tx.update(updates, tx.init(params), params)[0]["w"], updates["w"])


@pytest.mark.parametrize("fill", [np.finfo("f").min, -np.inf, np.nan])
def test_the_penalty_leaves_out_what_no_law_fits(fill):
    w = {"w": jnp.linspace(-1, 1, 16).reshape(4, 4)}
    params = w | {"scores": jnp.full((4, 4), fill)}
    value, slope = jax.jit(jax.value_and_grad(ggjax.rate.penalty))(params)
    np.testing.assert_allclose(value, ggjax.rate.penalty(w), rtol=1e-6)
    assert np.isfinite(slope["w"]).all() and not slope["scores"].any()


@pytest.mark.parametrize("clamp", [False, True])
def test_an_infinite_update_stays_to_be_seen(clamp):
    """By optax.apply_if_finite, say: a weight that has run away is not one to stop at zero."""
    tx = ggjax.backslash(strength=0.02, learning_rate=0.1, clamp=clamp, gg_shape=0.5)
    params = {"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])}
    updates = {"kernel": jnp.array([[jnp.inf, -jnp.inf], [0.01, jnp.nan]])}
    found = np.isfinite(tx.update(updates, tx.init(params), params)[0]["kernel"])
    np.testing.assert_array_equal(found, [[False, False], [True, False]])
