"""RF8 under jit, vmap, scan, shard_map, on sharded arrays, and in JAX's stricter modes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import rf8
from ggjax.rf8 import _encode
from tests.rf8.reference import reference

W = np.float32(np.random.default_rng(5).standard_normal((4, 4, 4)) * 10.0 ** np.arange(-4, 4, 2)[:, None, None])
"""Four layers of different scales, all sizes equal, so that exponents on a wrong axis would still broadcast."""

LAYERS = np.stack([reference(w, "digits")[0] for w in W])

STACKED = {
    "vmap": lambda w: jax.vmap(rf8.encode)(w),
    "lax.map": lambda w: jax.lax.map(rf8.encode, w),
    "scan": lambda w: jax.lax.scan(lambda c, v: (c, rf8.encode(v)), 0, w)[1],
    "stack": lambda w: jax.tree.map(lambda *x: jnp.stack(x), *(rf8.encode(v) for v in w)),
    "tree": lambda w: jax.vmap(rf8.tree_encode)({"w": w})["w"],
}


@pytest.mark.parametrize("way", STACKED)
def test_stacked_layers_decode_to_themselves(way):
    q = STACKED[way](jnp.asarray(W))
    rf8.validate(q)
    assert q.exponents.shape == (4, 1, 1)
    np.testing.assert_array_equal(rf8.decode(q), LAYERS)
    np.testing.assert_array_equal(rf8.encode(W, axis=(1, 2)).codes, q.codes)
    # and every way to take the layers apart again
    np.testing.assert_array_equal(q[2], LAYERS[2])
    np.testing.assert_array_equal(jax.vmap(rf8.decode)(q), LAYERS)
    np.testing.assert_array_equal(jax.lax.map(lambda v: jnp.asarray(v), q), LAYERS)


def test_vmap_along_another_axis():
    for axis in (1, 2):
        q = jax.vmap(rf8.encode, axis, axis)(jnp.asarray(W))
        want = np.stack([reference(w, "digits")[0] for w in np.moveaxis(W, axis, 0)], axis)
        np.testing.assert_array_equal(rf8.decode(q), want)
    with pytest.raises(ValueError, match="inconsistent sizes"):
        jax.vmap(rf8.decode)(rf8.encode(W))  # one exponent for all cannot be cut into four


def test_nn_scan_over_encoded_layers():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(4, use_bias=False)(x), None

    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)()
    x = jnp.ones((2, 4))
    small = jax.vmap(rf8.tree_encode)({"params": {"Dense_0": {"kernel": jnp.asarray(W)}}})
    want = np.float64(x)
    for layer in LAYERS:
        want = want + want @ layer
    np.testing.assert_allclose(stack.apply(small, x, None)[0], want, rtol=1e-5)


def test_eager_jit_and_disabled_jit_agree_in_bits(rounding):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((6, 5, 4)) * 1e-3, jnp.float32)
    with jax.disable_jit():
        slow = rf8.encode(x, axis=(1, 2), rounding=rounding)
        slow_values, tree = rf8.decode(slow), rf8.tree_decode(rf8.tree_encode([x], rounding=rounding))
        rf8.validate(slow)
    q = jax.jit(lambda v: rf8.encode(v, axis=(1, 2), rounding=rounding))(x)
    jax.tree.map(np.testing.assert_array_equal, q, slow)
    np.testing.assert_array_equal(jax.jit(rf8.decode)(slow), slow_values)
    np.testing.assert_array_equal(tree[0], rf8.round(x, rounding=rounding))


def test_nothing_compiles_at_a_second_call(compiled):
    inputs = [jnp.ones((3, 7)), 2 * jnp.ones((3, 7))]

    def everything(x):
        q = rf8.encode(x, axis=0)
        rf8.validate(q)
        big = jnp.broadcast_to(x[:1, :1], (300, 300))  # beyond what NumPy works on
        return rf8.round(x), rf8.decode(q), q @ x.T, q[1], rf8.tree_decode(rf8.tree_encode({"w": x, "v": big}))

    everything(inputs[0])
    assert compiled, "the events that tell of a compilation have another name"
    compiled.clear()
    everything(inputs[1])
    assert not compiled


FROZEN = {"w": jnp.asarray(W[0]), "large": jnp.full((300, 300), 0.3), "name": "layer", "f": jnp.sin}
SMALL = rf8.tree_encode(FROZEN)
CONSTANT = {
    "encode": lambda: rf8.encode(FROZEN["w"]).codes,
    "round": lambda: rf8.round(FROZEN["w"]),
    "tree_encode": lambda: rf8.tree_encode(FROZEN)["w"].codes,
    "tree_encode, large": lambda: rf8.tree_encode(FROZEN)["large"].codes,
    "tree_decode": lambda: rf8.tree_decode(SMALL)["w"],
    "validate": lambda: rf8.validate(SMALL["w"]) or SMALL["w"].codes,
    "operator": lambda: 2 * SMALL["w"],
}
WAYS = {
    "jit": lambda f: jax.jit(f)(),
    "scan": lambda f: jax.lax.scan(lambda c, _: (c, f()), 0, None, length=2)[1][0],
    "eval_shape": lambda f: jax.eval_shape(f),
    "vmap": lambda f: jax.vmap(lambda x: f())(jnp.arange(2))[0],
    "grad": lambda f: jax.grad(lambda x: (x, f()), has_aux=True)(1.0)[1],
    "checkpoint": lambda f: jax.checkpoint(lambda x: f())(1.0),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_weights_that_a_traced_function_closes_over(name):
    f = CONSTANT[name]
    want = f()
    for way, call in WAYS.items():
        got = call(f)
        assert (got.shape, got.dtype) == (want.shape, want.dtype), way
        if way != "eval_shape":
            np.testing.assert_array_equal(got, want, err_msg=way)


def test_a_closed_over_nan_is_named_and_a_traced_one_marked():
    bad = {"a": {"w": jnp.array([1.0, jnp.nan])}}
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got nan at index \(1,\)"):
        jax.jit(lambda: rf8.tree_encode(bad)["a"]["w"].codes)()
    assert jax.jit(rf8.tree_encode)(bad)["a"]["w"].exponents == rf8.NOT_FINITE


def test_debug_nans_is_silent_about_healthy_weights():
    with jax.debug_nans(True):
        for x in (jnp.asarray(W), jnp.zeros((2, 2)), jnp.asarray(W, jnp.float16), jnp.zeros((0,))):
            q = rf8.encode(x, axis=0)
            rf8.validate(q)
            rf8.decode(q), rf8.tree_decode(rf8.tree_encode([x]))
        with jax.disable_jit():  # looks at every intermediate result
            rf8.round(jnp.asarray(W[0]))


def test_x64_changes_nothing_for_narrow_weights():
    want = [rf8.encode(W), rf8.round(W, axis=0), rf8.dot(W[0], rf8.encode(W[1]))]
    with jax.enable_x64(True):
        got = [rf8.encode(W), rf8.round(W, axis=0), rf8.dot(W[0], rf8.encode(W[1]))]
        got += [jax.jit(rf8.encode)(W), rf8.tree_encode([W])[0]]
        np.testing.assert_array_equal(rf8.encode(W)[1] @ jnp.asarray(W[0]), rf8.decode(rf8.encode(W))[1] @ W[0])
        for q in (got[0], got[-1]):
            rf8.validate(q)
            assert rf8.decode(q).dtype == rf8.tree_decode([q])[0].dtype == jnp.float32
        for a, b in zip(got, [*want, want[0], want[0]], strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)
            assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def test_inside_shard_map():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    spec, closed = P("i"), jnp.asarray(W[1])

    def each(w):
        q = rf8.encode(w)
        tree = rf8.tree_decode(rf8.tree_encode({"w": w, "closed": closed}))
        return q, rf8.round(w), rf8.decode(q), tree["w"], rf8.dot(jnp.ones((4,)), q)

    q, *same, product = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec))(W)
    rf8.validate(q)
    for got in (rf8.decode(q), *same):
        np.testing.assert_array_equal(got, LAYERS)
    np.testing.assert_allclose(np.ravel(product), LAYERS.sum(1).ravel(), rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
@pytest.mark.parametrize("spec", [P("i", None), P(None, "j"), P("i", "j")], ids=str)
def test_sharded_arrays_stay_sharded(kind, spec):
    mesh = jax.make_mesh((4, 2), ("i", "j"), axis_types=(kind, kind))
    x = np.float32(np.random.default_rng(4).standard_normal((8, 16)))
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    for axis in (None, 0):
        want, q = rf8.encode(x, axis=axis), rf8.encode(sharded, axis=axis)
        (again,) = rf8.tree_encode([sharded], axis=axis)
        for other in (q, again):
            jax.tree.map(np.testing.assert_array_equal, other, want)
            assert other.codes.sharding.is_equivalent_to(sharded.sharding, 2) and other.sharding == q.sharding
        for y in (rf8.decode(q), *rf8.tree_decode([q]), jnp.asarray(q)):
            np.testing.assert_array_equal(y, rf8.decode(want))
            assert y.sharding.is_equivalent_to(sharded.sharding, 2)
    assert rf8.round(sharded, axis=0).sharding.is_equivalent_to(sharded.sharding, 2)
    text = _encode._round.lower(sharded, axis=0, rounding="digits").compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text


def test_encode_stores_nothing_but_its_output():
    """Of float32 and bfloat16, one window or one per column: no temporary of parameter size."""
    for dtype in (jnp.float32, jnp.bfloat16):
        for axis in (None, 0):
            x = jax.ShapeDtypeStruct((1024, 1024), dtype)
            lowered = jax.jit(lambda v, axis=axis: rf8.encode(v, axis=axis)).lower(x)
            assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.05 * 1024 * 1024
