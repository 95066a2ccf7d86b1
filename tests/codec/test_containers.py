"""What other libraries have: modules of nnx, folders with an index, state dicts of shards."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx, serialization

from ggjax import codec
from ggjax.app import cli
from ggjax.codec import FormatError

X = jnp.linspace(-1, 1, 64).reshape(2, 32)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 32, rngs=rngs)])
        self.layers[1].kernel = self.layers[0].kernel
        self.norm, self.dropout = nnx.BatchNorm(32, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.layers[1](nnx.relu(self.layers[0](x)))))


@pytest.mark.parametrize("abstract", [False, True])
def test_a_module_of_nnx_comes_back_as_one_with_its_weights_tied(tmp_path, abstract):
    model, path = Tied(nnx.Rngs(0)), tmp_path / "m"
    codec.save_file(model, path, lossless=True)
    names = {t.name for t in codec.inspect_file(path).tensors}
    assert "layers/0/kernel/value" in names and not names & {"layers/1/kernel/value", "dropout/rngs/key/value"}
    back = codec.load_file(path, like=nnx.eval_shape(lambda: Tied(nnx.Rngs(1))) if abstract else model)
    assert isinstance(back, Tied) and back is not model
    assert back.layers[1].kernel is back.layers[0].kernel and isinstance(back.norm.mean, nnx.BatchStat)
    np.testing.assert_array_equal(back.layers[0].kernel[...], model.layers[0].kernel[...])
    if not abstract:
        for m in (model, back):
            m.eval()
        np.testing.assert_array_equal(back(X), model(X))


def test_a_state_of_nnx_updates_its_module(tmp_path):
    model, path = Tied(nnx.Rngs(0)), tmp_path / "m"
    state, kernel = nnx.state(model, nnx.Param), model.layers[0].kernel
    codec.save_file(state, path, step=1.0)  # all weights become zeros
    nnx.update(model, codec.load_file(path, like=state))
    assert model.layers[1].kernel is kernel and not kernel[...].any()
    message = r"'dropout/rngs/key/value'.*of an nnx state, nnx.state\(module, nnx.Param\)"
    with pytest.raises(TypeError, match=message):
        codec.save_file(nnx.state(model), path, lossless=True)


def test_a_folder_stands_for_the_checkpoint_in_it(tmp_path):
    plain, small, back = (tmp_path / name for name in ("plain", "small", "back"))
    plain.mkdir()
    tensors = {name: np.full((32, 32), i, np.float32) for i, name in enumerate("ab")}
    for name, x in tensors.items():
        safetensors.numpy.save_file({name: x}, plain / f"{name}.safetensors")
    message = r"plain: .* this one has several checkpoints: name a.safetensors or b.safetensors"
    with pytest.raises(FormatError, match=message):
        codec.compress_file(plain, small, lossless=True)
    index = {"weight_map": {name: f"{name}.safetensors" for name in tensors}}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    codec.compress_file(plain, small, lossless=True)
    assert codec.verify_file(small).nbytes == sum(p.stat().st_size for p in small.glob("*.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, codec.load_file(small), tensors)
    codec.decompress_file(small, back)
    jax.tree.map(np.testing.assert_array_equal, safetensors.numpy.load_file(back), tensors)
    assert cli.main(["decompress", str(small), "-o", str(tmp_path / "again"), "-q"]) == 0
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in plain.iterdir()}
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="empty: .* this one has none"):
        codec.load_file(tmp_path / "empty")


def test_a_state_dict_restores_shards_to_a_tree_of_structs():
    mesh = jax.make_mesh((8,), ("d",))
    places = {"w": jax.NamedSharding(mesh, jax.P("d")), "b": jax.NamedSharding(mesh, jax.P())}
    params = {"w": jnp.linspace(-1, 1, 1 << 14).reshape(64, 256), "b": jnp.ones(5)}
    params = jax.tree.map(jax.device_put, params, places)
    small = codec.compress(params, bits=3)
    state = serialization.to_state_dict(small)
    assert all(isinstance(x, (jax.Array, np.ndarray)) for x in jax.tree.leaves(state)), "orbax keeps no texts"

    def restored(places):
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, places)
        return codec.decompress(serialization.from_state_dict(codec.Compressed(like), state))

    want = codec.decompress(small)
    back = restored(places)
    assert back["w"].sharding == places["w"]
    jax.tree.map(np.testing.assert_array_equal, back, want)
    back = restored({"w": jax.NamedSharding(mesh, jax.P(None, "d")), "b": places["b"]})  # not as it was divided
    assert back["w"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, back, want)


def test_state_dicts_of_older_versions_have_texts():
    small = codec.compress({"w": jnp.linspace(-1, 1, 4096)}, bits=3)
    state = serialization.to_state_dict(small)
    state["w"]["meta"] = state["w"]["meta"].tobytes().decode()
    back = serialization.from_state_dict(small, state)
    np.testing.assert_array_equal(codec.decompress(back)["w"], codec.decompress(small)["w"])
