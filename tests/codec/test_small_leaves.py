"""Small leaves, which stand together in a file, and leaves that are not worth coding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax.codec import _decode
from tests.codec import plain_decoder
from tests.codec.helpers import assert_same, weights

RNG = np.random.default_rng(0)


def network():
    """A mobile convolutional network: many small norms and biases, few weights; 308 tensors."""
    tree, width = {}, 8
    for i in range(51):
        name, new = f"features.{i // 3}.conv.{i % 3}", 8 + 2 * (i // 3)
        shape = (width, 1, 3, 3) if i % 3 == 1 else (new, width, 1, 1)
        new = shape[0]
        tree[f"{name}.0.weight"] = RNG.normal(size=shape) * (2 / shape[1]) ** 0.5
        tree[f"{name}.1.weight"] = RNG.uniform(0.5, 1.5, new)
        tree[f"{name}.1.bias"] = RNG.normal(size=new) * 0.1
        tree[f"{name}.1.running_mean"] = RNG.normal(size=new)
        tree[f"{name}.1.running_var"] = RNG.gamma(2.0, size=new)
        tree[f"{name}.1.num_batches_tracked"] = np.array(1200, np.int64)
        width = new
    tree["head.weight"] = RNG.normal(size=(1000, width)) * 0.1
    tree["head.bias"] = RNG.normal(size=1000) * 0.1
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in tree.items()}


@pytest.fixture(scope="module")
def net():
    return network()


def test_a_network_of_small_leaves_is_smaller_than_by_zstd(net, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    safetensors.numpy.save_file(net, tmp_path / "plain")
    codec.compress_file(tmp_path / "plain", tmp_path / "small", lossless=True)
    plain = (tmp_path / "plain").read_bytes()
    small = (tmp_path / "small").stat().st_size
    assert len(net) == 308 and small < len(zstandard.compress(plain, 19))
    header = int.from_bytes((tmp_path / "small").read_bytes()[:8], "little")
    assert header < int.from_bytes(plain[:8], "little") + 24 * len(net)
    codec.decompress_file(tmp_path / "small", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == plain


def test_small_leaves_load_by_name_mask_and_like(net, tmp_path):
    path = tmp_path / "x"
    codec.save_file(net, path, bits=4, per="leaf")
    name = "features.4.conv.1.1.running_var"
    assert_same(codec.load_file(path, mask=lambda n: n == name), {name: jnp.asarray(net[name])})
    assert_same(codec.load_file(path, like={name: net[name]}), {name: jnp.asarray(net[name])})
    with pytest.raises(ValueError, match=f"leaf '{name}' has shape"):
        codec.load_file(path, like={name: np.zeros(3, np.float32)})
    info = {t.name: t for t in codec.inspect_file(path).tensors}
    assert info.keys() == net.keys() and list(codec.load_file(path)) == sorted(net)
    assert info[name].kind == "lossless" and info[name].shape == net[name].shape
    small = [t for n, t in info.items() if net[n].size < 1024 and t.dtype == "F32"]
    assert sum(t.nbytes for t in small) < 0.93 * sum(4 * t.size for t in small)
    got = plain_decoder.decode_file(path)
    for n in net:
        if net[n].size < 1024:
            assert got[n].tobytes() == net[n].tobytes()


def test_small_leaves_of_every_dtype_and_shape(tmp_path):
    tree = {
        "empty": np.zeros((3, 0), np.float32),
        "scalar": np.float32(2.5),
        "half": weights((30,), dtype=jnp.bfloat16),
        "eight": np.ones((2, 2), jnp.float8_e4m3fn),
        "flags": np.array([True, False]),
        "wide": np.linspace(0, 1, 5),
        "nan": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        **{f"l{i}": RNG.normal(size=400).astype(np.float16) for i in range(4)},
    }
    codec.save_file(tree, tmp_path / "x", lossless=True)
    for got in (codec.load_file(tmp_path / "x"), plain_decoder.decode_file(tmp_path / "x")):
        for name, x in tree.items():
            if x.dtype != np.float64:
                assert np.asarray(got[name]).tobytes() == np.asarray(x).tobytes(), name
                assert got[name].shape == x.shape


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1024, 5000, 100_000])
@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"step": 1e-8}, {"lossless": True, "coder": "zstd"}], ids=str
)
def test_no_leaf_takes_more_than_its_plain_bytes(dtype, size, options, tmp_path):
    """Bits that have no law are kept as they are."""
    width = jnp.dtype(dtype).itemsize
    bits = RNG.integers(0, 1 << 8 * width, size, dtype=np.uint64).astype(f"u{width}")
    x = bits.view(jnp.dtype(dtype))
    if "step" in options:
        x = RNG.normal(size=size).astype(jnp.dtype(dtype))
    small = codec.compress({"w": x}, **options)
    assert small.nbytes <= 1.01 * x.nbytes
    nbytes = codec.save_file({"w": x}, tmp_path / "x", **options)
    assert nbytes <= 1.01 * x.nbytes + 300
    if "step" not in options:
        assert np.asarray(codec.load_file(tmp_path / "x")["w"]).tobytes() == x.tobytes()


def test_streams_of_small_arrays_hold_no_large_buffers():
    """What is left of an array after coding, and after decoding, is no view of a batch."""
    tree = {f"l{i}": weights((1500,), scale=0.01 * 2**i) for i in range(12)} | {"m": weights((300, 300))}
    small = codec.compress(tree, step=2**-8)
    values = _decode.arrays(list(small.tree.values()))
    for x in (*jax.tree.leaves(small), *values):
        assert root(x).nbytes <= 2 * x.nbytes + 2048


def root(x):
    return root(x.base) if isinstance(x.base, np.ndarray) else x
