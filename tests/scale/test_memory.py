"""Memory of the compiled programs on sharded trees, per device, without running them."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax import gennorm, rf8

DEVICES = 8
SIZE = 3 * 4096 * 4096
SHARE = 4 * SIZE / DEVICES
"""Bytes of parameters of a device."""


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def params(request):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(request.param,) * 2)
    specs = {"up": P("x", "y"), "down": P("y", "x"), "rows": P(("x", "y"), None)}
    return {
        k: jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=NamedSharding(mesh, s))
        for k, s in specs.items()
    }


def memory(f, *args):
    return f.lower(*args).compile().memory_analysis()


def step_memory(tx, params):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(p, s, g):
        u, s = tx.update(g, s, p)
        return optax.apply_updates(p, u), s

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        state = jax.tree_util.tree_map_with_path(
            lambda path, s: (
                jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=params[path[-1].key].sharding)
                if s.ndim and getattr(path[-1], "key", None) in params
                else s
            ),
            jax.eval_shape(tx.init, params),
        )
        return memory(step, params, state, params)


@pytest.mark.parametrize(
    "options",
    [{}, {"gg_shape": 1}, {"gg_shape": 0.8, "clamp": True}, {"per_leaf": True}, {"estimate_every": 10}],
)
def test_backslash_adds_nothing_of_the_size_of_the_parameters(params, options):
    adam = step_memory(optax.adam(1e-3), params)
    both = step_memory(optax.chain(optax.adam(1e-3), ggjax.backslash(2e3, **options)), params)
    assert both.temp_size_in_bytes - adam.temp_size_in_bytes < 0.01 * SHARE
    for m in (adam, both):  # parameters and both moments are updated in place
        assert 3 * SHARE <= m.alias_size_in_bytes <= m.output_size_in_bytes < 3.01 * SHARE


def test_deepshape_takes_little_more_than_its_largest_leaf(params):
    m = memory(jax.jit(ggjax.deepshape), params)
    assert m.output_size_in_bytes < 1.01 * SHARE
    assert m.temp_size_in_bytes < 1.5 * SHARE, m.temp_size_in_bytes / SHARE


def test_rf8_takes_its_codes(params):
    m = memory(jax.jit(rf8.tree_encode), params)
    assert m.output_size_in_bytes + m.temp_size_in_bytes < 1.05 * SHARE / 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("f", [gennorm.fit, functools.partial(gennorm.fit, center=True)])
def test_sums_over_the_weights_take_no_copy_of_them(params, f, dtype):
    params = {k: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding) for k, x in params.items()}
    assert memory(jax.jit(f), params).temp_size_in_bytes < 0.05 * SHARE
