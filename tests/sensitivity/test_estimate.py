"""Estimates and predictions, against what is known exactly and against what is measured."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ggjax import rf8, sensitivity

KEY = jax.random.key(7)


def batches_of(shape, number, scale=None):
    keys = jax.random.split(jax.random.key(3), number)
    scale = jnp.ones(shape[-1]) if scale is None else scale
    return [jax.random.normal(k, shape) * scale[None] for k in keys]


def linear(params, x):
    return x @ params["w"]


def test_prediction_is_the_quadratic_form_of_the_factors():
    params = {"w": jnp.zeros((6, 4)), "b": jnp.zeros((4,))}
    rng = np.random.default_rng(0)
    grads = [
        {k: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for k, x in params.items()} for _ in range(6)
    ]
    state = sensitivity.init(params)
    for g in grads:
        state = sensitivity.update(state, g, 10)
    change = {k: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for k, x in params.items()}
    for half, some in ((None, grads), (0, grads[::2]), (1, grads[1::2])):
        got = sensitivity.predict(params, change, state, half=half)
        g = [np.asarray(x["w"], np.float64) for x in some]
        e = np.asarray(change["w"], np.float64)
        left, right = sum(x @ x.T for x in g), sum(x.T @ x for x in g)
        want = np.trace(e.T @ left @ e @ right) / np.trace(left) / 2 / (10 * len(some))
        np.testing.assert_allclose(got.leaves["w"], want, rtol=1e-5)
        b, e = sum(np.asarray(x["b"], np.float64) ** 2 for x in some), np.asarray(change["b"], np.float64)
        np.testing.assert_allclose(got.leaves["b"], np.sum(b * e**2) / 2 / (10 * len(some)), rtol=1e-5)
        np.testing.assert_allclose(got.total, got.leaves["w"] + got.leaves["b"], rtol=1e-6)


def test_values_of_a_linear_model_are_predicted():
    """Where the Gauss-Newton matrix is a Kronecker product, half the squared error is known exactly."""
    scale = jnp.linspace(0.2, 3, 8)
    batches = batches_of((64, 8), 30, scale)
    params = {"w": jax.random.normal(KEY, (8, 5))}
    state = sensitivity.estimate(linear, params, batches, key=KEY, output="values")
    assert float(state.examples.sum()) == 30 * 64
    after = {"w": jnp.round(params["w"], 1)}
    errors = [0.5 * float(jnp.sum((linear(after, x) - linear(params, x)) ** 2)) for x in batches]
    np.testing.assert_allclose(
        sensitivity.predict(params, after, state).total, sum(errors) / (30 * 64), rtol=0.15
    )


def test_divergence_of_a_classifier_is_predicted():
    model = nn.Sequential([nn.Dense(24), nn.tanh, nn.Dense(10)])
    batches = batches_of((64, 12), 24)
    params = model.init(KEY, batches[0])
    seen = []
    state = sensitivity.estimate(model.apply, params, batches[:16], key=KEY, groups=4, progress=seen.append)
    assert seen == list(range(1, 17))
    after = jax.tree.map(lambda w: jnp.round(w * 16) / 16, params)

    @jax.jit
    def divergence(x):
        old, new = (jax.nn.log_softmax(model.apply(p, x)) for p in (params, after))
        return jnp.mean(jnp.sum(jnp.exp(old) * (old - new), -1))

    measured = np.mean([divergence(x) for x in batches[16:]])
    predicted = sensitivity.predict(params, after, state).total
    assert 0.75 < float(predicted) / measured < 1.33
    # RF8 arrays count as the weights that they stand for, and leaves without sensitivity as free.
    encoded = rf8.tree_encode(params)
    by_rf8 = [sensitivity.predict(params, t, state).total for t in (encoded, rf8.tree_decode(encoded))]
    np.testing.assert_allclose(*by_rf8, rtol=1e-6)
    assert float(sensitivity.predict(params, params, state).total) == 0


def test_smaller_groups_know_more():
    """The products of different examples in one gradient are noise: groups come closer to the truth."""
    batches = batches_of((64, 8), 4)
    params = {"w": jax.random.normal(KEY, (8, 5))}

    def error(groups):
        found = []
        for seed in range(6):
            state = sensitivity.estimate(
                linear, params, batches, key=jax.random.key(seed), output="values", groups=groups
            )
            rows = state.factors["w"].rows.sum((0, 1)) / (5 * 64 * 4)
            truth = sum(x.T @ x for x in batches) / (64 * 4)
            found.append(jnp.linalg.norm(rows - truth) / jnp.linalg.norm(truth))
        return np.mean(found)

    assert error(16) < 0.7 * error(1)


def test_modules_of_nnx_and_equinox():
    x = batches_of((16, 6), 2)
    graph, params = nnx.split(nnx.Linear(6, 3, rngs=nnx.Rngs(0)))
    state = sensitivity.estimate(lambda p, x: nnx.merge(graph, p)(x), params, x, key=KEY)
    assert {f.view.shape for f in state.factors.values()} == {(6, 3), (3,)}
    module = eqx.nn.MLP(6, 3, 8, 1, key=KEY)
    state = sensitivity.estimate(lambda m, x: jax.vmap(m)(x), module, x, key=KEY)
    assert state.factors["layers/0/weight"].view.sizes == (1, 8, 6)
    assert float(sensitivity.predict(module, jax.tree.map(lambda w: w, module), state).total) == 0


def test_adams_second_moments_give_the_diagonal():
    params = {"w": jnp.zeros((6, 4)), "b": jnp.zeros(4)}
    tx = optax.chain(optax.clip_by_global_norm(1e9), optax.adam(1e-3, b2=0.9))
    opt = tx.init(params)
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(size=(6, 1)) + rng.normal(size=(1, 4)))
    grads = [
        {"w": jnp.asarray(rng.normal(size=(6, 4)) * scale, jnp.float32), "b": jnp.ones(4)} for _ in range(20)
    ]
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        for g in grads:
            _, opt = tx.update(g, opt, params)
    state = sensitivity.from_second_moments(opt, 32, b2=0.9)
    weight = 0.9 ** np.arange(20)[::-1]
    mean = (
        sum(w * np.asarray(g["w"], np.float64) ** 2 for w, g in zip(weight, grads, strict=True)) / weight.sum()
    )
    f = state.factors["w"]
    np.testing.assert_allclose(f.rows.sum((0, 1)), 32 * mean.sum(1), rtol=1e-4)
    np.testing.assert_allclose(f.columns.sum((0, 1)), 32 * mean.sum(0), rtol=1e-4)
    np.testing.assert_allclose(
        sensitivity.predict(params, params | {"b": jnp.ones(4)}, state).total, 64, rtol=1e-4
    )
    plain = sensitivity.from_second_moments(opt[1][0].nu, 32)
    assert float(plain.factors["b"].rows.sum()) < float(state.factors["b"].rows.sum())
    with pytest.raises(KeyError, match="nu"):
        sensitivity.from_second_moments(
            optax.sgd(1e-3, 0.9).init(params) + (optax.EmptyState(), jnp.zeros((), int)), 1
        )


def test_dead_inputs_and_zero_leaves_cost_nothing():
    batches = [x.at[:, 2].set(0) for x in batches_of((32, 4), 3)]
    params = {"w": jax.random.normal(KEY, (4, 3)), "unused": jnp.zeros((3, 3))}
    state = sensitivity.estimate(linear, params, batches, key=KEY, output="values")
    erased = params | {"w": params["w"].at[2].set(9.0), "unused": jnp.ones((3, 3))}
    assert float(sensitivity.predict(params, erased, state).total) == 0


def test_half_precision_gradients_that_overflow_are_named():
    params = {"deep": {"w": jnp.ones((4, 3), jnp.float16)}}
    x = jnp.full((8, 4), 6e4, jnp.float16)
    with pytest.raises(ValueError, match="leaf 'deep/w': expected finite gradients"):
        sensitivity.estimate(lambda p, x: x @ p["deep"]["w"], params, [x], key=KEY, output="values")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batches": []}, "batches is empty"),
        ({"output": "labels"}, 'output must be "logits" or "values"'),
        ({"apply": lambda p, x: jnp.sum(x @ p["w"])}, "first axis counts examples"),
        ({"groups": 3}, "divisible by groups=3"),
        ({"params": {"w": jnp.arange(3)}}, "no floating-point array"),
    ],
)
def test_misuse_is_named(change, match):
    given = {"apply": linear, "params": {"w": jnp.ones((4, 3))}, "batches": [jnp.ones((8, 4))], "key": KEY}
    with pytest.raises(ValueError, match=match):
        sensitivity.estimate(**(given | change))


def test_files_come_back_whole(tmp_path):
    params = {"a": {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}}
    state = sensitivity.update(sensitivity.init(params), params, 5)
    path = tmp_path / "model.sensitivity.safetensors"
    sensitivity.save(state, path)
    again = sensitivity.load(path)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)
    data = path.read_bytes()
    for bad, match in (
        (data[:-8], "ggjax|incomplete|Header|buffer"),
        (data.replace(b'\\"version\\": 1', b'\\"version\\": 9'), "version 9"),
        (data.replace(b"ggjax_sensitivity", b"another_document_"), "no sensitivity file"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=match):
            sensitivity.load(path)
