"""Compressed files: round trips, golden bytes, other readers, names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec, rf8
from tests.codec import fuzz_codec, plain_decoder
from tests.codec.helpers import assert_same, tree, weights

OPTIONS = [
    {"step": 2**-8},
    {"bits": 3, "per": "leaf", "centroids": True},
    {"bits": 3, "per": "leaf", "dead_zone": 0.2},
    {"rf8": True},
    {"lossless": True},
    {"step": 1e-6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_round_trip(tmp_path, options):
    path = tmp_path / "model.ggjax.safetensors"
    nbytes = codec.save_file(tree(), path, **options)
    assert nbytes == path.stat().st_size
    want = codec.decompress(codec.compress(tree(), **options))
    assert_same(codec.load_file(path, like=tree()), want)
    nested = codec.load_file(path)
    del want["none"]
    assert_same(nested, want)
    assert codec.verify_file(path) == codec.inspect_file(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_decoder_written_from_the_specification_reads_our_files(tmp_path, options):
    scale = np.exp(np.random.default_rng(0).normal(size=(300, 1)) * 2).astype(np.float32)
    more = {
        "rows": np.asarray(weights((300, 250))) * scale,
        "columns": (np.asarray(weights((300, 250))) * scale).T,
        "long": weights((300_000,)),
        "outlier": jnp.append(weights((5000,)), 100.0),
        **tree(),
    }
    path = tmp_path / "x.safetensors"
    codec.save_file(more, path, **options)
    got, want = plain_decoder.decode_file(path), fuzz_codec.flat(codec.load_file(path))
    assert {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in got.items()} == want


def test_any_safetensors_reader_lists_it(tmp_path):
    path = tmp_path / "x.safetensors"
    codec.save_file(tree(), path, step=2**-8)
    with safetensors.safe_open(path, "np") as f:
        small, ids = sorted(k for k in f.keys() if k.startswith("ggjax.small."))  # noqa: SIM118
        assert set(f.keys()) == {"dense/kernel", "half", small, ids}
        assert list(f.metadata()) == ["ggjax"] and json.loads(f.metadata()["ggjax"])["version"] == 2
        kernel = f.get_tensor("dense/kernel")
        assert kernel.dtype == np.uint8 and kernel.ndim == 1
        np.testing.assert_array_equal(f.get_tensor(small), [*np.arange(70.0), 2.5])


def test_compressed_trees_save_the_same(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    codec.save_file(tree(), a, bits=4)
    codec.save_file(codec.compress(tree(), bits=4), b)
    assert a.read_bytes() == b.read_bytes()
    with pytest.raises(ValueError, match="compressed already; step cannot be changed"):
        codec.save_file(codec.compress(tree(), bits=4), b, step=1)


def test_names_that_cannot_be(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ValueError, match="a tensor cannot have the name '__metadata__'"):
        codec.save_file({"__metadata__": jnp.ones(3), "w": jnp.ones(3)}, path, lossless=True)
    with pytest.raises(ValueError, match="a name that is not valid text"):
        codec.save_file({"\ud800": jnp.ones(3)}, path, lossless=True)
    with pytest.raises(ValueError, match="two tensors of the name 'a/b'"):
        codec.save_file({"a": {"b": jnp.ones(3)}, "a/b": jnp.ones(3)}, path, lossless=True)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_names_of_any_text(tmp_path):
    names = ["", "a@0", "\n", "\u00e9\u4e2d", '"', "a\\b", "[/x]"]
    codec.save_file({n: jnp.full(2000, i * 1.0) for i, n in enumerate(names)}, tmp_path / "x", step=0.5)
    held = codec.load_file(tmp_path / "x", like={n: jnp.zeros(2000) for n in names})
    assert [float(held[n][0]) for n in names] == [i * 1.0 for i in range(len(names))]


def test_names_and_places(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"a": {"b": jnp.ones(3)}, "list": [jnp.zeros(2), jnp.ones(2)]}, path, lossless=True)
    assert set(codec.load_file(path)["list"]) == {"0", "1"}
    assert set(codec.load_file(path, mask=lambda name: name.startswith("a"))) == {"a"}
    codec.save_file(jnp.ones(3), path, lossless=True)
    np.testing.assert_array_equal(codec.load_file(path), np.ones(3))


def test_names_whose_keys_have_slashes(tmp_path):
    """Haiku's: they come back as they were with like, and by their full names without."""
    tree = {"net/~/linear": {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}, "net/~/linear/~": {"w": jnp.ones(2)}}
    codec.save_file(tree, tmp_path / "x", lossless=True)
    assert_same(codec.load_file(tmp_path / "x", like=tree), tree)
    flat = codec.load_file(tmp_path / "x", flat=True)
    assert set(flat) == {"net/~/linear/w", "net/~/linear/b", "net/~/linear/~/w"}
    assert set(codec.load_file(tmp_path / "x", flat=True, mask=lambda n: n.endswith("b"))) == {"net/~/linear/b"}
    with pytest.raises(ValueError, match="flat and like cannot be given together"):
        codec.load_file(tmp_path / "x", like=tree, flat=True)
    codec.save_file({"a": jnp.ones(2), "a/b": jnp.ones(3)}, tmp_path / "x", lossless=True)
    with pytest.raises(ValueError, match="leaf 'a/b' lies under another leaf: take like or flat=True"):
        codec.load_file(tmp_path / "x")
    assert set(codec.load_file(tmp_path / "x", flat=True)) == {"a", "a/b"}
    codec.save_file(jnp.ones(3), tmp_path / "x", lossless=True)
    assert set(codec.load_file(tmp_path / "x", flat=True)) == {"(root)"}


def test_texts_of_the_user(tmp_path):
    path, plain, again = (tmp_path / n for n in ("x", "plain", "again"))
    texts = {"licence": "CC0", "note": 'é中\n"', "": ""}
    codec.save_file({"w": jnp.ones(2000)}, path, lossless=True, metadata=texts)
    assert codec.inspect_file(path).original == texts
    codec.decompress_file(path, plain)
    with safetensors.safe_open(plain, "np") as f:
        assert f.metadata() == texts
    codec.compress_file(plain, again, lossless=True)
    assert again.read_bytes() == path.read_bytes()
    small = codec.compress({"w": jnp.ones(2000)}, lossless=True)
    codec.save_file(small, again, metadata=texts)
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(TypeError, match="metadata maps strings to strings, got 'step': 3"):
        codec.save_file(small, path, metadata={"step": 3})
    with pytest.raises(ValueError, match="metadata cannot have the key 'ggjax'"):
        codec.save_file(small, path, metadata={"ggjax": "x"})
    with pytest.raises(ValueError, match="not valid text"):
        codec.save_file(small, path, metadata={"a": "\ud800"})
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros((3, 4)), "v": jnp.zeros(1)}, "leaf 'v' of like is not in .*x, which has 1 leaves"),
        ({"w": jnp.zeros((4, 3))}, r"leaf 'w' has shape \(4, 3\) in like, \(3, 4\) in .*x"),
        ({"w": jnp.zeros((3, 4), jnp.bfloat16)}, "leaf 'w' has dtype bfloat16 in like, float32 in .*x"),
    ],
)
def test_like_must_fit(tmp_path, like, message):
    codec.save_file({"w": jnp.zeros((3, 4))}, tmp_path / "x", lossless=True)
    with pytest.raises(ValueError, match=message):
        codec.load_file(tmp_path / "x", like=like)


def test_like_may_hold_numbers(tmp_path):
    tree = {"w": jnp.ones(2000), "n": 7, "x": 0.5}
    codec.save_file(tree, tmp_path / "x", lossless=True)
    stored = codec.load_file(tmp_path / "x")
    assert int(stored["n"]) == 7 and float(stored["x"]) == 0.5


def test_sharded_leaves_in_and_out(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    x = weights((128, 96))
    both = NamedSharding(mesh, P("x", "y"))
    path = tmp_path / "x"
    codec.save_file({"w": jax.device_put(x, both), "b": jnp.ones(5)}, path, step=2**-8)
    assert [t.name for t in codec.inspect_file(path).tensors][:3] == ["b", "w@0,0", "w@0,48"]
    want = np.asarray(codec.decompress(codec.compress({"w": x}, step=2**-8))["w"])
    np.testing.assert_array_equal(codec.load_file(path)["w"], want)
    np.testing.assert_array_equal(plain_decoder.decode_file(path)["w"], want)
    like = {"w": jax.ShapeDtypeStruct((128, 96), jnp.float32, sharding=both), "b": jnp.ones(5)}
    back = codec.load_file(path, like=like)
    assert back["w"].sharding == both
    np.testing.assert_array_equal(np.asarray(back["w"]), want)
    one = codec.load_file(path, sharding=jax.devices()[3])
    assert one["w"].devices() == one["b"].devices() == {jax.devices()[3]}


@pytest.mark.parametrize("dims", [0, 1], ids=["scalar", "ones"])
def test_rf8_arrays_in_files(tmp_path, dims):
    """The exponent that a whole array shares: without dimensions in older files."""
    q = rf8.encode(weights((40, 50)))
    one = jnp.full((1,) * (2 * dims), np.asarray(q.exponents).item(), jnp.int8)
    codec.save_file({"w": {"codes": q.codes, "exponents": one}}, tmp_path / "x", lossless=True)
    for like in (q, jax.eval_shape(lambda: q)):
        back = codec.load_file(tmp_path / "x", like={"w": like})["w"]
        assert back.exponents.shape == like.exponents.shape
        np.testing.assert_array_equal(rf8.decode(back), rf8.decode(q))
    with pytest.raises(ValueError, match="leaf 'w/exponents' has shape"):
        per_column = rf8.encode(weights((40, 50)), axis=0)
        codec.load_file(tmp_path / "x", like={"w": per_column})
