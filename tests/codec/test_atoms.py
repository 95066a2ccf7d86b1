"""Pruned weights: keys that very many weights have take a token of their own and no raw bits."""

import base64
import functools
import hashlib
import json
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
from ggjax.codec.container import _body
from ggjax.codec.entropy import _tokens
from tests.codec import forging, plain_decoder, scaled
from tests.codec.helpers import bits_of, entropy, round_trip
from tests.codec.test_format import GOLDEN, digest, golden

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


# Files.


def golden_tree():
    """Weights that are pruned by a product with a mask, so that zeros are of either sign, and by a choice."""
    i = np.arange(3000)
    w = (((i * 7919) % 4096 - 2048) ** 3 / 2.0**33).astype(np.float32)
    kept = (i * 7919) % 1013 % 10 < 3
    return {"w": (w * kept).reshape(50, 60), "h": np.where(kept, w, 0).astype(jnp.bfloat16)}


def large_tree():
    """Several chunks, and rows of several scales."""
    w = golden_tree()["w"].reshape(-1)
    rows = w.reshape(30, 100) * 2.0 ** (np.arange(30) % 4 * 5)[:, None].astype(np.float32)
    return {"long": np.tile(w, 100), "rows": np.tile(rows, (40, 3))}


OPTIONS = {"atoms": {"lossless": True}, "atoms step": {"step": 2.0**-16}}
LARGE = {"atoms": "cad1c4403de8204a", "atoms step": "394a0e1e21753d33"}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_golden_file_is_read_and_written(tmp_path, name):
    stored = golden(2)[name]
    (tmp_path / "x").write_bytes(base64.b64decode(stored["file"]))
    for held in (codec.load_file(tmp_path / "x"), plain_decoder.decode_file(tmp_path / "x")):
        assert {k: digest(v) for k, v in held.items()} == stored["held"]
    codec.save_file(golden_tree(), tmp_path / "y", **OPTIONS[name])
    old, new = (forging.taken_apart((tmp_path / n).read_bytes()) for n in "xy")
    assert old[1:] == new[1:]
    assert all(t["needs"] == ["atoms"] for n, t in new[1]["tensors"].items() if n == "w" or name == "atoms")
    assert hash_of_large(tmp_path / "z", name) == LARGE[name]


def hash_of_large(path, name):
    codec.save_file(large_tree(), path, **OPTIONS[name])
    _, meta, data = forging.taken_apart(path.read_bytes())
    assert len(meta["tensors"]["long"]["binned"]) == 2 and len(meta["tensors"]["rows"]["parts"]["atoms"]) > 1
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode() + data).hexdigest()[:16]


@functools.cache
def one_file(folder, coder="rans"):
    """The bytes of a file of a pruned leaf, in which every part has raw bits, and of another leaf."""
    tree = {"w": pruned((280_000,), "bfloat16", 0.9), "v": np.linspace(0, 1, 2000, dtype=np.float32)}
    codec.save_file(tree, folder / "x", lossless=True, coder=coder)
    return (folder / "x").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("atoms")


def test_a_reader_that_does_not_know_atoms_names_the_tensor(tmp_path, folder, monkeypatch):
    (tmp_path / "x").write_bytes(one_file(folder))
    monkeypatch.setattr(_body, "FEATURES", frozenset())
    with pytest.raises(
        codec.FormatError, match="tensor 'w': needs 'atoms', which this version of ggjax does not"
    ):
        codec.load_file(tmp_path / "x")
    assert codec.load_file(tmp_path / "x", mask=lambda n: n == "v")["v"].shape == (2000,)


def resized(t, number):
    """Says of every chunk that it has so many tokens of bins more, in bytes that lie within the chunk."""
    t["binned"] = [n + number for n in t["binned"]]


@pytest.mark.parametrize("coder", ["rans", "zstd"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["binned"].append(0), "binned tokens of 3 chunks, expected 2"),
        (lambda t: t["binned"].pop(), "binned tokens of 1 chunks, expected 2"),
        (lambda t: t["binned"].__setitem__(0, -1), "binned must be a list of numbers"),
        (lambda t: t.update(binned=7), "binned must be a list of numbers"),
        (lambda t: t["binned"].__setitem__(0, (1 << 18) + 1), "262145 binned tokens, expected up to 262144"),
        (lambda t: t["binned"].__setitem__(0, 1 << 18), "cannot hold 262144 tokens"),
        (lambda t: t["binned"].__setitem__(1, t["binned"][1] ^ 1), "tokens of bins, expected"),
        (lambda t: t["binned"].__setitem__(0, t["binned"][0] - 999), "words, its lanes|of bins|frame|Z|unused"),
        (lambda t: resized(t, 16), "words, its lanes|of bins, expected|Z|frame|unused data"),
        (lambda t: t.pop("binned"), "atoms need a list of them, a list of binned tokens, and to be needed"),
        (lambda t: t.pop("needs"), "atoms need a list of them"),
        (lambda t: t["parts"].pop("atoms"), "atoms need a list of them"),
        (lambda t: t["parts"].update(atoms=[]), "parts must be lists"),
        (lambda t: t["parts"].update(atoms=[[0], [1]]), "lists of parts of different lengths|do not fill"),
        (lambda t: t["parts"].update(atoms=[0]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[0, 0]]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[0.5]]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[1 << 31]]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[list(range(255))]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[0, 1 << 16]]), "an atom is no key that a weight has"),
        (lambda t: t["parts"].update(atoms=[[0, -1]]), "an atom is no key that a weight has"),
        (lambda t: t["parts"].update(atoms=[[0]]), "of bins, expected"),
        (lambda t: t["parts"].update(atoms=[[0, 1, 2]]), "of bins, expected"),
    ],
)  # fmt: skip
def test_what_a_description_must_not_say(tmp_path, folder, coder, change, message):
    header, meta, body = forging.taken_apart(one_file(folder, coder))
    change(meta["tensors"]["w"])
    forging.fix_pieces(header, meta, body)
    (tmp_path / "x").write_bytes(forging.packed(header, meta, body))
    for read in (codec.load_file, codec.verify_file):
        with pytest.raises(codec.FormatError, match=f"tensor 'w'.*({message})"):
            read(tmp_path / "x")


if __name__ == "__main__":  # writes the golden files anew: a new form of them
    path = pathlib.Path(tempfile.mktemp())
    stored = json.loads((GOLDEN / "version2.json").read_text())
    for name, options in OPTIONS.items():
        codec.save_file(golden_tree(), path, **options)
        held = {k: digest(v) for k, v in codec.load_file(path).items()}
        stored[name] = {"file": base64.b64encode(path.read_bytes()).decode(), "held": held}
        print(name, hash_of_large(path, name))
    (GOLDEN / "version2.json").write_text(json.dumps(stored, indent=1))
