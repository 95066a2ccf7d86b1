"""Weights of few distinct values, kept exactly in the bits of their entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from tests.codec import forging, plain_decoder
from tests.codec.helpers import bits_of, entropy, round_trip, weights

RNG = np.random.default_rng(0)
PLACES = np.clip(np.rint(RNG.normal(size=60_000) * 2), -8, 7).astype(int)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2", "int8"]
)
def test_any_dtype_in_a_file(dtype, tmp_path):
    """16 values that no grid has, those of a dequantized matrix."""
    grid = RNG.normal(size=16) * (60 if dtype == "int8" else 1)
    x = grid.astype(jnp.dtype(dtype))[PLACES + 8].reshape(200, 300)
    piece = np.dtype(x.dtype)
    tree = {"w": x, "other": np.zeros(5, np.float32)}
    if piece in (np.dtype(t) for t in ("float32", "float16", "float64", "int8")):
        safetensors.numpy.save_file(tree, tmp_path / "plain")
        codec.compress_file(tmp_path / "plain", tmp_path / "x", lossless=True)
        codec.decompress_file(tmp_path / "x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "plain").read_bytes()
    else:
        codec.save_file(tree, tmp_path / "x", lossless=True)
    assert 8 * (tmp_path / "x").stat().st_size / x.size < entropy(bits_of(x)) + 0.12
    (info,) = [t for t in codec.inspect_file(tmp_path / "x").tensors if t.name == "w"]
    assert info.kind == "dictionary" and info.dtype != "U8"
    assert plain_decoder.decode_file(tmp_path / "x")["w"].tobytes() == x.tobytes()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_every_bit_on_the_host_and_under_jit(dtype):
    """NaN of several payloads, both zeros and subnormal numbers are values like others."""
    width = jnp.dtype(dtype).itemsize
    patterns = RNG.integers(0, 1 << 8 * width, 250, dtype=np.uint64)
    odd = [0, 1, 1 << (8 * width - 1), (1 << 8 * width) - 1]
    table = np.append(patterns, odd).astype(f"u{width}").view(jnp.dtype(dtype))
    for size in (5000, 300_000):
        x = table[RNG.integers(0, len(table), size)]
        got, small = round_trip(jnp.asarray(x), lossless=True)
        np.testing.assert_array_equal(bits_of(got), bits_of(x))
        assert small.tree["x"].meta.kind == "dictionary" and small.bits["x"] < 8.6 + 8 * 4 * 255 / size


def test_float64_under_jit():
    x = np.float64([0.1, 0.2, 0.3])[PLACES % 3]
    small = codec.compress({"x": x}, lossless=True)
    assert small.tree["x"].meta.kind == "dictionary"
    for got in (codec.decompress(small)["x"], jax.jit(codec.decompress)(small)["x"]):
        np.testing.assert_array_equal(np.asarray(got), x.astype(np.float32))


def test_it_is_taken_only_where_it_is_shorter():
    many = np.arange(3000, dtype=np.float32)
    late = np.append(np.zeros(200_000, np.float32), np.arange(300.0, dtype=np.float32))
    few = {
        "many": many,
        "late": late,  # most values are found late
        "steps": np.asarray(weights((3000,))),
    }
    kinds = {k: codec.compress({k: x}, lossless=True).tree[k] for k, x in few.items()}
    assert all(not isinstance(c, codec.Coded) or c.meta.kind == "lossless" for c in kinds.values())
    constant = codec.compress({"c": np.full(5000, 0.1, np.float32)}, lossless=True)
    assert constant.nbytes < 60
    ternary = np.float32([-0.03, 0, 0.03])[PLACES % 3]
    assert codec.compress({"w": ternary}, lossless=True).bits["w"] < entropy(ternary) + 0.02


def test_sharded_leaves_of_few_values():
    mesh = jax.make_mesh((4,), ("x",))
    x = np.float32([-0.03, 0, 0.03])[PLACES % 3].reshape(200, 300)
    placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    small = codec.compress({"w": placed}, lossless=True)
    assert {b.meta.kind for b in small.tree["w"].blocks} == {"dictionary"}
    for got in (codec.decompress(small)["w"], jax.jit(codec.decompress)(small)["w"]):
        np.testing.assert_array_equal(np.asarray(got), x)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.5, 2], "must be whole numbers"),
        ([1 << 32], "must be whole numbers from 0 to 4294967295"),
        ([], "1 to 255 numbers"),
        ([0], "has the key 2, expected less than 1"),
    ],
)
def test_dictionaries_that_cannot_be(tmp_path, values, message):
    codec.save_file({"w": np.float32([-0.03, 0, 0.03])[PLACES % 3]}, tmp_path / "x", lossless=True)
    header, meta, body = forging.taken_apart((tmp_path / "x").read_bytes())
    meta["tensors"]["w"]["params"]["values"] = values
    (tmp_path / "x").write_bytes(forging.packed(header, meta, body))
    with pytest.raises(codec.FormatError, match=message):
        codec.load_file(tmp_path / "x")
