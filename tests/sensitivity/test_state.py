"""Factors: views of leaves, sums of products of gradients, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import sensitivity

PARAMS = {
    "conv": {"kernel": (3, 3, 4, 8)},
    "dense": {"kernel": (6, 10), "bias": (10,)},
    "query": {"kernel": (16, 4, 4)},
    "out": {"kernel": (4, 4, 16)},
    "embedding": (40, 5),
    "temperature": (),
}


def draw(seed, dtype=jnp.float32, shapes=PARAMS):
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    leaves, tree = jax.tree.flatten(shapes, is_leaf=is_shape)
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(rng.normal(size=s), dtype) for s in leaves])


VIEWS = {  # leaf: (matrix, how its axes are split)
    "conv/kernel": (36, 8),
    "dense/kernel": (6, 10),
    "dense/bias": (10, 1),
    "query/kernel": (16, 16),
    "out/kernel": (16, 16),
    "embedding": (40, 5),
    "temperature": (1, 1),
}


def matrix(name, x):
    return np.asarray(x, np.float64).reshape(VIEWS[name])


def flat(tree):
    return {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_leaves_are_seen_as_matrices():
    state = sensitivity.init(draw(0), max_dim=30)
    assert {n: f.view.sizes for n, f in state.factors.items()} == {n: (1, *s) for n, s in VIEWS.items()}
    kinds = {n: (f.rows.ndim - 2, f.columns.ndim - 2) for n, f in state.factors.items()}
    assert kinds.pop("conv/kernel") == (1, 2)  # 36 rows are more than max_dim
    assert kinds.pop("embedding") == (1, 2)
    assert kinds.pop("dense/bias") == kinds.pop("temperature") == (1, 1)
    assert set(kinds.values()) == {(2, 2)}


def test_split_and_batch_axes_are_the_callers():
    params = {"w": jnp.zeros((5, 2, 3, 7)), "b": jnp.zeros((5,))}
    state = sensitivity.init(params, batch_axis=0, split=lambda name, x: 1 if x.ndim == 4 else None)
    assert state.factors["w"].view.sizes == (5, 2, 21)
    assert state.factors["b"].view.sizes == (1, 5, 1)  # too few axes to be stacked
    state = sensitivity.init(params, batch_axis=lambda name, x: 0)
    assert state.factors["b"].view.sizes == (5, 1, 1)
    x = jnp.arange(210.0).reshape(5, 2, 3, 7)
    view = sensitivity.View(x.shape, (2,), (0, 3), (1,))
    assert view.matrices(x).shape == (3, 35, 2)
    np.testing.assert_array_equal(view.leaf(view.matrices(x)), x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_sums_are_those_of_numpy(dtype):
    update = jax.jit(sensitivity.update, donate_argnums=0)
    state = sensitivity.init(draw(0), max_dim=30)
    grads = [draw(i, dtype) for i in range(5)]
    for g in grads:
        state = update(state, g, 3)
    np.testing.assert_array_equal(state.examples, [9, 6])
    for name in VIEWS:
        f = state.factors[name]
        for half in (0, 1):
            some = [matrix(name, flat(g)[name]) for g in grads[half::2]]
            for got, want in ((f.rows, sum(g @ g.T for g in some)), (f.columns, sum(g.T @ g for g in some))):
                want = want if got.ndim == 4 else np.diag(want)
                np.testing.assert_allclose(got[half, 0], want, rtol=2e-5, atol=1e-5)


def test_stacked_layers_have_factors_of_their_own():
    shapes = {"w": (3, 4, 5)}
    g = draw(1, shapes=shapes)
    stacked = sensitivity.update(sensitivity.init(g, batch_axis=0), g).factors["w"]
    for i in range(3):
        layer = {"w": g["w"][i]}
        own = sensitivity.update(sensitivity.init(layer), layer).factors["w"]
        np.testing.assert_allclose(stacked.rows[:, i], own.rows[:, 0], rtol=1e-6)
        np.testing.assert_allclose(stacked.columns[:, i], own.columns[:, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x"), P("x", "y")])
def test_sharded_gradients_give_the_same(kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    g = {"w": draw(2, shapes={"w": (16, 8)})["w"], "b": jnp.arange(8.0)}
    sharded = {
        "w": jax.device_put(g["w"], NamedSharding(mesh, spec)),
        "b": jax.device_put(g["b"], NamedSharding(mesh, P("x"))),
    }
    want = sensitivity.update(sensitivity.init(g), g)
    got = jax.jit(sensitivity.update)(sensitivity.init(g), sharded)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_leaves_that_are_no_weights_are_passed_over():
    params = {"w": jnp.ones((2, 3)), "f": jax.nn.relu, "n": jnp.arange(3), "empty": jnp.zeros((0, 4))}
    state = sensitivity.init(params)
    assert sorted(state.factors) == ["empty", "w"]
    state = sensitivity.update(state, params | {"more": jnp.ones(2)})
    assert float(state.factors["w"].rows.sum()) == 12


def test_what_does_not_fit_is_named():
    params = {"a": {"w": jnp.ones((2, 3))}}
    state = sensitivity.init(params)
    with pytest.raises(ValueError, match="leaf 'a/w' is not in grads"):
        sensitivity.update(state, {"b": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"leaf 'a/w' has shape \(3, 2\) in grads, expected \(2, 3\)"):
        sensitivity.update(state, {"a": {"w": jnp.ones((3, 2))}})
    with pytest.raises(ValueError, match="'a/w' of shape .* batch_axis, got 3"):
        sensitivity.init(params, batch_axis=lambda name, x: 3)
    with pytest.raises(ValueError, match="from 1 to 1 axes of rows, got 2"):
        sensitivity.init(params, split=lambda name, x: 2)
    with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
        sensitivity.init({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}})
