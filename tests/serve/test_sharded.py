"""Small weights that are divided over devices are used where they lie."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import rf8, serve


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_two_layers(kind, decoded, assert_same):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    keys, k = jax.random.split(jax.random.key(0), 3), 128
    params = {"up": jax.random.normal(keys[0], (k, 4 * k)), "down": jax.random.normal(keys[1], (4 * k, k))}
    x = jax.random.normal(keys[2], (2, k))

    def f(params, x):  # which Explicit axes need to be told of the sum
        y = jnp.tanh(x @ params["up"])
        return jnp.dot(y, params["down"], out_sharding=P() if kind == AxisType.Explicit else None)

    specs = {"up": P(None, "x"), "down": P("x", None)}
    placed = {n: jax.device_put(w, NamedSharding(mesh, specs[n])) for n, w in params.items()}
    small = rf8.tree_encode(placed)
    assert small["up"].codes.sharding.spec == specs["up"]
    here = jax.device_put(x, NamedSharding(mesh, P()))
    served = jax.jit(serve.in_place(f))
    with jax.set_mesh(mesh):
        found, text = served(small, here), served.lower(small, here).compile().as_text()
    assert not decoded
    assert not [
        line for line in text.splitlines() if "all-gather" in line and ("u8[" in line or "f32[128,512]" in line)
    ]
    q = rf8.tree_decode(rf8.tree_encode(params))
    plain = jnp.tanh(x @ q["up"]) @ q["down"]
    assert_same(jax.device_put(found, jax.devices()[0]), plain, 1e-5)


def test_small_weights_are_used_inside_shard_map(decoded, assert_same):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    q, x = rf8.encode(jax.random.normal(jax.random.key(0), (8, 6))), jnp.ones((8, 8))
    f = serve.in_place(lambda w, x: x @ w)
    with jax.set_mesh(mesh):
        found = jax.jit(jax.shard_map(f, in_specs=(P(), P("x")), out_specs=P("x")))(q, x)
    assert not decoded
    assert_same(found, x @ rf8.decode(q))
