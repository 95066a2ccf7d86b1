"""Levels with steps of rows and columns: what their files hold, and calibrated compression of trees."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec, masks, sensitivity
from tests.codec import forging, plain_decoder, scaled
from tests.codec.test_format import GOLDEN, digest, golden

KEY = jax.random.key(3)
PARAMS = {
    "a": {"kernel": jax.random.normal(KEY, (48, 64)), "bias": jnp.arange(64.0)},
    "half": {"kernel": jax.random.normal(KEY, (40, 32), jnp.bfloat16)},
    "stack": jax.random.laplace(KEY, (3, 32, 24)),
}


@pytest.fixture(scope="module")
def known():
    state = sensitivity.init(PARAMS, batch_axis=lambda name, x: 0 if name == "stack" else ())
    update = jax.jit(sensitivity.update)
    for i in range(6):
        keys = jax.random.split(jax.random.fold_in(KEY, i), 3)
        tree = jax.tree.map(jnp.ones_like, PARAMS)
        scale = np.broadcast_to(np.exp(np.linspace(-2, 2, 24, dtype=np.float32)), (3, 32, 24))
        tree["stack"] = jax.random.normal(keys[0], (3, 32, 24)) * scale
        tree["a"]["kernel"] = jax.random.normal(keys[1], (48, 64)) * np.repeat(
            np.linspace(0, 2, 48, dtype=np.float32)[:, None], 64, 1
        )
        tree["half"]["kernel"] = jax.random.normal(keys[2], (40, 32))
        state = update(state, tree, 16)
    return state


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_golden_file_is_read_and_written(tmp_path):
    stored = golden(2)["scaled"]
    (tmp_path / "x").write_bytes(base64.b64decode(stored["file"]))
    for held in (codec.load_file(tmp_path / "x"), plain_decoder.decode_file(tmp_path / "x")):
        assert {k: digest(v) for k, v in held.items()} == stored["held"]
    codec.save_file(scaled.tree(), tmp_path / "y")
    old, new = (forging.taken_apart((tmp_path / n).read_bytes()) for n in "xy")
    assert old[1:] == new[1:]


@pytest.mark.parametrize("coder", ["rans", "zstd"])
def test_all_decoders_give_the_levels_times_their_steps(tmp_path, coder):
    """Outliers too, and weights that are beyond the dtype."""
    levels = np.random.default_rng(0).geometric(0.3, (2, 40, 30)) - 2
    levels[0, 3, 4], levels[1, 0, 0] = 10**6, -(2**31)
    x, rows = scaled.leaf(levels, (2, 40, 30), dtype="float16", coder=coder)
    steps = np.asarray(x.steps)
    k = rows.reshape(2, 40, 1).astype(int) + steps[80:].reshape(2, 1, 30)
    sizes = np.float32(0.0123) * 2.0 ** (np.minimum(k, [[[12]], [[9]]]) / 8)
    want = np.clip(levels * sizes, -65504, 65504)
    tree = codec.Compressed({"x": x})
    got = codec.decompress(tree)["x"]
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=1e-3)
    codec.save_file(tree, tmp_path / "x")
    same(codec.load_file(tmp_path / "x")["x"], got)
    np.testing.assert_array_equal(plain_decoder.decode_file(tmp_path / "x")["x"], got)
    if coder == "rans":
        same(jax.jit(codec.decompress)(tree)["x"], got)


def test_classes_of_both_rows_and_columns_make_it_shorter():
    rng = np.random.default_rng(1)
    scale = np.exp2(rng.integers(-2, 4, 128))[:, None] * np.exp2(rng.integers(-2, 3, 256))
    x, _ = scaled.leaf(np.rint(rng.laplace(size=(1, 128, 256)) * scale), (128, 256))
    assert len(x.meta.grid.rows) > 3 and len(x.meta.grid.columns) > 3 and len(x.meta.parts) > 3
    ideal = np.mean(np.log2(2 * np.e * np.maximum(scale, 0.35)))
    assert 8 * x.nbytes / x.size < ideal + 0.2
    alike, _ = scaled.leaf(np.rint(rng.laplace(size=(1, 128, 256)) * 3), (128, 256))
    assert len(alike.meta.parts) == 1


@pytest.mark.parametrize("bits", [3.0, 5.0])
def test_bits_are_of_the_whole_tree_and_never_exceeded(tmp_path, known, bits):
    small = codec.compress(PARAMS, bits=bits, sensitivity=known)
    size = sum(x.size for x in jax.tree.leaves(PARAMS))
    assert 0.96 * bits < 8 * small.nbytes / size <= bits
    back = codec.decompress(small)
    same(back["a"]["bias"], PARAMS["a"]["bias"])
    assert back["half"]["kernel"].dtype == jnp.bfloat16
    same(jax.jit(codec.decompress)(small), back)
    codec.save_file(PARAMS, tmp_path / "x", bits=bits, sensitivity=known)
    same(codec.load_file(tmp_path / "x", like=PARAMS), back)
    plain = plain_decoder.decode_file(tmp_path / "x")
    np.testing.assert_array_equal(plain["stack"], back["stack"])


def test_a_rise_of_the_loss_is_what_predict_says(known):
    for rise in (1e-3, 1e-2):
        small = codec.compress(PARAMS, loss_rise=rise, sensitivity=known)
        stated = sum(x.meta.params.rise for _, x in small.leaves() if isinstance(x, codec.Coded))
        assert stated == pytest.approx(rise, rel=0.05)
        assert sensitivity.predict(PARAMS, codec.decompress(small), known).total < 1.5 * rise


def test_a_loss_that_is_measured_is_met(known):
    """The quadratic model is wrong by a factor of three here, and the loss has a part of its own."""
    seen = []

    def loss(params):
        seen.append(params)
        return 2.5 + 3 * sensitivity.predict(PARAMS, params, known).total

    small = codec.compress(PARAMS, loss_rise=0.01, sensitivity=known, loss=loss)
    assert loss(codec.decompress(small)) == pytest.approx(2.51, abs=0.0006)
    assert 3 <= len(seen) <= 7
    with pytest.raises(ValueError, match="the loss after rounding is nan"):
        codec.compress(PARAMS, loss_rise=0.01, sensitivity=known, loss=lambda p: p["stack"].sum() * jnp.nan)
    with pytest.raises(ValueError, match="loss belongs to loss_rise"):
        codec.compress(PARAMS, bits=4, sensitivity=known, loss=loss)


@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("y", "x")], ids=str)
def test_sharded_leaves_are_coded_shard_by_shard(known, spec, tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = NamedSharding(mesh, spec)
    params = PARAMS | {"a": {"kernel": jax.device_put(PARAMS["a"]["kernel"], place)}}
    small = codec.compress(params, loss_rise=1e-2, sensitivity=known)
    assert isinstance(small.tree["a"]["kernel"], codec.Blocks)
    got = codec.decompress(small)["a"]["kernel"]
    assert got.sharding == place
    want = codec.decompress(codec.compress(PARAMS, loss_rise=1e-2, sensitivity=known))
    same(np.asarray(got), want["a"]["kernel"])
    codec.save_file(small, tmp_path / "x")
    same(codec.load_file(tmp_path / "x")["a"]["kernel"], want["a"]["kernel"])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"bits": 4, "loss_rise": 0.1}, "give one of bits and loss_rise, got 4 and 0.1"),
        ({}, "give one of bits and loss_rise"),
        ({"step": 0.1}, "give bits or loss_rise, not step"),
        ({"bits": 4, "per": "leaf"}, "not per"),
        ({"bits": 4, "dead_zone": 0.1}, "not dead_zone"),
        ({"loss_rise": 0.0}, "loss_rise must be positive"),
        ({"loss_rise": -1.0}, "loss_rise must be positive"),
        ({"loss_rise": 1e9}, "cannot be reached"),
        ({"bits": 0.4}, "bits cannot be met|cannot be reached"),
    ],
)
def test_what_cannot_be_asked_of_a_sensitivity_is_refused(known, given, match):
    with pytest.raises(ValueError, match=match):
        codec.compress(PARAMS, sensitivity=known, **given)


def test_leaves_that_the_sensitivity_does_not_know_are_named(known):
    with pytest.raises(ValueError, match="loss_rise needs sensitivity="):
        codec.compress(PARAMS, loss_rise=0.1)
    with pytest.raises(ValueError, match="'b/kernel' is not in the sensitivity"):
        codec.compress({"b": {"kernel": jnp.ones((40, 40))}}, bits=4, sensitivity=known)
    with pytest.raises(ValueError, match=r"'stack' has shape \(32, 40\) in params, expected \(3, 32, 24\)"):
        codec.compress({"stack": jnp.ones((32, 40))}, bits=4, sensitivity=known)
    small = codec.compress({"a": {"bias": jnp.ones(64)}}, bits=40, sensitivity=known)  # nothing to round
    assert not small.bits


def test_a_mask_says_what_is_rounded(known):
    mask = {"a": True, "half": False, "stack": False}
    small = codec.compress(PARAMS, bits=4, sensitivity=known, mask=lambda p: mask)
    assert list(small.bits) == ["a/kernel"]
    small = codec.compress(PARAMS, bits=4, sensitivity=known, mask=masks.kernels)
    assert set(small.bits) == {"a/kernel", "half/kernel", "stack"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["params"].update(limits=[]), "limits must be whole numbers"),
        (lambda t: t["params"].update(limits=[255]), "limits must be whole numbers from -256 to 254"),
        (lambda t: t["params"].update(rows=7), "rows 7 of 1 matrices do not fit the shape"),
        (lambda t: t["params"].update(step=2.0**-100), "step must be a number from 2"),
        (lambda t: t["params"].update(order=[0, 0]), "order must list the axes"),
        (lambda t: t["params"].update(rise=-1), "rise must be a number"),
        (lambda t: t["grid"].update(rows=[60]), "a grid must have a part for every pair"),
        (lambda t: t["grid"].update(parts=[k + 1 for k in t["grid"]["parts"]]), "without weights"),
        (lambda t: t["grid"].update(rows=t["grid"]["columns"], columns=t["grid"]["rows"]), "expected"),
        (lambda t: t.pop("grid"), "its parts do not fill its shape"),
        (lambda t: t.update(axis=0), "an axis and a grid"),
        (lambda t: t["sections"].pop("steps"), "0 bytes of steps"),
        (lambda t: t["parts"].update(size=[6000]), "the grid says the sizes"),
    ],
)
def test_what_a_description_must_not_say(tmp_path, change, message):
    codec.save_file(scaled.tree(), tmp_path / "x")
    header, meta, body = forging.taken_apart((tmp_path / "x").read_bytes())
    change(meta["tensors"]["w"])
    (tmp_path / "x").write_bytes(forging.packed(header, meta, body))
    with pytest.raises(codec.FormatError, match=f"tensor 'w': .*{message}"):
        codec.load_file(tmp_path / "x")


if __name__ == "__main__":  # writes the golden file anew: a new version of the format
    import tempfile

    path = tempfile.mktemp()
    codec.save_file(scaled.tree(), path)
    stored = json.loads((GOLDEN / "version2.json").read_text())
    held = {k: digest(v) for k, v in codec.load_file(path).items()}
    with open(path, "rb") as f:
        stored["scaled"] = {"file": base64.b64encode(f.read()).decode(), "held": held}
    (GOLDEN / "version2.json").write_text(json.dumps(stored, indent=1))
