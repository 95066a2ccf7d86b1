"""Leaves that are not coded, masks, and compressed trees in other hands: pickle, orbax."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec
from tests.codec import scaled
from tests.codec.helpers import KEY, assert_same, weights


def test_trees_keep_their_other_leaves():
    tree = {
        "w": weights((40, 50)),
        "small": jnp.ones(1023),
        "empty": jnp.zeros((0, 5)),
        "scalar": jnp.float32(3),
        "ids": jnp.arange(5000),
        "flags": np.array([True]),
        "number": 7,
        "none": None,
        "masked": optax.MaskedNode(),
    }
    small = codec.compress(tree, step=2**-8)
    assert list(small.bits) == ["w"]
    back = codec.decompress(small)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for name in ("small", "empty", "scalar", "ids", "flags", "number"):
        assert back[name] is tree[name]
    rest = sum(np.asarray(v).nbytes for k, v in tree.items() if k not in ("w", "none", "masked"))
    assert small.nbytes == small.tree["w"].nbytes + rest


def test_mask_selects():
    tree = {"a": weights((40, 50)), "b": weights((40, 50))}
    small = codec.compress(tree, step=2**-8, mask={"a": True, "b": False})
    assert list(small.bits) == ["a"] and small.tree["b"] is tree["b"]


def test_compressed_is_a_pytree_of_arrays():
    small = codec.compress({"w": weights((40, 50))}, step=2**-8)
    leaves = jax.tree.leaves(small)
    assert all(isinstance(x, np.ndarray) for x in leaves) and 4 <= len(leaves) <= 7
    again = jax.tree.map(jnp.asarray, small)
    np.testing.assert_array_equal(codec.decompress(again)["w"], codec.decompress(small)["w"])
    assert jax.tree.structure(again) == jax.tree.structure(small)


def test_the_same_tree_gives_the_same_streams():
    tree = {"a": weights((700, 1000)), "b": weights((40, 50), nu=1.5)}
    first, second = (jax.tree.leaves(codec.compress(tree, bits=4)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# Leaves that are not weights.


def module():
    return eqx.nn.MLP(8, 4, 64, 2, key=KEY)


def test_leaves_that_are_not_arrays_pass_through():
    tree = {"w": weights((40, 50)), "f": jnp.tanh, "name": "layer", "key": jax.random.key(3), "none": None}
    small = codec.compress(tree, bits=4)
    assert small.nbytes == small.tree["w"].nbytes and list(small.bits) == ["w"]
    back = codec.decompress(small)
    for name in ("f", "name", "key", "none"):
        assert back[name] is tree[name]
    model = codec.decompress(codec.compress(module(), step=2**-12))
    x = jnp.linspace(-1, 1, 8)
    np.testing.assert_allclose(model(x), module()(x), atol=1e-2)


@pytest.mark.parametrize(
    ("leaf", "what"),
    [
        (jnp.tanh, r"got .*PjitFunction"),
        ("layer", r"got 'layer' \(str\)"),
        (jax.random.key(0), "got an array of dtype key<fry>.*jax.random.key_data"),
        (np.array(["a"]), "no dtype for <U1"),
        (np.ones(3, complex), "no dtype for complex128"),
        (np.ones(3, jnp.float4_e2m1fn), "no dtype for float4_e2m1fn"),
    ],
    ids=["function", "text", "key", "texts", "complex128", "float4"],
)
def test_files_hold_arrays_only(leaf, what, tmp_path):
    tree = {"w": weights((40, 50)), "odd": [leaf]}
    for given, options in ((tree, {"step": 1.0}), (codec.compress(tree, step=1.0), {})):
        with pytest.raises(TypeError, match=f"leaf 'odd/0': .*{what}.*"):
            codec.save_file(given, tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_a_filtered_module_is_saved_and_read_into_the_whole_one(tmp_path):
    with pytest.raises(TypeError, match="leaf 'activation': .*eqx.filter"):
        codec.save_file(module(), tmp_path / "x", lossless=True)
    codec.save_file(eqx.filter(module(), eqx.is_array), tmp_path / "x", lossless=True)
    blank = jax.tree.map(lambda v: v * 0 if eqx.is_array(v) else v, module())
    back = codec.load_file(tmp_path / "x", like=blank)
    np.testing.assert_array_equal(back(jnp.ones(8)), module()(jnp.ones(8)))


def test_a_mask_that_can_be_called():
    """An Equinox module of bools is a mask, though it has ``__call__``."""
    mask = jax.tree.map(lambda v: eqx.is_array(v) and v.shape == (64, 64), module())
    small = codec.compress(module(), bits=4, mask=mask)
    assert list(small.bits) == ["layers/1/weight"]
    none = codec.compress(module(), bits=4, mask=jax.tree.map(lambda v: False, module()))
    assert not none.bits


ODD_FLOATS = [
    "float8_e8m0fnu", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e4m3b11fnuz", "float8_e3m4", "float8_e4m3",
]  # fmt: skip


@pytest.mark.parametrize("options", [{"bits": 3}, {"lossless": True}, {"rf8": True}], ids=str)
def test_floats_that_are_not_coded_are_kept(options):
    tree = {d: np.linspace(0.5, 2, 2000).astype(d) for d in ODD_FLOATS}
    small = codec.compress(tree, **options)
    assert not small.bits and small.nbytes == sum(x.nbytes for x in tree.values())
    back = codec.decompress(small)
    assert all(back[d] is tree[d] for d in tree)


def test_a_file_keeps_powers_of_two(tmp_path):
    """float8_e8m0fnu, the scales of quantized checkpoints, is the one of these that safetensors has."""
    x = np.exp2(np.arange(-40.0, 40)).astype(jnp.float8_e8m0fnu).repeat(40)
    for options in ({"bits": 3}, {"lossless": True}, {"rf8": True}):
        codec.save_file({"x": x}, tmp_path / "x", **options)
        got = codec.load_file(tmp_path / "x")["x"]
        assert got.dtype == x.dtype and np.asarray(got).tobytes() == x.tobytes()


# Numbers of 64 bits.


WIDE = {
    "seen": np.array(2**40 + 5),
    "hash": np.array([2**63 + 7, 1], np.uint64),
    "low": np.array([-(2**31) - 1]),
    "large": np.array([1e300, 1.0]),
    "tiny": np.array([1e-300, 1.0]),
}
NARROW = {
    "ids": np.arange(-3, 5),
    "edges": np.array([-(2**31), 2**31 - 1]),
    "unsigned": np.array([2**32 - 1], np.uint64),
    "double": np.array([0.1, np.inf, np.nan, -0.0]),
    "empty": np.zeros((0, 3), np.int64),
}


@pytest.mark.parametrize("with_like", [False, True])
def test_numbers_of_64_bits_are_never_changed(with_like, tmp_path):
    """Where JAX has no dtype that holds them, they stay NumPy arrays."""
    tree = WIDE | NARROW
    codec.save_file(tree, tmp_path / "x", lossless=True)
    back = codec.load_file(tmp_path / "x", like=tree if with_like else None)
    for name, x in tree.items():
        assert isinstance(back[name], np.ndarray if name in WIDE else jax.Array)
        assert back[name].dtype == (x.dtype if name in WIDE else jax.dtypes.canonicalize_dtype(x.dtype))
        want = x if name in WIDE else x.astype(back[name].dtype)
        np.testing.assert_array_equal(np.asarray(back[name]), want)
    placed = codec.load_file(tmp_path / "x", sharding=jax.devices()[1])
    assert isinstance(placed["seen"], np.ndarray) and placed["ids"].devices() == {jax.devices()[1]}
    with jax.enable_x64(True):
        for name, x in codec.load_file(tmp_path / "x").items():
            assert isinstance(x, jax.Array) and x.dtype == tree[name].dtype
            np.testing.assert_array_equal(np.asarray(x), tree[name])


# In other hands.


def shared():
    """A tree with every kind of coded leaf and some others."""
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    w = weights((48, 50))
    tree = {"w": w, "sharded": jax.device_put(w, NamedSharding(mesh, P("x"))), "b": jnp.ones(5)}
    return codec.compress(tree, bits=4), codec.compress({"w": w}, rf8=True, coder="zstd")


def test_pickle():
    for small in shared():
        back = pickle.loads(pickle.dumps(small))
        assert back.nbytes == small.nbytes and back.bits == small.bits
        want = codec.decompress(small)
        for got in (codec.decompress(back), jax.tree.map(jnp.asarray, codec.decompress(back))):
            assert_same(got, want)


def test_orbax(tmp_path):
    import orbax.checkpoint as ocp

    small, _ = shared()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", small)
        checkpointer.wait_until_finished()
        for target in (jax.tree.map(jnp.asarray, small), jax.eval_shape(lambda x: x, small)):
            back = checkpointer.restore(tmp_path / "x", target)
            assert isinstance(back, codec.Compressed) and jax.tree.structure(back) == jax.tree.structure(small)
            assert_same(codec.decompress(back), codec.decompress(small))


def test_flax_serialization():
    """Into the compressed form of other weights: what a decoder has to know is restored too."""
    other = jax.tree.map(lambda x: x[::-1] * 0.5, {"w": weights((48, 50)), "b": jnp.ones(5)})
    for small in (*shared(), scaled.tree()):
        state = serialization.to_state_dict({"step": 3, "params": small})
        assert state["params"]["w"]["words"] is small.tree["w"].words
        back = serialization.from_bytes({"step": 0, "params": small}, serialization.to_bytes(state))
        assert back["step"] == 3 and back["params"].nbytes == small.nbytes
        assert_same(codec.decompress(back["params"]), codec.decompress(small))
    plain = {"w": weights((48, 50)), "b": jnp.ones(5)}
    small = codec.compress(plain, bits=4)
    for target in (codec.compress(other, step=2**-5, centroids=True), codec.compress(other, rf8=True)):
        target = jax.eval_shape(lambda x: x, target)
        back = serialization.from_bytes(target, serialization.to_bytes(small))
        assert_same(codec.decompress(back), codec.decompress(small))
        (w,) = serialization.from_bytes([target.tree["w"]], serialization.to_bytes([small.tree["w"]]))
        assert w.meta == small.tree["w"].meta
    with pytest.raises(ValueError, match=r"an array \(48, 50\) of float32, the target \(50, 48\) of float32"):
        target = codec.compress({"w": plain["w"].T, "b": plain["b"]}, bits=4)
        serialization.from_bytes(target, serialization.to_bytes(small))
    with pytest.raises(ValueError, match="leaf 'b' is only in one of the state and its target"):
        serialization.from_bytes(codec.compress({"w": plain["w"]}, bits=4), serialization.to_bytes(small))


def test_empty_streams_are_no_leaves():
    for small in shared():
        leaves, treedef = jax.tree.flatten(small)
        assert all(np.size(x) for x in leaves)
        again = treedef.unflatten(leaves)
        for (_, a), (_, b) in zip(again.leaves(), small.leaves(), strict=True):
            for x, y in zip(getattr(a, "blocks", (a,)), getattr(b, "blocks", (b,)), strict=True):
                if isinstance(x, codec.Coded):
                    assert [s.shape for s in x.streams] == [s.shape for s in y.streams]
        assert jax.tree.map(lambda x: None, small) is not None
