"""Pruned weights: keys that very many weights have take a token of their own and no raw bits."""

import pathlib
import pickle
import tempfile
from unittest import mock

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ggjax import codec
from ggjax.codec.entropy import _tokens
from tests.codec import plain_decoder, scaled
from tests.codec.helpers import bits_of, entropy, round_trip

DTYPES = ("float32", "bfloat16", "float16")
PATTERNS = {
    "float32": [0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000, 1, 0x807FFFFF, 0x00800000],
    "bfloat16": [0x7F81, 0xFFC1, 0x7F80, 0xFF80, 1, 0x807F, 0x0080],
    "float16": [0x7C01, 0xFE55, 0x7C00, 0xFC00, 1, 0x83FF, 0x0400],
}
"""NaN of several payloads, infinities, subnormal numbers and the smallest normal one."""


def pruned(shape, dtype, share, *, seed=0, signed=True, odd=True):
    """Weights of which a share is 0, of either sign."""
    rng = np.random.default_rng(seed)
    x = (0.05 * rng.standard_t(6, shape)).astype(jnp.dtype(dtype))
    zero = rng.choice([0.0, -0.0 if signed else 0.0], shape).astype(x.dtype)
    x = np.where(rng.random(shape) < share, zero, x)
    if odd:
        x.reshape(-1)[: len(PATTERNS[dtype])] = np.array(PATTERNS[dtype]).astype(bits_of(x).dtype).view(x.dtype)
    return x


def magnitude_of(x):
    """The bits without the sign: a comparison with 0 warns of signaling NaN."""
    return bits_of(x) << 1


def without_atoms():
    return mock.patch.object(_tokens, "ATOM_SHARE", 2)


def atoms_of(small):
    return [p.atoms for p in small.tree["x"].meta.parts]


@pytest.mark.parametrize(
    ("dtype", "shape", "share"),
    [
        ("float32", (5000,), 0.8),
        ("bfloat16", (5000,), 0.8),
        ("float16", (5000,), 0.8),
        ("float32", (2, 600, 500), 0.5),
        ("bfloat16", (300, 400), 0.95),
    ],
    ids=str,
)
def test_zeros_take_their_entropy_and_every_bit_comes_back(dtype, shape, share):
    for signed in (False, True):
        x = pruned(shape, dtype, share, signed=signed)
        got, small = round_trip(jnp.asarray(x), lossless=True)
        np.testing.assert_array_equal(bits_of(got), bits_of(x))
        assert {frozenset(a) for a in atoms_of(small)} == {frozenset({0, 1} if signed else {0})}
        is_zero = np.where(magnitude_of(x) == 0, 1 + np.signbit(x), 0)
        rest = codec.compress({"x": x[is_zero == 0]}, lossless=True)
        ideal = entropy(is_zero) + 8 * rest.nbytes / x.size
        assert 8 * small.nbytes / x.size < ideal + 0.02 + 1000 / x.size
        with without_atoms():
            assert codec.compress({"x": x}, lossless=True).nbytes > 1.3 * small.nbytes


@given(
    st.sampled_from(DTYPES),
    st.sampled_from([(1024,), (37, 41), (3, 20, 30), (9000,), (40, 2000), (300_000,)]),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 2**31),
)
@example("float16", (40, 2000), 0.86, True, 0)  # parts with atoms, and parts with exceptions and none
@settings(max_examples=15, deadline=None)
def test_any_mask_comes_back_and_takes_no_more_than_before(dtype, shape, share, signed, seed):
    x = pruned(shape, dtype, share, seed=seed, signed=signed)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x"
        size = codec.save_file({"x": x}, path, lossless=True)
        for held in (codec.load_file(path)["x"], plain_decoder.decode_file(path)["x"]):
            np.testing.assert_array_equal(bits_of(held), bits_of(x))
        with without_atoms():
            assert size <= 1.002 * codec.save_file({"x": x}, path, lossless=True) + 32


@given(st.sampled_from(["rans", "zstd"]), st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_levels_of_any_few_that_are_frequent(coder, number, seed):
    """Frequent keys of any kind, and levels that are not: clipped weights, say."""
    rng = np.random.default_rng(seed)
    own = rng.integers(-(10**6), 10**6, number)
    x = np.where(rng.random(3000) < rng.random(), rng.choice(own, 3000), rng.integers(-(10**6), 10**6, 3000))
    small = codec.compress({"x": x.astype(np.float32)}, step=1.0, coder=coder)
    np.testing.assert_array_equal(np.asarray(codec.decompress(small)["x"]), x)
    with without_atoms():
        assert small.nbytes <= codec.compress({"x": x.astype(np.float32)}, step=1.0, coder=coder).nbytes + 64


def test_fine_steps_of_pruned_weights_do_not_pay_for_the_zeros():
    x = pruned((300, 400), "float32", 0.8, odd=False)
    got, small = round_trip(jnp.asarray(x), step=1e-5)
    assert np.abs(got - x).max() <= 0.51e-5 and {0} in map(set, atoms_of(small))
    level = np.rint(x / np.float32(1e-5))
    assert 8 * small.nbytes / x.size < entropy(level == 0) + 0.2 * np.log2(np.abs(level).max())
    for bits in (3, 4):
        assert bits - 0.05 < codec.compress({"x": x}, bits=bits).bits["x"] <= bits


def test_levels_with_steps_of_rows_and_columns(tmp_path):
    tree = scaled.pruned()
    assert all(p.atoms == (0,) for p in tree.tree["w"].meta.parts)
    want = codec.decompress(tree)["w"]
    assert 0.25 < (np.asarray(want) != 0).mean() < 0.35
    np.testing.assert_array_equal(jax.jit(codec.decompress)(tree)["w"], want)
    codec.save_file(tree, tmp_path / "x")
    np.testing.assert_array_equal(plain_decoder.decode_file(tmp_path / "x")["w"], want)


def test_rows_that_end_in_zero_bits_and_columns_of_classes(tmp_path):
    x = pruned((512, 700), "float32", 0.6, odd=False)
    x[::3] = x[::3].astype(np.float16)
    wide = pruned((512, 700), "bfloat16", 0.6, odd=False)
    wide *= np.exp2(np.arange(700) % 5 * 6).astype(wide.dtype)
    for y, axis in ((x, 0), (wide, -1)):
        got, small = round_trip(jnp.asarray(y), lossless=True)
        np.testing.assert_array_equal(bits_of(got), bits_of(y))
        assert small.tree["x"].meta.axis == axis and all(atoms_of(small))
        codec.save_file(small, tmp_path / "x")
        np.testing.assert_array_equal(bits_of(plain_decoder.decode_file(tmp_path / "x")["x"]), bits_of(y))


def test_small_leaves_that_stand_together(tmp_path):
    tree = {f"l{i}": pruned((600 + i,), "float32", 0.8, seed=i, signed=False) for i in range(20)}
    size = codec.save_file(tree, tmp_path / "x", lossless=True)
    assert 8 * size / sum(x.size for x in tree.values()) < 9
    for held in (codec.load_file(tmp_path / "x"), plain_decoder.decode_file(tmp_path / "x")):
        assert all(np.array_equal(bits_of(held[n]), bits_of(x)) for n, x in tree.items())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_pruned_weights_of_few_bits_are_in_a_dictionary(dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=30_000) * 9 * (rng.random(30_000) < 0.2)).astype(jnp.dtype(dtype))
    small = codec.compress({"x": x}, lossless=True)
    assert small.tree["x"].meta.kind == "dictionary" and small.bits["x"] < entropy(bits_of(x)) + 0.15


def test_sharded_leaves(tmp_path):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = pruned((80, 60), "bfloat16", 0.8)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    small = codec.compress({"w": jax.device_put(x, place)}, lossless=True)
    assert all(b.meta.binned for b in small.tree["w"].blocks)
    codec.save_file(small, tmp_path / "x")
    every = codec.decompress(small), jax.jit(codec.decompress)(small), codec.load_file(tmp_path / "x")
    assert every[0]["w"].sharding == place
    for got in every:
        np.testing.assert_array_equal(bits_of(got["w"]), bits_of(x))


@pytest.mark.parametrize("coder", ["rans", "zstd"])
def test_trees_that_are_carried_elsewhere(coder):
    x = pruned((5000,), "float32", 0.8)
    small = codec.compress({"x": x}, lossless=True, coder=coder)
    state = flax.serialization.msgpack_restore(flax.serialization.to_bytes(small))
    for again in (pickle.loads(pickle.dumps(small)), flax.serialization.from_state_dict(small, state)):
        assert again.tree["x"].meta == small.tree["x"].meta
        np.testing.assert_array_equal(bits_of(codec.decompress(again)["x"]), bits_of(x))
