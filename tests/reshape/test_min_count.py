"""How often the level occurs that ends the kept range: as chosen, as given, and as warned of."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ggjax
from ggjax import deepshape
from ggjax.reshape import _kept
from tests.reshape.reference import draw, levels, reference


@pytest.mark.parametrize(
    ("number", "beside_zero", "want"),
    [
        (1e8, 1e6, 1000),  # the published one
        (1e8, 20_000, 100),  # a finer step: levels hold fewer weights
        (655_360, 5_000, 6),
        (655_360, 399, 1),
        (2_112, 1, 0),
        (1e9, 0, 0),  # nothing near 0
        (0, 0, 0),
    ],
)
def test_chosen(number, beside_zero, want):
    assert _kept.chosen_min_count(jnp.float32(number), jnp.float32(beside_zero)) == want


def test_chosen_under_jit_from_the_counts():
    x = draw(1.0, 10**6, 0.1)
    new, info = jax.jit(deepshape)(jnp.asarray(x))
    count = np.bincount(np.abs(levels(x)))[1] / 2
    assert info.min_count.dtype == jnp.int32
    assert int(info.min_count) == min(10, count // 200) == 4
    *_, top, kept, _ = reference(x, min_count=4)
    assert int(info.max_level) == top and kept.size > 0.95 * x.size
    assert abs(float(info.after.nu / info.before.nu) - 0.8) < 0.1


def test_a_count_too_large_is_a_warning():
    w = {"w": jnp.asarray(draw(1.0, 2112, 0.1))}
    with pytest.warns(
        UserWarning, match=r"next to nothing: min_count=1000 ends the kept range at level 1, "
    ) as got:
        _, info = deepshape(w, min_count=1000)
    assert int(info.min_count) == 1000 and float(info.moved) < 0.01
    assert "leave it out to have it chosen, or pass 0" in str(got[0].message) and got[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(functools.partial(deepshape, min_count=1000), w)  # traced weights: nothing is known
        _, info = deepshape(w, min_count=0)
    assert float(info.moved) > 0.9


def test_a_small_trained_model_is_reshaped():
    model = nn.Dense(64, kernel_init=ggjax.gg_init(shape=1.0, xi=1.0))
    x = jax.random.normal(jax.random.key(1), (256, 32))
    y = jnp.sin(x @ jax.random.normal(jax.random.key(2), (32, 64)))
    tx = optax.adam(3e-3)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: jnp.mean((model.apply(p, x) - y) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), None, length=200)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        params = train(model.init(jax.random.key(0), x))
    assert sum(v.size for v in jax.tree.leaves(params)) == 2112
    new, info = deepshape(params)
    assert int(info.min_count) == 0
    assert float(info.moved) > 0.9
    assert abs(float(info.after.nu / info.before.nu) - 0.8) < 0.05
    std = [np.std(np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)])) for t in (params, new)]
    assert 0.6 < std[1] / std[0] < 1
