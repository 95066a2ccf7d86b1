"""The bits that backslash_to_rate tells after a count: the entropy of the levels, however the weights lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax.train import _counted, _packs

STEP = 0.25
KEYS = jax.random.split(jax.random.key(0), 3)


def told(params, step=STEP, **options):
    """The state after one update that does nothing."""
    tx = ggjax.backslash_to_rate(4.0, step, learning_rate=0.0, **options)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return state


def entropy(*weights, step=STEP):
    levels = np.concatenate([np.round(np.float32(x).ravel() / np.float32(step)) for x in weights])
    share = np.unique(levels, return_counts=True)[1] / levels.size
    return -np.sum(share * np.log2(share))


ODD = {
    "one size": jnp.sign(jax.random.normal(KEYS[0], (40, 50))),
    "two sizes": jnp.where(jax.random.bernoulli(KEYS[0], 0.3, (40, 50)), 1.0, -7.0),
    "uniform": jax.random.uniform(KEYS[0], (40, 50), minval=-3.0, maxval=3.0),
    "far from zero": 100 + jax.random.normal(KEYS[0], (40, 50)),
    "all alike": jnp.ones((40, 50)),
    "bfloat16": jax.random.normal(KEYS[0], (40, 50), jnp.bfloat16),
}


@pytest.mark.parametrize("name", ODD)
def test_weights_that_follow_no_such_law(name):
    got = told({"w": ODD[name]})
    np.testing.assert_allclose(got.bits, entropy(ODD[name].astype(jnp.float32)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.bits, ggjax.rate.bits({"w": ODD[name]}, STEP), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_leaf", [False, True])
def test_many_small_leaves_lie_together(per_leaf, monkeypatch):
    shapes = [(4, 40), (3, 30), (20, 20), (2, 500), (1, 7)]
    draws = [jax.random.laplace(k, s) for k, s in zip(jax.random.split(KEYS[1], 5), shapes, strict=True)]
    params = {f"w{i}": x for i, x in enumerate(draws)} | {"nan": jnp.full((5, 5), jnp.nan), "bias": jnp.ones(9)}
    apart = told(params, per_leaf=per_leaf)
    monkeypatch.setattr(_packs, "MANY", 1)
    together = told(params, per_leaf=per_leaf)
    sizes = np.array([x.size for x in draws])
    want = sizes @ [entropy(x) for x in draws] / sizes.sum() if per_leaf else entropy(*draws)
    np.testing.assert_allclose(apart.bits, want, rtol=1e-5)
    np.testing.assert_allclose(together.bits, want, rtol=1e-5)


def test_steps_of_rows():
    x, steps = jax.random.normal(KEYS[0], (6, 400)), jnp.array([[0.1], [0.2], [0.4], [0.1], [0.2], [0.8]])
    np.testing.assert_allclose(told({"w": x}, {"w": steps}).bits, entropy(x / steps, step=1.0), rtol=1e-4)


def test_weights_beyond_the_table():
    """A few are left out; if there are many, the closed form stays."""
    x = jax.random.normal(KEYS[0], (100, 100))
    far = x.at[0, :5].set(1e6).at[1, :5].set(-3e6)
    np.testing.assert_allclose(told({"w": far}).bits, entropy(x), atol=0.01)
    fine = told({"w": x}, 1e-6)
    assert fine.correction == 0
    np.testing.assert_allclose(fine.bits, np.log2(2 * np.pi * np.e) / 2 + np.log2(1e6), atol=0.05)


@pytest.mark.parametrize("explicit", [False, True])
def test_inside_shard_map_the_whole_is_counted(explicit):
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Explicit if explicit else AxisType.Auto,))
    params = {"w": jax.random.laplace(KEYS[0], (16, 64)), "copy": 3 * jax.random.laplace(KEYS[1], (8, 8))}
    specs = {"w": P("d"), "copy": P()}
    placed = {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in params.items()}

    def one(params):
        return told(params, axis_name="d").bits

    got = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(specs,), out_specs=P()))(placed)
    np.testing.assert_allclose(got, entropy(*params.values()), rtol=1e-5)


def test_between_counts_the_closed_form_is_corrected():
    """The weights keep one shape and double their size: one bit more, as the closed form tells it."""
    x = jax.random.uniform(KEYS[0], (100, 100), minval=-20.0, maxval=20.0)
    tx = ggjax.backslash_to_rate(4.0, STEP, learning_rate=0.0)
    nothing = {"w": jnp.zeros_like(x)}
    _, first = tx.update(nothing, tx.init(nothing), {"w": x})
    _, second = tx.update(nothing, first, {"w": 2 * x})
    assert abs(float(first.correction)) > 0.01 and second.correction == first.correction
    np.testing.assert_allclose(second.bits, first.bits + 1, atol=0.01)
    _, due = tx.update(nothing, second._replace(count=jnp.int32(_counted.EVERY)), {"w": 2 * x})
    np.testing.assert_allclose(due.bits, entropy(2 * x), rtol=1e-5)


def test_trainings_under_vmap_and_derivatives():
    x = jnp.stack([ODD["uniform"], 2 * ODD["uniform"]])
    got = jax.vmap(lambda w: told({"w": w}).bits)(x)
    np.testing.assert_allclose(got, [entropy(w) for w in x], rtol=1e-5)
    tx = ggjax.backslash_to_rate(4.0, STEP, learning_rate=0.1)

    def moved(w):
        return jnp.sum(tx.update({"w": 0.1 * w}, tx.init({"w": w}), {"w": w})[0]["w"] ** 2)

    for slope in (jax.jit(jax.grad(moved)), jax.jacfwd(moved)):
        assert jnp.isfinite(slope(x[0][:4, :4])).all()


@pytest.mark.parametrize("per_leaf", [False, True])
def test_float32_stays_so_where_float64_is_on(per_leaf, monkeypatch):
    monkeypatch.setattr(_packs, "MANY", 1)  # c and d lie together
    params = {k: ODD["uniform"][:n] for k, n in (("a", 40), ("c", 7), ("d", 9))}
    want = told(params, per_leaf=per_leaf)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        got = told(params, per_leaf=per_leaf)
        wide = told(params | {"a": params["a"].astype(jnp.float64)}, per_leaf=per_leaf)
    assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, wide) == jax.tree.map(jax.typeof, want)
    np.testing.assert_allclose([got.bits, wide.bits], [want.bits] * 2, rtol=1e-5)


def test_empty_leaves_and_single_weights():
    got = told({"w": jnp.zeros((0, 4)), "one": jnp.ones((1, 1)), "x": ODD["uniform"]}, per_leaf=True)
    np.testing.assert_allclose(got.bits, entropy(ODD["uniform"]) * 2000 / 2001, rtol=1e-5)
    assert told({"w": jnp.zeros((0, 4))}).bits == 0
