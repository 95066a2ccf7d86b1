"""Training on the grid of calibrated rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ggjax
from ggjax import sensitivity
from ggjax.train import on_grid

X = jax.random.normal(jax.random.key(0), (256, 16)) * jnp.linspace(0.2, 2, 16)[None]


def forward(params, x):
    return jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None]) @ params["second"][
        "kernel"
    ].astype(jnp.float32)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(1))
    first, second = (jax.random.normal(k, s) / 4 for k, s in zip(keys, SHAPES, strict=True))
    bias = jnp.linspace(-1, 1, 24)
    return {"first": {"kernel": first, "bias": bias}, "second": {"kernel": second.astype(jnp.bfloat16)}}


SHAPES = ((16, 24), (24, 8))


@pytest.fixture(scope="module")
def rounded(params):
    known = sensitivity.estimate(forward, params, [X], key=jax.random.key(2), output="values")
    return sensitivity.round_to(params, known, bits=3.5)


def loss(params, target):
    return jnp.mean((forward(params, X) - target) ** 2)


def test_begins_where_rounding_ended(rounded):
    grid = on_grid(rounded)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(grid.apply)(rounded.params), rounded.params)
    again = grid.freeze(rounded.params)
    for name, q in rounded.levels.items():
        np.testing.assert_array_equal(again.levels[name].levels, q.levels)
    assert again.bits == pytest.approx(rounded.bits)


def test_gradients_pass_straight_through(rounded):
    def f(p):
        return jnp.sum(jnp.sin(p["first"]["kernel"])) + jnp.sum(p["first"]["bias"] ** 2)

    latent = jax.tree.map(lambda x: x + 0.01, rounded.params)
    grid = on_grid(rounded)
    found = jax.grad(lambda p: f(grid.apply(p)))(latent)
    want = jax.grad(f)(grid.apply(latent))
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_weights_are_nearest_levels(rounded):
    latent = jax.tree.map(
        lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), rounded.params
    )
    out = on_grid(rounded).apply(latent)
    for name in ("first", "second"):
        steps = np.asarray(rounded.levels[f"{name}/kernel"].steps[0], np.float64)
        x, w = (np.asarray(p[name]["kernel"], np.float64) for p in (latent, out))
        want = np.round(x / steps) * steps
        np.testing.assert_allclose(w, want, rtol=1e-2 if name == "second" else 1e-6, atol=1e-7)
    np.testing.assert_array_equal(out["first"]["bias"], latent["first"]["bias"])


def test_wins_back_what_rounding_cost(params, rounded, tmp_path):
    grid, target = on_grid(rounded), forward(params, X)
    tx = optax.sgd(0.02, momentum=0.9)

    @jax.jit
    def train_step(latent, state):
        grads = jax.grad(lambda p: loss(grid.apply(p), target))(latent)
        updates, state = tx.update(grads, state, latent)
        return optax.apply_updates(latent, updates), state

    latent = rounded.params
    state = tx.init(latent)
    for _ in range(60):
        latent, state = train_step(latent, state)
    small = grid.freeze(latent)
    assert loss(small.params, target) < 0.75 * loss(rounded.params, target)
    assert small.bits < rounded.bits + 0.3
    ggjax.save_file(small, tmp_path / "small.ggjax.safetensors")
    back = ggjax.load_file(tmp_path / "small.ggjax.safetensors", like=params)
    jax.tree.map(np.testing.assert_array_equal, back, small.params)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: {"first": p["first"]}, "'second/kernel'.*None"),
        (lambda p: p | {"second": {"kernel": p["second"]["kernel"][:-1]}}, r"'second/kernel'.*\(23, 8\)"),
    ],
)
def test_other_trees_are_refused(rounded, change, message):
    with pytest.raises(ValueError, match=message):
        on_grid(rounded).apply(change(rounded.params))


def test_weights_that_are_not_finite_are_refused(rounded):
    latent = jax.tree.map(jnp.array, rounded.params)
    latent["first"]["kernel"] = latent["first"]["kernel"].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="'first/kernel'"):
        on_grid(rounded).freeze(latent)


def test_sharded_latents(params, rounded):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P(None, "d"))
    latent = jax.tree.map(jnp.array, rounded.params)
    latent["first"]["kernel"] = jax.device_put(latent["first"]["kernel"], sharding)
    grid = on_grid(rounded)
    assert grid.apply(latent)["first"]["kernel"].sharding.is_equivalent_to(sharding, 2)
    again = grid.freeze(latent)
    assert again.bits == pytest.approx(rounded.bits)
    jax.tree.map(np.testing.assert_array_equal, again.params, rounded.params)


def test_without_rounded_leaves(rounded):
    none = on_grid(rounded._replace(levels={})).freeze(rounded.params)
    assert none.levels == {} and none.bits == 0
