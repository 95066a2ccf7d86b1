"""backslash_to_rate: it reaches its targets, from any start, and does no harm where it cannot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ggjax

STEP = 2.0**-4
KEY = jax.random.key(0)
BEST = {"a": jax.random.normal(KEY, (64, 48)), "c": 0.3 * jax.random.laplace(KEY, (48, 32))}  # takes 5.5 bits
RATE = 1e-2
SCHEDULE = optax.cosine_decay_schedule(RATE, 400)
OPTIMIZERS = {"adam": optax.adam(SCHEDULE), "sgd": optax.sgd(SCHEDULE)}
N = 64 * 48 + 48 * 32


def loss_gradients(params, key):
    """Of a quadratic loss about the best weights, with the noise of batches."""
    noise = jax.random.split(key, 2)
    return {
        k: params[k] - BEST[k] + 0.5 * jax.random.normal(n, BEST[k].shape)
        for k, n in zip(BEST, noise, strict=True)
    }


def begin():
    return {k: jax.random.normal(KEY, v.shape) for k, v in BEST.items()}


@functools.partial(jax.jit, static_argnames=("name", "updates", "per_leaf", "eps"))
def train(target, step=STEP, start=0.01, rate=1.0, *, name="adam", updates=400, per_leaf=False, eps=1.0):
    """Parameters, and the states of all updates; rate scales all learning rates."""
    tx = ggjax.backslash_to_rate(
        target,
        step,
        learning_rate=lambda count: SCHEDULE(count) * rate,
        start=start,
        per_leaf=per_leaf,
        eps=eps,
    )
    tx = optax.chain(OPTIMIZERS[name], optax.scale(rate), tx)

    def one(carry, i):
        params, state = carry
        new, state = tx.update(loss_gradients(params, jax.random.fold_in(KEY, i)), state, params)
        return (optax.apply_updates(params, new), state), state[-1]

    with jax.numpy_dtype_promotion("standard"):
        (params, _), states = jax.lax.scan(one, (begin(), tx.init(begin())), jnp.arange(updates))
    return params, states


@pytest.mark.parametrize("target", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_it_reaches_its_target(target):
    params, states = train(target)
    np.testing.assert_allclose(states.bits[-1], target, rtol=0.01)
    np.testing.assert_allclose(ggjax.rate.bits(params, STEP), target, rtol=0.01)
    assert np.abs(np.asarray(states.bits[300:]) / target - 1).max() < 0.05, "it is not held"
    assert np.asarray(states.strength_in_use).max() <= 10


@pytest.mark.parametrize(("target", "step"), [(6.0, 2.0**-7), (8.0, 2.0**-9)])
def test_it_reaches_many_bits(target, step):
    params, states = train(target, step)
    np.testing.assert_allclose(states.bits[-1], target, rtol=0.01)
    np.testing.assert_allclose(ggjax.rate.bits(params, step), target, rtol=0.01)


@pytest.mark.parametrize("target", [1.0, 2.0, 3.0, 4.0])
def test_it_reaches_its_target_without_noise_too(target):
    """Adam's steps do not fall with the gradient then, and the pull gathers weights at one size."""
    schedule = optax.linear_schedule(0.0, RATE, 100)
    tx = optax.chain(optax.adam(schedule), ggjax.backslash_to_rate(target, STEP, learning_rate=schedule))

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update({"w": params["w"] - BEST["a"]}, state, params)
            return (optax.apply_updates(params, updates), state), None

        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.scan(step, (params, tx.init(params)), length=600)[0]

    params, state = run({"w": 0.9 * BEST["a"]})
    np.testing.assert_allclose(state[-1].bits, target, rtol=0.01)
    np.testing.assert_allclose(ggjax.rate.bits(params, STEP), target, rtol=0.02)
    assert state[-1].gg_shape <= 2


@pytest.mark.parametrize(("target", "step"), [(3.0, STEP), (6.0, 2.0**-7)])
def test_weights_far_above_the_target_are_not_hurried(target, step):
    """No pull far above the one that holds them there in the end, three bits away as they begin."""
    strength = train(target, step)[1].strength_in_use
    assert strength.max() < 2.5 * strength[-1]


@pytest.mark.parametrize("start", [1e-6, 1e-3, 1.0, 100.0])
def test_any_start_will_do(start):
    np.testing.assert_allclose(train(3.0, start=start)[1].bits[-1], 3.0, rtol=0.02)


def test_other_optimizers_other_laws_other_eps():
    for options in ({"name": "sgd", "step": 2.0**-6, "target": 5.0}, {"per_leaf": True}, {"eps": STEP}):
        target = options.setdefault("target", 3.0)
        np.testing.assert_allclose(train(**options)[1].bits[-1], target, rtol=0.02, err_msg=str(options))


def test_a_target_above_what_the_weights_take_does_no_harm():
    params, states = train(7.0)
    plain, _ = train(7.0, start=1e-30)
    assert states.strength_in_use[-1] < 1e-5 and states.bits[-1] < 6
    for k in params:
        np.testing.assert_allclose(params[k], plain[k], atol=2e-3)


def test_a_target_out_of_reach_leaves_finite_weights_and_tells():
    params, states = train(0.5, updates=20, rate=0.01)
    assert states.bits[-1] > 5 and 0.01 < states.strength_in_use[-1] <= 10
    assert all(jnp.isfinite(x).all() for x in params.values())


def test_nothing_is_wound_up_while_the_learning_rate_is_zero():
    _, states = train(1.0, rate=0.0)
    np.testing.assert_allclose(states.log_strength, np.log(0.01), rtol=1e-6)
    assert np.ptp(states.bits) == 0


def test_the_state_is_that_of_the_update():
    _, states = train(3.0)
    rates = jax.vmap(SCHEDULE)(jnp.arange(400.0))
    np.testing.assert_allclose(states.rate_weight, states.strength_in_use * rates * N, rtol=1e-5)
    np.testing.assert_array_equal(states.count, np.arange(1, 401))
    first = begin()
    np.testing.assert_allclose(states.bits[0], ggjax.rate.bits(first, STEP), rtol=1e-5)
    np.testing.assert_allclose(states.gg_shape[0], min(ggjax.gennorm.fit(first).nu, 2))
    assert (np.flatnonzero(np.diff(states.correction)) % 10 == 9).all(), "counted at every tenth update"
    assert states.fitted.all()
    rise = np.diff(np.log(states.strength_in_use))
    assert rise.max() < 0.2001, "the strength rises too fast"


def test_the_pull_is_that_of_backslash():
    params = {"a": BEST["a"], "bias": jnp.ones(3)}
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    tx = ggjax.backslash_to_rate(2.0, STEP, learning_rate=0.1, eps=0.5)
    got, state = tx.update(updates, tx.init(params), params)
    plain = ggjax.backslash(strength=state.strength_in_use, learning_rate=0.1, eps=0.5, clamp=True)
    want, same = plain.update(updates, plain.init(params), params)
    for k in params:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(state.rate_weight, same.rate_weight, rtol=1e-6)
    assert state.gg_shape == same.gg_shape


def test_targets_and_learning_rates_may_be_schedules_and_hyperparameters():
    make = optax.inject_hyperparams(ggjax.backslash_to_rate, hyperparam_dtype=jnp.float32)
    target = optax.linear_schedule(4.0, 2.0, 2)
    injected = make(target_bits=target, step=STEP, learning_rate=SCHEDULE)
    direct = ggjax.backslash_to_rate(target, STEP, learning_rate=SCHEDULE)
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), BEST)
    with jax.numpy_dtype_promotion("standard"):
        states = [tx.init(BEST) for tx in (injected, direct)]
        for count in range(3):
            both = [
                jax.jit(tx.update)(updates, s, BEST) for tx, s in zip((injected, direct), states, strict=True)
            ]
            states = [state for _, state in both]
            np.testing.assert_allclose(both[0][0]["a"], both[1][0]["a"], rtol=1e-6)
            np.testing.assert_allclose(states[0].hyperparams["target_bits"], target(count))
    assert optax.tree.get(states[0], "bits") == states[1].bits


def test_numbers_that_are_bad_and_traced_move_nothing():
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), BEST)

    @jax.jit
    def update(target, step):
        tx = ggjax.backslash_to_rate(target, step, learning_rate=0.1)
        return tx.update(updates, tx.init(BEST), BEST)

    for target, step in ((np.nan, 0.1), (3.0, 0.0), (3.0, np.nan)):
        new, state = update(target, step)
        np.testing.assert_array_equal(new["a"], updates["a"])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state)), (target, step)
