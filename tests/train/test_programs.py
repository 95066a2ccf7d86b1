"""BackSlash in users' programs: eager, with float64 on, whole Equinox models, inside shard_map and vmap."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ggjax

PARAMS = {"a": 0.1 * jax.random.normal(jax.random.key(0), (16, 8)), "c": 0.2 * jnp.ones((8, 4))}
UPDATES = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), PARAMS)


def schedule(count):
    return 0.1 / (1.0 + jnp.float32(count))


def test_estimating_by_a_traced_number_is_estimating_by_a_static_one():
    """Under inject_hyperparams the numbers are arrays."""
    make = optax.inject_hyperparams(ggjax.backslash, hyperparam_dtype=jnp.float32)
    arrays, numbers = make(rate_weight=1.0, estimate_every=2), ggjax.backslash(1.0, estimate_every=2)
    states = [tx.init(PARAMS) for tx in (arrays, numbers)]
    steps = [jax.jit(tx.update) for tx in (arrays, numbers)]
    params = PARAMS
    for _ in range(3):
        both = [f(UPDATES, s, params) for f, s in zip(steps, states, strict=True)]
        states = [state for _, state in both]
        np.testing.assert_array_equal(both[0][0]["a"], both[1][0]["a"])
        assert optax.tree.get(states[0], "shape_in_use") == states[1].shape_in_use
        params = jax.tree.map(lambda x: jnp.sign(x) * x**2, params)
    assert all(step._cache_size() == 1 for step in steps)


@pytest.mark.parametrize("options", [{}, {"estimate_every": 2, "per_leaf": True}], ids=str)
def test_eager_updates_compile_once(options, caplog):
    tx = ggjax.backslash(strength=0.1, learning_rate=schedule, **options)
    updates, state = tx.update(UPDATES, tx.init(PARAMS), PARAMS)
    with jax.log_compiles():
        for _ in range(2):
            updates, state = tx.update(updates, state, PARAMS)
    assert "Compiling" not in caplog.text
    assert state.count == 3


@pytest.mark.parametrize("options", [{}, {"per_leaf": True}, {"estimate_every": 2}, {"clamp": True}], ids=str)
def test_float32_stays_float32_where_float64_is_on(options):
    tx = ggjax.backslash(strength=0.1, learning_rate=schedule, **options)
    want, _ = tx.update(UPDATES, tx.init(PARAMS), PARAMS)
    with jax.enable_x64(True):
        state = tx.init(PARAMS)
        got, new_state = jax.jit(tx.update)(UPDATES, state, PARAMS)
        assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
        assert not {"float64", "int64"} & {str(x.dtype) for x in jax.tree.leaves((got, new_state))}
        rate = ggjax.follow_learning_rate(3.0, lambda count: 0.5, peak=np.float64(2.0))(0)
        assert rate == 0.75 and rate.dtype == jnp.float32
    np.testing.assert_allclose(got["a"], want["a"], rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"per_leaf": True}, {"estimate_every": 2}], ids=str)
def test_a_buffer_of_infinities_raises_no_alarm_with_jax_debug_nans(options):
    params = PARAMS | {"scores": jnp.full((4, 4), -jnp.inf), "zeros": jnp.zeros((4, 4))}
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    tx = ggjax.backslash(1.0, clamp=True, **options)
    with jax.debug_nans(True):
        new, _ = tx.update(updates, tx.init(params), params)
    with jax.disable_jit():
        slow, _ = tx.update(updates, tx.init(params), params)
    for k in params:
        np.testing.assert_allclose(new[k], slow[k], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"per_leaf": True}, {"estimate_every": 2}], ids=str)
def test_a_whole_equinox_model_is_taken_for_its_parameters(options):
    """Its activation functions are leaves, which have no update; and part of the weights may have none."""
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_inexact_array)
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), arrays)
    tx = ggjax.backslash(1.0, **options)
    want, _ = tx.update(updates, tx.init(arrays), arrays)
    got, state = tx.update(updates, tx.init(arrays), model)
    assert jax.tree.structure(got) == jax.tree.structure(updates)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(arrays))
    first = lambda m: m.layers[0].weight  # noqa: E731
    np.testing.assert_array_equal(first(got), first(want))
    part = eqx.tree_at(first, updates, None)
    got, _ = tx.update(part, tx.init(eqx.tree_at(first, arrays, None)), model)
    assert first(got) is None and not eqx.tree_equal(got, part)


def mapped(tx, specs, check_vma=True):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(
            lambda u, p: tx.update(u, tx.init(p), p),
            mesh=mesh,
            in_specs=(specs, specs),
            out_specs=(specs, P()),
            check_vma=check_vma,
        )
    )


@pytest.mark.parametrize("options", [{}, {"per_leaf": True}, {"estimate_every": 2}], ids=str)
@pytest.mark.parametrize("specs", [{"a": P("d"), "c": P()}, {"a": P("d"), "c": P(None, "d")}], ids=str)
def test_the_law_of_shards_and_copies_is_that_of_the_whole(options, specs):
    """A copy counts once, however many devices hold it."""
    want, alone = (lambda tx: tx.update(UPDATES, tx.init(PARAMS), PARAMS))(ggjax.backslash(5.0, **options))
    got, state = mapped(ggjax.backslash(5.0, axis_name=("d",), **options), specs)(UPDATES, PARAMS)
    for k in PARAMS:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-5, atol=1e-8)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_without_vma_checks_every_leaf_counts_as_split():
    want, _ = (lambda tx: tx.update(UPDATES, tx.init(PARAMS), PARAMS))(ggjax.backslash(5.0))
    tx = ggjax.backslash(5.0, axis_name="d")
    got, _ = mapped(tx, {"a": P("d"), "c": P("d")}, check_vma=False)(UPDATES, PARAMS)
    np.testing.assert_allclose(got["a"], want["a"], rtol=1e-5, atol=1e-8)


def test_data_parallel_training_needs_no_axis_name():
    tx = ggjax.backslash(5.0, estimate_every=2)
    want, _ = tx.update(UPDATES, tx.init(PARAMS), PARAMS)
    got, _ = mapped(tx, P())(UPDATES, PARAMS)
    np.testing.assert_allclose(got["a"], want["a"], rtol=1e-5, atol=1e-8)


def test_vmap_trains_an_ensemble_of_models_apart():
    tx = ggjax.backslash(5.0, per_leaf=True)
    two = jax.tree.map(lambda x: jnp.stack([x, x**3]), PARAMS)
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), two)
    got, _ = jax.vmap(lambda u, p: tx.update(u, tx.init(p), p))(updates, two)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], two)
        want, _ = tx.update(UPDATES, tx.init(one), one)
        np.testing.assert_allclose(got["a"][i], want["a"], rtol=1e-5, atol=1e-8)


def test_groups_without_kernels_are_left_alone():
    params = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(4), "norm": {"scale": jnp.ones(4)}}
    labels = {"kernel": "k", "bias": "b", "norm": {"scale": "b"}}
    backslash = ggjax.backslash(strength=0.1, learning_rate=1e-2)
    tx = optax.multi_transform({"k": backslash, "b": backslash}, labels)
    updates = jax.tree.map(lambda x: jnp.full_like(x, 1e-4), params)
    new, _ = tx.update(updates, tx.init(params), params)
    np.testing.assert_array_equal(new["bias"], updates["bias"])
    np.testing.assert_array_equal(new["norm"]["scale"], updates["norm"]["scale"])
    assert np.all(new["kernel"] != updates["kernel"])
    # Without an update for the kernel, nothing takes its place.
    some = updates | {"kernel": None}
    np.testing.assert_array_equal(
        backslash.update(some, backslash.init(params), params)[0]["bias"], some["bias"]
    )


@pytest.mark.parametrize("per_leaf", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_leaves_without_an_update_keep_their_place(per_leaf, every):
    params = {"u": jnp.full((4, 4), 0.5), "v": jnp.full((2, 2), 0.25), "w": jnp.ones((3, 3))}
    tx = ggjax.backslash(strength=0.1, learning_rate=1e-2, estimate_every=every, per_leaf=per_leaf)
    updates = {"u": None, "v": jnp.full((2, 2), 1e-3), "w": jnp.full((3, 3), 1e-3)}
    state = tx.init(params)
    for _ in range(2):
        new, after = tx.update(updates, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        state = after
    assert new["u"] is None and np.all(new["v"] < updates["v"])
    np.testing.assert_array_equal(state.fitted, [False, True, True])
    if per_leaf:
        assert state.shape_in_use.shape == (3,) and state.shape_in_use[0] == 0
    # One state serves any estimate_every.
    other = ggjax.backslash(strength=0.1, learning_rate=1e-2, estimate_every=3, per_leaf=per_leaf)
    other.update(updates, state, params)


def test_state_of_per_leaf_is_no_tree_of_parameters():
    """optax.tree.map_params would take scalars in the parameters' place for moments, and shard them."""
    params = {"w": jnp.ones((4, 4)), "v": jnp.ones((2, 2))}
    tx = ggjax.backslash(strength=0.1, learning_rate=1e-2, per_leaf=True)
    seen = []
    optax.tree_utils.tree_map_params(tx, lambda x: seen.append(x) or x, tx.init(params))
    assert seen == []


def test_gradients_through_an_update_are_finite_at_zero():
    params = {"w": jnp.full((3, 3), 0.5), "zeros": jnp.zeros((3, 3))}

    def loss(params, per_leaf):
        tx = ggjax.backslash(strength=0.1, learning_rate=0.01, per_leaf=per_leaf)
        updates, _ = tx.update(jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params), tx.init(params), params)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(optax.apply_updates(params, updates)))

    for per_leaf in (False, True):
        for tree in (params, {"zeros": params["zeros"]}):
            grads = jax.jit(jax.grad(loss), static_argnums=1)(tree, per_leaf)
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_the_penalty_of_a_part_of_the_weights_is_refused():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    w = jnp.ones((64, 4))
    mapped = jax.shard_map(
        lambda w: ggjax.rate.penalty({"w": w})[None], mesh=mesh, in_specs=P("d"), out_specs=P("d")
    )
    with pytest.raises(ValueError, match="leaf 'w' is split over the mesh axes"):
        mapped(w)
