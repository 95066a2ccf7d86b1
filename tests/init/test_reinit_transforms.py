"""gg_reinit of closed-over weights, under JAX's switches, of stated shardings and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from tests.init.test_reinit import KEY

PLAIN = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4), "norm": {"scale": jnp.full(4, 3.0)}}


@pytest.mark.parametrize("way", ["jit", "scan", "vmap", "grad", "eval_shape", "disable_jit", "debug_nans"])
def test_parameters_that_are_closed_over(way):
    def draw():
        return ggjax.gg_reinit(KEY, PLAIN, 1.0)

    want = draw()
    if way == "jit":
        got = jax.jit(draw)()
    elif way == "scan":
        got = jax.tree.map(lambda x: x[1], jax.lax.scan(lambda c, _: (c, draw()), 0, None, length=2)[1])
    elif way == "vmap":
        got = jax.tree.map(
            lambda x: x[1], jax.vmap(lambda x: jax.tree.map(lambda v: v + 0 * x, draw()))(jnp.ones(2))
        )
    elif way == "grad":
        got = jax.grad(lambda x: x * sum(map(jnp.sum, jax.tree.leaves(draw()))))(1.0)
        want = sum(map(jnp.sum, jax.tree.leaves(want)))
    elif way == "eval_shape":
        got, want = (
            jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), t) for t in (jax.eval_shape(draw), want)
        )
    else:
        with jax.disable_jit() if way == "disable_jit" else jax.debug_nans(True):
            got = draw()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_shardings_that_were_stated_are_kept():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, P("x", "y"))
    w = jax.device_put(jnp.ones((16, 8)), sharding)
    with jax.set_mesh(mesh):  # the types of Explicit axes are known under jit
        traced = jax.jit(ggjax.gg_reinit)(KEY, {"w": w})["w"]
    assert traced.sharding.is_equivalent_to(sharding, 2)
    assert jax.jit(ggjax.gg_reinit)(KEY, {"w": w})["w"].shape == (16, 8)
    abstract = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=sharding)
    new = ggjax.gg_reinit(KEY, {"w": abstract})["w"]
    assert new.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(new, ggjax.gg_reinit(KEY, {"w": jnp.ones((16, 8))})["w"])
    seen = jax.eval_shape(lambda x: x, w)
    assert ggjax.gg_reinit(KEY, {"w": seen})["w"].shape == (16, 8)
    other = jax.devices()[3]
    moved = ggjax.gg_reinit(KEY, {"w": jax.device_put(jnp.ones((16, 8)), other), "free": jnp.ones((16, 8))})
    assert moved["w"].devices() == {other} and not moved["free"].committed


def test_float64_numpy_leaves_take_the_dtype_that_jax_has():
    new = ggjax.gg_reinit(KEY, {"w": np.ones((8, 4)), "bias": np.ones(4), "norm": {"scale": np.ones(4)}})
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype("float32")}
