"""Trees of RF8 arrays: which leaves are encoded, where the work is done, and errors that name the leaf."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ggjax import rf8
from ggjax._internal import pack
from ggjax.rf8 import _trees
from tests.rf8.reference import reference


def test_leaves_of_every_kind():
    tree = {
        "w": jnp.linspace(-1, 1, 12).reshape(3, 4),
        "b": jnp.ones(4, jnp.bfloat16),
        "none": None,
        "masked": optax.MaskedNode(),
        "ids": jnp.arange(3),
        "key": jax.random.key(0),
        "waves": jnp.ones(2, jnp.complex64),
        "name": "layer",
        "f": jnp.sin,
    }
    q = rf8.tree_encode(tree, axis=-2)
    assert q["w"].exponents.shape == (1, 4) and q["b"].exponents.shape == (1,)  # b has no axis -2
    for name in ("none", "ids", "key", "waves", "name", "f"):
        assert q[name] is tree[name]
    assert q["masked"] == optax.MaskedNode()
    y = rf8.tree_decode(q)
    np.testing.assert_array_equal(y["w"], rf8.round(tree["w"], axis=0))
    assert y["b"].dtype == jnp.bfloat16 and jax.tree.structure(y) == jax.tree.structure(tree)
    arrays = {k: v for k, v in tree.items() if k not in ("name", "f")}
    jitted = jax.jit(lambda t: rf8.tree_decode(rf8.tree_encode(t, axis=-2)))(arrays)
    for name in ("w", "b", "ids"):
        np.testing.assert_array_equal(jitted[name], y[name])
    some = rf8.tree_encode(tree, mask=lambda t: {k: k == "w" for k in t})
    assert isinstance(some["w"], rf8.RF8Array) and some["b"] is tree["b"]
    near = rf8.tree_decode(rf8.tree_encode(tree, rounding="nearest"))["w"]
    np.testing.assert_array_equal(near, rf8.round(tree["w"], rounding="nearest"))
    assert rf8.tree_encode({}) == {}


def test_modules_of_equinox_and_nnx():
    model = eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0))
    x = jnp.ones(4)
    small = rf8.tree_encode(model)
    assert small.activation is model.activation
    back = rf8.tree_decode(small)
    np.testing.assert_allclose(back(x), small(x), rtol=1e-6)  # a layer multiplies by what is still encoded
    linear = model.layers[0]
    mask = jax.tree.map(lambda v: v.ndim > 1, linear)  # a module of bools, which can be called
    only = rf8.tree_encode(linear, mask=mask)
    assert isinstance(only.weight, rf8.RF8Array) and only.bias is linear.bias

    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    state = nnx.state(layer)
    nnx.update(layer, rf8.tree_decode(rf8.tree_encode(state)))
    np.testing.assert_array_equal(layer.kernel[...], rf8.round(state["kernel"][...]))


DTYPES = [np.float32, jnp.bfloat16, np.float16, np.float64]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
def test_small_leaves_are_encoded_as_large_ones(dtype, x64, monkeypatch):
    """By NumPy or on the device, from NumPy or JAX arrays, per tensor and per channel: the same bits."""
    r = np.random.default_rng(6)
    x = (r.standard_normal((5, 6)) * 2.0 ** r.integers(-30, 10, (5, 6))).astype(dtype)
    x[0, :3] = 0, -0.0, 1e-7
    with jax.enable_x64(x64):
        leaves = {"host": x, "device": jnp.asarray(x), "scalar": x[1, 1], "empty": x[:0]}
        for axis in (None, 0, (0, 1)):
            monkeypatch.setattr(_trees, "_SMALL", 1 << 16)
            host = rf8.tree_encode(leaves, axis=axis)
            host_values = rf8.tree_decode(host)
            monkeypatch.setattr(_trees, "_SMALL", 0)
            device = rf8.tree_encode(leaves, axis=axis)
            assert jax.tree.structure(host) == jax.tree.structure(device)
            jax.tree.map(np.testing.assert_array_equal, host, device)
            jax.tree.map(np.testing.assert_array_equal, host_values, rf8.tree_decode(device))
            want = reference(np.float32(x), "digits", axis, largest=65504 if dtype == np.float16 else 2.0**127)[
                0
            ]
            np.testing.assert_array_equal(host_values["host"].astype(jnp.float32), want)
            for a in (host["device"].codes, host_values["device"]):
                assert isinstance(a, jax.Array)


@pytest.mark.parametrize("x64", [False, True])
def test_leaves_packed_together_under_jit_are_encoded_as_alone(x64, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # where nothing can be sharded
    monkeypatch.setattr(pack, "MOST", 5)
    r = np.random.default_rng(7)
    shapes = [(3, 4), (), (0, 2), (128,), (7, 19), (1, 1, 1)]
    with jax.enable_x64(x64):
        leaves = [
            jnp.asarray(r.standard_normal(s) * 2.0 ** r.integers(-30, 10), d)
            for s in shapes
            for d in (jnp.float32, jnp.bfloat16)
        ]
        leaves += [jnp.zeros(5), jnp.full(3, 3e38), jnp.full((2,), 1e-45), jnp.ones(3, jnp.float16)]
        bad = jnp.array([[1.0, jnp.nan]])
        got = jax.jit(rf8.tree_encode)([*leaves, bad])
        want = rf8.tree_encode(leaves)
    jax.tree.map(np.testing.assert_array_equal, got[:-1], want)
    assert got[-1].exponents == rf8.NOT_FINITE
    assert [q.shape for q in got[:-1]] == [x.shape for x in leaves]


def test_leaves_stay_on_their_device():
    one, other = jax.devices()[:2]
    for size in (3, 300):  # NumPy's and the device's
        tree = {
            "a": jax.device_put(jnp.ones((size, size)), one),
            "b": jax.device_put(jnp.ones((size, size)), other),
        }
        q = rf8.tree_encode(tree)
        y = rf8.tree_decode(q)
        for name, device in (("a", one), ("b", other)):
            assert q[name].codes.devices() == q[name].exponents.devices() == y[name].devices() == {device}
    free = rf8.tree_encode({"a": jnp.ones(3)})["a"].codes
    assert not free.committed  # so that it can still meet arrays on any mesh


def test_thousands_of_shapes_compile_nothing(compiled):
    tree = [np.full((1 + i % 50, 1 + i // 50), 0.3, np.float32) for i in range(2000)]
    back = rf8.tree_decode(rf8.tree_encode(tree))
    assert not compiled
    for x, y in zip(tree, back, strict=True):
        np.testing.assert_array_equal(y, np.full(x.shape, 0.3125))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"leaf 'x': expected finite weights, got nan at index \(1,\)"):
        rf8.encode(jnp.array([1.0, jnp.nan]))
    with pytest.raises(ValueError, match=r"leaf 'x': expected finite weights, got -inf at index \(0,\)"):
        rf8.round(jnp.array([-jnp.inf, 1.0]))
    for size in (2, 300):  # NumPy's and the device's
        bad = jnp.ones((size, size)).at[1, 0].set(jnp.inf)
        with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got inf at index \(1, 0\)"):
            rf8.tree_encode({"a": {"w": bad}, "b": jnp.ones(2)})
    with pytest.raises(TypeError, match="x must be a floating-point array with a sign, a zero.*got int32"):
        rf8.encode(jnp.arange(3))
    for call in (rf8.encode, rf8.round, rf8.tree_encode):
        with pytest.raises(ValueError, match='rounding must be "digits" or "nearest", got \'up\''):
            call(jnp.ones(3), rounding="up")
    with pytest.raises(ValueError, match=r"axis \(0, 2\) is out of range for x of shape \(3, 2\)"):
        rf8.encode(jnp.ones((3, 2)), axis=(0, 2))
    with pytest.raises(ValueError, match="no floating-point .*'ids', is int32"):
        rf8.tree_encode({"ids": jnp.arange(3)})
