"""BackSlash inside the wrappers of optax and the trainers of Flax."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import ggjax
from tests.contract.registry import KEY, leaves_of, signature, tree


def chain() -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.sgd(0.1), ggjax.backslash(0.5, clamp=True))


def to_rate(**options: Any) -> optax.GradientTransformationExtraArgs:
    return ggjax.backslash_to_rate(2.0, 0.05, learning_rate=0.1, **options)


def train(tx: optax.GradientTransformation, steps: int = 4) -> tuple[Any, Any, Any]:
    """Parameters, state and the first state after some jitted steps with gradients of ones."""
    params = {k: v for k, v in tree().items() if k in ("kernel", "zeros", "half")}
    state, first = tx.init(params), tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1, "a second call compiled again"
    assert all(np.isfinite(v).all() for v in leaves_of(params))
    return params, state, first


def relaxed() -> Any:
    """Optax's own transformations mix dtypes."""
    return jax.numpy_dtype_promotion("standard")


def labels(params: Any) -> Any:
    return {k: "shrunk" if k == "kernel" else "plain" for k in params}


WRAPPERS = {
    "chain": lambda: chain(),
    "per_leaf": lambda: ggjax.backslash(0.5, per_leaf=True),
    "estimate_every": lambda: ggjax.backslash(0.5, estimate_every=2, per_leaf=True),
    "adam": lambda: optax.chain(optax.adam(1e-2), ggjax.backslash(0.5)),
    "to_rate": lambda: optax.chain(optax.adam(1e-2), to_rate()),
    "to_rate_per_leaf": lambda: to_rate(per_leaf=True),
    "to_rate_MultiSteps": lambda: optax.MultiSteps(optax.chain(optax.sgd(0.1), to_rate()), 2),
    "to_rate_masked": lambda: optax.masked(to_rate(), lambda p: {k: k != "zeros" for k in p}),
    "to_rate_injected": lambda: optax.inject_hyperparams(
        ggjax.backslash_to_rate,
        hyperparam_dtype=jnp.float32,
    )(target_bits=lambda count: 3.0 + count, step=0.1, learning_rate=0.1),
    "masked": lambda: optax.masked(chain(), lambda p: {k: k != "zeros" for k in p}),
    "masked_everything": lambda: optax.masked(chain(), lambda p: dict.fromkeys(p, False)),
    "multi_transform": lambda: optax.multi_transform({"shrunk": chain(), "plain": optax.sgd(0.1)}, labels),
    "MultiSteps": lambda: optax.MultiSteps(chain(), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(chain(), 3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        ggjax.backslash,
        hyperparam_dtype=jnp.float32,
    )(rate_weight=0.5, gg_shape=0.9),
    "inject_schedule": lambda: optax.inject_hyperparams(
        ggjax.backslash,
        hyperparam_dtype=jnp.float32,
    )(rate_weight=lambda count: 1.0 / (1 + count)),
}


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_backslash_trains_inside(name):
    with relaxed():
        tx = WRAPPERS[name]()
        params, state, first = train(tx)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, first), "types of the state changed"
        abstract = jax.eval_shape(lambda: params)
        from_abstract = jax.eval_shape(tx.init, abstract)
        assert jax.tree.map(jax.typeof, from_abstract) == jax.tree.map(jax.typeof, first)


def test_init_takes_shape_dtype_structs_outside_jit():
    tx = ggjax.backslash(lambda count: 1.0 + count.astype(jnp.float32), per_leaf=True)
    params = {"w": jnp.ones((3, 2)), "n": jnp.arange(2)}
    state = tx.init(jax.eval_shape(lambda: params))
    assert signature(state) == signature(tx.init(params))


def test_state_can_stand_in_a_branch_of_cond():
    tx, params = ggjax.backslash(0.5, per_leaf=True), {"w": jnp.ones((3, 2))}
    state = tx.init(params)

    @jax.jit
    def maybe(flag, state):
        return jax.lax.cond(flag, lambda: tx.update(params, state, params), lambda: (params, state))

    for flag in (True, False):
        assert jax.tree.map(jax.typeof, maybe(flag, state)[1]) == jax.tree.map(jax.typeof, state)


def test_unknown_extra_arguments_are_ignored_and_telemetry_is_readable():
    tx = optax.chain(optax.scale(0.1), ggjax.backslash(0.5))
    params = {"w": jnp.ones((3, 2))}
    _, state = tx.update(params, tx.init(params), params, value=1.0, anything=None)
    assert optax.tree.get(state, "shape_in_use") == 2.0
    assert optax.tree.get(state, "rate_weight_in_use") == 0.5
    with relaxed():
        both = optax.chain(optax.adam(1e-3), ggjax.backslash(0.5)).init(params)
    assert optax.tree.get(both, "mu") is not None and optax.tree.get(both, "bits") == 0


def test_multisteps_takes_one_step_a_round_inside_and_outside():
    """Inside, the mini-batches in between have updates of zero: leaves without an update do not move."""
    params, grads = {"w": jnp.ones(10)}, {"w": jnp.full(10, 1e-3)}
    rate = ggjax.backslash(1.0, gg_shape=1)
    with relaxed():
        for tx in (
            optax.MultiSteps(optax.chain(optax.sgd(1.0), rate), 4),
            optax.chain(optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation(), rate),
        ):
            new, state = params, tx.init(params)
            for _ in range(4):
                updates, state = tx.update(grads, state, new)
                new = optax.apply_updates(new, updates)
            np.testing.assert_allclose(new["w"], 1 - 1e-3 - 0.1, rtol=1e-6)


def test_trainers_of_flax_pass_the_parameters():
    x, y = jnp.ones((5, 6)), jnp.zeros((5, 4))
    dense = nn.Dense(4)
    with relaxed():
        state = TrainState.create(apply_fn=dense.apply, params=dense.init(KEY, x), tx=chain())
        grads = jax.grad(lambda p: jnp.mean((state.apply_fn(p, x) - y) ** 2))(state.params)
        state = state.apply_gradients(grads=grads)
        assert optax.tree.get(state.opt_state, "shape_in_use") > 0

        model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, chain(), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
            optimizer.update(model, grads)

        before = np.asarray(model.kernel[...])
        step(model, optimizer)
        assert (np.asarray(model.kernel[...]) != before).any()
        assert optax.tree.get(nnx.to_pure_dict(nnx.state(optimizer.opt_state)), "count") is not None
