"""backslash_to_rate: steps of leaves and rows, what it refuses, split weights, low precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ggjax

PARAMS = {"a": 0.3 * jax.random.normal(jax.random.key(0), (32, 16)), "c": 0.1 * jnp.ones((8, 4))}
UPDATES = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), PARAMS)
ROWS = {"a": 2.0 ** jnp.linspace(-5, -2, 32)[:, None], "c": jnp.float32(0.05)}


def once(tx, updates=UPDATES, params=PARAMS):
    return tx.update(updates, tx.init(params), params)


def test_a_tree_of_one_step_is_that_step():
    one = ggjax.backslash_to_rate(3.0, 0.05, learning_rate=0.1)
    tree = ggjax.backslash_to_rate(3.0, {"a": 0.05, "c": np.full((8, 1), 0.05)}, learning_rate=0.1)
    (new, state), (same, again) = once(one), once(tree)
    np.testing.assert_allclose(state.bits, again.bits, rtol=1e-5)
    np.testing.assert_allclose(new["a"], same["a"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("eps", [1.0, 0.01])
def test_the_rate_and_the_pull_of_rows_with_steps_of_their_own(eps):
    sizes = {k: np.broadcast_to(np.asarray(v, np.float64), PARAMS[k].shape) for k, v in ROWS.items()}
    mean = np.exp(np.mean(np.log(np.concatenate([x.ravel() for x in sizes.values()]))))
    new, state = once(ggjax.backslash_to_rate(3.0, ROWS, learning_rate=0.1, eps=eps))
    over_steps = {k: jnp.asarray(PARAMS[k] / sizes[k], jnp.float32) for k in PARAMS}
    flat = ggjax.backslash_to_rate(3.0, 1.0, learning_rate=0.1)
    np.testing.assert_allclose(state.bits, once(flat, params=over_steps)[1].bits, rtol=1e-5)
    nu, pull = float(state.gg_shape), float(state.strength_in_use) * 0.1
    for k in PARAMS:
        r = sizes[k] / mean
        after = np.asarray(PARAMS[k] + UPDATES[k], np.float64)
        step = pull * nu * np.sign(after) * (np.abs(after) / r + eps) ** (nu - 1) / r  # a gradient of the rate
        want = np.where(np.abs(after) < np.abs(step), 0, after - step)
        np.testing.assert_allclose(PARAMS[k] + new[k], want, rtol=1e-4, atol=1e-6)


def test_rows_reach_their_target_together():
    @jax.jit
    def train():
        tx = optax.chain(optax.adam(3e-3), ggjax.backslash_to_rate(2.0, ROWS, learning_rate=3e-3))

        def step(carry, i):
            params, state = carry
            grads = jax.tree.map(lambda w, b: w - 1.1 * b, params, PARAMS)
            new, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, new), state), state[-1].bits

        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), None, 500)[1]

    np.testing.assert_allclose(train()[-1], 2.0, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_bits": 0.0}, "target_bits must be positive and finite, got 0.0"),
        ({"target_bits": np.nan}, "target_bits must be positive and finite, got nan"),
        ({"target_bits": -3}, "target_bits must be positive and finite, got -3"),
        ({"target_bits": np.ones(2)}, r"target_bits must be one number, got an array of shape \(2,\)"),
        ({"step": 0}, "step must be positive and finite, got 0"),
        ({"step": np.inf}, "step must be positive and finite, got inf"),
        ({"step": np.ones(3)}, r"step must be one number or a tree.*array of shape \(3,\)"),
        ({"step": {"a": {"w": -1.0}}}, "step of leaf 'a/w' must be positive and finite, got -1.0"),
        ({"learning_rate": -0.1}, "learning_rate must be at least 0 and finite, got -0.1"),
        ({"start": 0.0}, "start must be positive and finite, got 0.0"),
        ({"eps": -1.0}, "eps must be positive and finite, got -1.0"),
        ({"mask": "biases"}, 'mask must be "kernels"'),
        ({"per_leaf": 1}, "per_leaf must be a bool, got 1"),
        ({"target_bits": "few"}, "target_bits must be a number, got 'few'"),
    ],
)
def test_bad_arguments_are_named_at_construction(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ggjax.backslash_to_rate(**({"target_bits": 3.0, "step": 0.1, "learning_rate": 0.1} | options))


def test_steps_that_do_not_fit_are_named_in_update():
    for step, message in (
        ({"a": 0.1}, "leaf 'c' has no step"),
        ({"a": jnp.ones((16, 1)), "c": 0.1}, r"leaf 'a' of shape \(32, 16\) has steps of shape \(16, 1\)"),
        (
            {"a": jnp.ones((1, 32, 16)), "c": 0.1},
            r"leaf 'a' of shape \(32, 16\) has steps of shape \(1, 32, 16\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            once(ggjax.backslash_to_rate(3.0, step, learning_rate=0.1))
    tx = ggjax.backslash_to_rate(3.0, 0.1, learning_rate=0.1)
    with pytest.raises(ValueError, match="works on the parameters and got none"):
        tx.update(UPDATES, tx.init(PARAMS))


def test_what_is_not_selected_or_does_not_move_stays():
    params = PARAMS | {"bias": jnp.ones(3), "n": jnp.arange(2)}
    updates = UPDATES | {"bias": jnp.ones(3), "n": None, "c": jnp.zeros((8, 4))}
    new, state = once(ggjax.backslash_to_rate(1.0, 0.05, learning_rate=0.1), updates, params)
    np.testing.assert_array_equal(new["bias"], 1)
    np.testing.assert_array_equal(new["c"], 0)
    assert new["n"] is None and (new["a"] < 1e-3).any()
    np.testing.assert_allclose(state.bits, once(ggjax.backslash_to_rate(1.0, 0.05, learning_rate=0.1))[1].bits)
    alone, state = once(ggjax.backslash_to_rate(1.0, 0.05, learning_rate=0.1, mask={"a": True, "c": False}))
    np.testing.assert_array_equal(alone["c"], UPDATES["c"])
    assert state.fitted.tolist() == [True, False]
    nothing, state = once(
        ggjax.backslash_to_rate(1.0, 0.05, learning_rate=0.1, mask=lambda p: dict.fromkeys(p, False))
    )
    assert nothing is UPDATES and state.count == 1


def test_updates_of_bfloat16_stay_so():
    params, updates = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), t) for t in (PARAMS, UPDATES))
    new, state = once(ggjax.backslash_to_rate(1.0, ROWS, learning_rate=0.1), updates, params)
    assert new["a"].dtype == jnp.bfloat16 and {x.dtype.name for x in jax.tree.leaves(state)} == {
        "float32",
        "int32",
        "bool",
    }


@pytest.mark.parametrize("step", [0.05, {"a": 0.05}, ROWS], ids=["number", "leaf", "rows"])
def test_shards_of_one_model_share_its_rate(step):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    params, updates = {"a": PARAMS["a"]}, {"a": UPDATES["a"]}
    rows = step is ROWS

    def update(u, p, s):
        tx = ggjax.backslash_to_rate(
            2.0, {"a": s} if rows else step, learning_rate=0.1, axis_name="d" if split else None
        )
        return tx.update(u, tx.init(p), p)

    split = False
    want, state = update(updates, params, ROWS["a"])
    split = True
    mapped = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=P("d"), out_specs=(P("d"), P())))
    got, same = mapped(updates, params, ROWS["a"])
    np.testing.assert_allclose(got["a"], want["a"], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(same.bits, state.bits, rtol=1e-5)


@pytest.mark.parametrize("step", [1e-30, 1e-46, {"kernel": 1e-30}])
def test_steps_that_float32_cannot_square_are_refused(step):
    with pytest.raises(ValueError, match="must be 1e-15 or more"):
        ggjax.backslash_to_rate(2.0, step, learning_rate=0.1)
