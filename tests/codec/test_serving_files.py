"""Files that load straight into small forms, and steps that decode entropy-coded layers one after another."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import ggjax
from ggjax import codec, rf8
from ggjax.codec import _decode
from tests.codec.test_resident import TREE, assert_close, laplace, leaves_of

R = np.random.default_rng(11)


@pytest.fixture(params=[{"step": 0.02}, {"rf8": True}, {"lossless": True}], ids=lambda o: next(iter(o)))
def saved(request, tmp_path):
    path = tmp_path / "model.ggjax.safetensors"
    ggjax.save_file(TREE, path, **request.param)
    return path


@pytest.mark.parametrize("with_like", [False, True])
def test_a_file_loads_into_small_forms(saved, with_like):
    like = ggjax.load_file(saved) if with_like else None
    small = ggjax.load_file(saved, like, form="resident")
    coded = ggjax.load_file(saved, like, form="coded")
    floats = ggjax.load_file(saved)
    assert jax.tree.structure(floats) == jax.tree.structure(codec.decompress(coded))
    assert_close(small, floats, rtol=0)
    assert_close(codec.decompress(coded), floats, rtol=0)
    kinds = {type(x) for _, x in leaves_of(small)}
    of_file = {t.kind for t in ggjax.codec.inspect_file(saved).tensors}
    assert (codec.LevelArray in kinds) == ("uniform" in of_file) and (rf8.RF8Array in kinds) == (
        "rf8" in of_file
    )


def test_no_float_copy_while_loading(tmp_path, monkeypatch):
    path = tmp_path / "model.ggjax.safetensors"
    tree = {"a": {"kernel": laplace(256, 64)}}
    ggjax.save_file(tree, path, step=0.02)
    monkeypatch.setattr(_decode, "weights_of", None)  # what makes floats of what is decoded
    seen = []
    original = _decode._array
    monkeypatch.setattr(_decode, "_array", lambda *a: seen.append(x := original(*a)) or x)
    small = ggjax.load_file(path, form="resident")["a"]["kernel"]
    assert [x.dtype for x in seen] == [np.int16] and small.nbytes <= 256 * 64 * 1.2


def test_what_cannot_be_asked(saved):
    with pytest.raises(ValueError, match="""form must be "floats", "resident" or "coded", got 'small'"""):
        ggjax.load_file(saved, form="small")
    with pytest.raises(ValueError, match="form='coded' and sharding cannot be given together"):
        ggjax.load_file(saved, sharding=jax.devices()[0], form="coded")


def bits(x):
    return np.asarray(x).view(np.uint16 if x.dtype.itemsize == 2 else np.uint32)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_layers_are_decoded_one_after_another(dtype):
    layers, n = 3, 128
    w = jnp.asarray(R.standard_normal((layers, n, n)) * n**-0.5, dtype).at[1, 3, 5].set(1e30)
    coded = codec.layers(w)
    assert coded.shape == (n, n) and coded.words.shape[0] == layers
    for i in range(layers):
        layer = jax.tree.map(lambda a, i=i: a[i], coded)
        np.testing.assert_array_equal(bits(jax.jit(codec.decompress)(layer)), bits(w[i]))
    small = sum(a.nbytes for a in jax.tree.leaves(coded))
    assert small < (0.8 if dtype == jnp.bfloat16 else 0.9) * w.nbytes

    @jax.jit
    def serve(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(codec.dot(x, w)), None), x, stack)[0]

    x = jnp.asarray(R.standard_normal((2, n)), dtype)
    np.testing.assert_array_equal(bits(serve(x, coded)), bits(serve(x, w)))
    assert jax.grad(lambda x: serve(x, coded).astype(jnp.float32).sum())(x).shape == x.shape


def test_only_one_layer_is_decoded_at_a_time():
    layers, n = 17, 256
    w = (R.standard_normal((layers, n, n)) * n**-0.5).astype(ml_dtypes.bfloat16)
    step = jax.jit(lambda x, stack: jax.lax.scan(lambda x, w: (codec.dot(x, w), None), x, stack)[0])
    memory = step.lower(jnp.ones((1, n), jnp.bfloat16), codec.layers(w)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 24 * n * n < w.nbytes  # in bytes: decoding one takes about 20 a weight


def test_layers_of_what_a_file_has(tmp_path):
    path = tmp_path / "model.ggjax.safetensors"
    stack = laplace(4, 64, 64)
    ggjax.save_file({"kernel": stack}, path, step=0.01)
    coded = codec.layers(ggjax.load_file(path, form="coded")["kernel"])
    assert coded.meta.kind == "uniform"
    want = ggjax.load_file(path)["kernel"]
    layer = jax.tree.map(lambda a: a[2], coded)
    np.testing.assert_array_equal(jax.jit(codec.decompress)(layer), want[2])
    calibrated = codec.compress({"kernel": stack}, rf8=True).tree["kernel"]
    assert codec.layers(calibrated).meta.kind == "lossless"


def test_layers_of_a_sharded_stack():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    stack = jax.device_put(laplace(2, 64, 32), jax.NamedSharding(mesh, jax.P(None, "d")))
    small = codec.compress({"kernel": stack}, step=0.01)
    layer = jax.tree.map(lambda a: a[1], codec.layers(small.tree["kernel"]))
    np.testing.assert_array_equal(jax.jit(codec.decompress)(layer), codec.decompress(small)["kernel"][1])


def test_a_coded_array_that_is_closed_over_is_decoded_on_the_device():
    w = laplace(128, 64)
    coded = codec.compress({"w": w}, lossless=True).tree["w"]
    f = jax.jit(lambda x: codec.dot(x, coded))
    x = laplace(2, 128)
    np.testing.assert_array_equal(f(x), jax.jit(codec.dot)(x, w))
    assert "f32[128,64]{1,0} constant" not in f.lower(x).compile().as_text()


def test_messages_of_layers():
    with pytest.raises(ValueError, match=r"expected layers stacked along the first axis, got shape \(5,\)"):
        codec.layers(jnp.ones(5))
    with pytest.raises(TypeError, match="expected an array of float32, bfloat16, float16, or a coded one"):
        codec.layers(jnp.ones((2, 4), jnp.int32))
