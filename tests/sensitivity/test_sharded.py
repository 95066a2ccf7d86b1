"""Leaves on several devices are rounded to the same levels, and stay where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax import sensitivity

KEY = jax.random.key(0)
PARAMS = {"a": jax.random.normal(KEY, (48, 40)), "c": jax.random.normal(jax.random.key(1), (40, 24))}


@pytest.fixture(scope="module")
def known():
    state = sensitivity.init(PARAMS)
    for i in range(6):
        keys = dict(zip(PARAMS, jax.random.split(jax.random.key(i)), strict=True))
        grads = {
            n: jnp.linspace(0.1, 2, x.shape[0])[:, None] * jax.random.normal(keys[n], x.shape)
            for n, x in PARAMS.items()
        }
        state = sensitivity.update(state, grads, 8)
    return state


@pytest.fixture(scope="module")
def rounded(known):
    return sensitivity.round_to(PARAMS, known, bits=3)


@pytest.fixture(scope="module")
def asked(known, rounded):
    return ggjax.decompress(ggjax.compress(PARAMS, loss_rise=rounded.rise, sensitivity=known))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P()])
def test_levels_do_not_depend_on_where_the_weights_lie(known, rounded, asked, kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    sharding = NamedSharding(mesh, spec)
    put = lambda t: jax.tree.map(lambda x: jax.device_put(x, sharding), t)  # noqa: E731
    state = known._replace(
        factors=jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), known.factors)
    )
    got = sensitivity.round_to(put(PARAMS), state, bits=3)
    for name in PARAMS:
        np.testing.assert_array_equal(got.levels[name].levels, rounded.levels[name].levels)
        np.testing.assert_array_equal(got.params[name], rounded.params[name])
        assert got.params[name].sharding == sharding
    small = ggjax.compress(put(PARAMS), loss_rise=rounded.rise, sensitivity=state)
    for name, x in ggjax.decompress(small).items():
        assert spec == P() or x.sharding == sharding  # a leaf that is whole everywhere comes back on one device
        np.testing.assert_array_equal(x, asked[name])
