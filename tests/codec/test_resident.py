"""codec.resident: what becomes of every kind of leaf, and that its weights are those that decompress gives."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec, rf8, sensitivity
from ggjax.codec.serving import _pieces

R = np.random.default_rng(3)


def laplace(*shape, scale=0.05):
    return jnp.asarray(R.laplace(size=shape) * scale, jnp.float32)


TREE = {
    "dense": {"kernel": laplace(128, 96), "bias": laplace(96)},
    "embed": {"embedding": laplace(300, 32)},
    "attention": {"query": {"kernel": laplace(32, 4, 16)}, "out": {"kernel": laplace(4, 16, 32)}},
    "steps": jnp.array(7),
}


def assert_close(small, tree, rtol=3e-7):
    for (path, q), (_, w) in zip(leaves_of(small), leaves_of(tree), strict=True):
        if isinstance(q, codec.LevelArray):
            assert q.dtype == w.dtype, path
            q = q.decode()
        np.testing.assert_allclose(np.asarray(q), np.asarray(w), rtol=rtol, err_msg=str(path))


def leaves_of(tree):
    small = (codec.LevelArray, rf8.RF8Array)
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, small))


@pytest.mark.parametrize("step", [0.05, 0.003, 0.0001, 1e-6])
def test_levels_of_one_step(step):
    coded = codec.compress(TREE, step=step)
    small = codec.resident(coded)
    assert_close(small, codec.decompress(coded), rtol=0)
    kernel, table = small["dense"]["kernel"], small["embed"]["embedding"]
    if step == 1e-6:  # levels of more than 16 bits
        assert isinstance(kernel, jax.Array)
        return
    assert kernel.is_packed == (step == 0.05)
    assert table.levels.dtype == (np.int8 if step == 0.05 else np.int16)  # nothing beside them
    np.testing.assert_array_equal(table[jnp.array([3, 5])].decode(), table.decode()[jnp.array([3, 5])])
    assert isinstance(small["dense"]["bias"], jax.Array)
    for part, axis in (("query", -3), ("out", -2)):  # those that are summed over
        assert small["attention"][part]["kernel"].axis == axis


def test_weights_beyond_are_kept_beside_the_levels():
    w = laplace(256, 64).at[::100, 3].set(5.0)
    coded = codec.compress({"kernel": w}, step=0.05)
    small = codec.resident(coded)["kernel"]
    assert small.is_packed and 0 < small.patches.rows.shape[0] <= 4
    np.testing.assert_array_equal(small.decode(), codec.decompress(coded)["kernel"])
    x = laplace(5, 256)
    want = np.asarray(x, np.float64) @ np.asarray(small.decode(), np.float64)
    np.testing.assert_allclose(codec.dot(x, small), want, atol=1e-6 * np.abs(want).max())


def test_what_is_on_no_levels():
    tree = {"w": TREE["dense"]["kernel"], "half": TREE["dense"]["kernel"].astype(jnp.bfloat16)}
    for options in ({"lossless": True}, {"step": 0.02, "centroids": True}):
        coded = codec.compress(tree, **options)
        small = codec.resident(coded)
        assert all(isinstance(x, jax.Array) for x in small.values())
        assert_close(small, codec.decompress(coded), rtol=0)
    small = codec.resident(codec.compress(tree | {"stack": laplace(3, 64, 32)}, rf8=True), batch_axis=0)
    assert all(isinstance(x, rf8.RF8Array) for x in small.values())
    assert small["stack"].exponents.shape == (3, 1, 1)


@pytest.mark.parametrize("spec", [P("x", "y"), P(None, ("x", "y"))], ids=str)
def test_sharded_leaves_stay_sharded(spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    w = jax.device_put(laplace(256, 64).at[3, 5].set(3.0), NamedSharding(mesh, spec))
    coded = codec.compress({"w": w, "b": laplace(8)}, step=0.07)
    small = codec.resident(coded)["w"]
    assert small.is_packed and small.patches is not None and small.sharding == w.sharding
    np.testing.assert_array_equal(small.decode(), codec.decompress(coded)["w"])
    x = laplace(3, 256)
    want = np.asarray(x, np.float64) @ np.asarray(small.decode(), np.float64)
    np.testing.assert_allclose(codec.dot(x, small), want, atol=1e-6 * np.abs(want).max())
    as_rf8 = codec.compress({"w": w}, rf8=True)  # shards have exponents of their own
    np.testing.assert_array_equal(codec.resident(as_rf8)["w"], codec.decompress(as_rf8)["w"])


def test_sharded_leaves_of_calibrated_rounding():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    w = jax.device_put(laplace(64, 128), NamedSharding(mesh, P("x", "y")))
    known = sensitivity.init({"kernel": w})
    gradient = laplace(64, 128) * jnp.exp(jnp.linspace(-2, 2, 64))[:, None]
    for _ in range(2):
        known = sensitivity.update(known, {"kernel": gradient})
    rounded = sensitivity.round_to({"kernel": w}, known, bits=4)
    levels = {n: dataclasses.replace(q, limit=jnp.full_like(q.limit, 3)) for n, q in rounded.levels.items()}
    coded = codec.compress(rounded._replace(levels=levels))
    small = codec.resident(coded)["kernel"]
    assert isinstance(small, codec.LevelArray) and small.limit is not None and small.sharding == w.sharding
    np.testing.assert_allclose(small.decode(), levels["kernel"].values, rtol=3e-7)


MODEL = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(10)])


@pytest.mark.parametrize("limit", [None, 0])
def test_what_calibrated_rounding_makes(limit):
    x = jax.random.normal(jax.random.key(0), (64, 48)) * jnp.exp(jnp.linspace(-4, 3, 48))[None]
    params = MODEL.init(jax.random.key(1), x)
    known = sensitivity.estimate(MODEL.apply, params, [x], key=jax.random.key(2))
    rounded = sensitivity.round_to(params, known, bits=4)
    if limit is not None:  # as at few bits
        cut = {
            n: dataclasses.replace(q, limit=jnp.full_like(q.limit, limit)) for n, q in rounded.levels.items()
        }
        rounded = rounded._replace(levels=cut)
    coded = codec.compress(rounded)
    of_coded, of_rounded = codec.resident(coded), codec.resident(rounded)
    of_levels = codec.resident(rounded.levels)
    for name, q in rounded.levels.items():
        found = [of_levels[name]]
        for tree in (of_coded, of_rounded):
            *path, last = name.split("/")
            for part in path:
                tree = tree[part]
            found.append(tree[last])
        for small in found:
            if isinstance(small, codec.LevelArray):  # not where coding did not pay
                np.testing.assert_allclose(small.decode(), q.values, rtol=3e-7)
                assert (small.limit is not None) == limited(q)
    assert any(map(limited, rounded.levels.values())) == (limit is not None)
    assert isinstance(of_rounded["params"]["layers_0"]["bias"], jax.Array)
    x = x[:3]
    want = np.asarray(x, np.float64) @ np.asarray(rounded.levels["params/layers_0/kernel"].values, np.float64)
    got = codec.dot(x, of_rounded["params"]["layers_0"]["kernel"])
    np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


def limited(q):
    """Whether a limit makes the step of any level but 0 smaller."""
    k = np.asarray(q.row_steps, int)[:, :, None] + np.asarray(q.column_steps, int)[:, None]
    return bool(((k > np.asarray(q.limit)[:, None, None]) & (np.asarray(q.levels) != 0)).any())


def test_stacked_layers_can_be_scanned():
    tree = {"kernel": laplace(3, 64, 64), "other": laplace(64, 64)}
    small = codec.resident(codec.compress(tree, step=0.02), batch_axis=0)
    assert small["kernel"].column_steps.shape == (3, 1, 1) and small["other"].column_steps.shape == (1, 1)
    y, _ = jax.lax.scan(lambda x, w: (codec.dot(x, w), None), x := laplace(2, 64), small["kernel"])
    for w in np.asarray(small["kernel"].decode(), np.float64):
        x = np.asarray(x, np.float64) @ w
    np.testing.assert_allclose(y, x, atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_to_the_nearest(bits):
    small = codec.resident(TREE, bits=bits)
    most = 2 ** (bits - 1) - 1
    for path, q in leaves_of(small):
        name = jax.tree_util.keystr(path)
        if "bias" in name or "steps" in name:
            assert not isinstance(q, codec.LevelArray)
            continue
        w = np.asarray(
            TREE[path[0].key][path[1].key] if len(path) == 2 else TREE["attention"][path[1].key]["kernel"]
        )
        size = np.abs(w).max({-2: -2, -3: 0}[q.axis] if "embed" not in name else 1, keepdims=True)
        own = 127 if "embed" in name else most
        if path[1].key == "out":
            size = np.abs(w).max((0, 1), keepdims=True)
        assert (np.abs(np.asarray(q.decode()) - w) <= size / own * 0.5001).all(), name
        assert q.is_packed == (bits == 4 and "embed" not in name)


def test_rounding_takes_what_the_mask_tells():
    tree = {"u": laplace(8, 8), "v": laplace(8, 8), "zero": jnp.zeros((4, 4))}
    small = codec.resident(tree, bits=8, mask={"u": True, "v": False, "zero": True})
    assert isinstance(small["u"], codec.LevelArray) and small["v"] is tree["v"]
    np.testing.assert_array_equal(small["zero"].decode(), tree["zero"])
    again = codec.resident(small, bits=4)
    assert again["u"] is small["u"] and again["v"].is_packed


def test_messages():
    with pytest.raises(ValueError, match="leaf 'a/kernel': expected finite weights, got nan"):
        codec.resident({"a": {"kernel": jnp.full((4, 4), jnp.nan)}}, bits=8)
    with pytest.raises(ValueError, match="bits must be None, 4, 8 or 12, got 3"):
        codec.resident({}, bits=3)
    with pytest.raises(ValueError, match='mask must be "kernels"'):
        codec.resident(TREE, bits=8, mask="biases")


def test_no_float_copy_of_levels(monkeypatch):
    """Coded levels come as 16-bit numbers, and no decoder makes weights of them."""
    seen = []
    original = _pieces.of_coded

    def watched(coded):
        found = original(coded)
        seen.extend(p.levels.dtype for p in found)
        return found

    monkeypatch.setattr(_pieces, "of_coded", watched)
    monkeypatch.setattr(codec._decode, "weights_of", None)
    codec.resident(codec.compress({"w": TREE["dense"]["kernel"]}, step=0.01))
    assert seen == [np.int16]


def test_a_coded_array_is_decoded_inside_the_step():
    w = laplace(128, 96)
    coded = codec.compress({"w": w}, lossless=True).tree["w"]
    x = laplace(2, 128)
    np.testing.assert_array_equal(jax.jit(codec.dot)(x, coded), jax.jit(codec.dot)(x, w))
    np.testing.assert_array_equal(codec.einsum("bk,kn->nb", x, coded), codec.einsum("bk,kn->nb", x, w))
    as_rf8 = codec.compress({"w": w}, rf8=True).tree["w"]
    np.testing.assert_array_equal(codec.dot(x, as_rf8), rf8.dot(x, rf8.encode(w)))
    assert dataclasses.is_dataclass(coded)
