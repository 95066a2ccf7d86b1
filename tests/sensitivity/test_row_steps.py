"""Steps of rows: against the formula in NumPy, and less loss at the same bits than one step for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import rate, sensitivity


def test_every_row_adds_the_same():
    shapes = {"conv": (3, 3, 2, 5), "dense": (6, 4), "bias": (4,), "layers": (2, 6, 4)}
    rng = np.random.default_rng(0)
    grads = [{k: jnp.asarray(rng.normal(size=s) * rng.uniform(0.1, 3, s[:1] + (1,) * (len(s) - 1)), jnp.float32)
              for k, s in shapes.items()} for _ in range(3)]  # fmt: skip
    axis = {"layers": 0}
    state = sensitivity.init(grads[0], batch_axis=lambda name, leaf: axis.get(name, ()))
    for g in grads:
        state = sensitivity.update(state, g)
    steps = jax.jit(lambda s: sensitivity.row_steps(s, 0.1, damping=1e-8))(state)
    assert {k: v.shape for k, v in steps.items()} == {
        "conv": (3, 3, 2, 1), "dense": (6, 1), "bias": (4,), "layers": (2, 6, 1)
    }  # fmt: skip
    products, logs = [], []
    for k, s in steps.items():
        columns = -1 if k != "bias" else ()
        squares = sum(np.square(np.asarray(g[k], np.float64)) for g in grads)
        products.append((squares.mean(columns, keepdims=True) * np.asarray(s) ** 2).ravel())
        logs.append(np.broadcast_to(np.log(s), shapes[k]).ravel())
    products = np.concatenate(products)
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    np.testing.assert_allclose(np.exp(np.concatenate(logs).mean()), 0.1, rtol=1e-5)


def test_rows_without_gradients_have_no_more_than_the_damping_allows():
    state = sensitivity.init({"w": jnp.zeros((4, 2))})
    state = sensitivity.update(state, {"w": jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [0.0, 0.0]])})
    steps = sensitivity.row_steps(state, 1.0, damping=0.04)["w"]
    mean = (1 + 4 + 9) / 4
    np.testing.assert_allclose(steps[3] / steps[0], np.sqrt((1 / mean + 0.04) / 0.04), rtol=1e-5)
    none = sensitivity.update(sensitivity.init({"w": jnp.zeros((4, 2))}), {"w": jnp.zeros((4, 2))})
    np.testing.assert_allclose(sensitivity.row_steps(none, 0.5)["w"], 0.5, rtol=1e-6)


def test_less_loss_at_the_same_bits():
    """A quadratic loss, whose second derivatives Adam's second moments tell."""
    rng = np.random.default_rng(1)
    scale = 10.0 ** rng.uniform(-2, 1, (64, 1))
    w = jnp.asarray(rng.laplace(size=(64, 256)), jnp.float32)
    moments = {"w": jnp.asarray(scale**2 * np.ones((64, 256)), jnp.float32)}
    state = sensitivity.from_second_moments(moments, batch_size=1)
    steps = sensitivity.row_steps(state, 0.2, damping=1e-4)["w"]
    rounded = jnp.round(w / steps) * steps
    one = 0.2 * 2.0 ** float(rate.bits(w, 0.2) - rate.bits(w / steps, 1.0))  # the same bits, or a few more
    plain = jnp.round(w / one) * one
    assert rate.bits(w, one) > rate.bits(w / steps, 1.0) - 0.1
    loss = [float(jnp.sum(scale**2 * np.asarray(x - w) ** 2)) for x in (rounded, plain)]
    assert loss[0] < 0.5 * loss[1]


def test_what_cannot_be_used_is_named():
    state = sensitivity.init({"w": jnp.zeros((4, 2))})
    with pytest.raises(ValueError, match="knows of no gradient yet"):
        sensitivity.row_steps(state, 0.1)
    for options, message in (
        ({"step": 0.0}, "step must be positive"),
        ({"damping": -1}, "damping must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            sensitivity.row_steps(state, **({"step": 0.1} | options))
