"""Compressed trees: round trips, sizes against the entropy, and the parts they are made of."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax import codec, gennorm
from ggjax.codec import _encode
from ggjax.codec.entropy import _models, _planes, _tokens

KEY = jax.random.key(0)


def weights(size=(300, 400), nu=0.8, scale=0.05, dtype=jnp.float32):
    return gennorm.sample(KEY, nu, size, dtype, scale=scale)


def bits_of(x):
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def entropy(q):
    p = np.unique(q, return_counts=True)[1] / np.size(q)
    return float(-(p * np.log2(p)).sum())


def round_trip(x, **options):
    """The decoded array, once on the host and once under jit, which must agree."""
    small = codec.compress({"x": x}, **options)
    host = codec.decompress(small)["x"]
    traced = jax.jit(codec.decompress)(small)["x"]
    assert host.dtype == traced.dtype == x.dtype and host.shape == traced.shape == x.shape
    np.testing.assert_array_equal(bits_of(host), bits_of(traced))
    return np.asarray(host), small


# The pieces.


@given(hnp.arrays(np.int64, 256, elements=st.integers(0, 10**12)))
@example(np.zeros(256, np.int64))
@example(np.eye(256, dtype=np.int64)[7])
@example(np.where(np.arange(256) == 3, 10**12, 1))
@settings(max_examples=100, deadline=None)
def test_frequencies_sum_to_the_total_and_pack(counts):
    table = _models.frequencies(counts)
    assert table.sum() == 2**14 and (table[counts > 0] > 0).all()
    if counts.any():
        assert not table[counts == 0].any()
    np.testing.assert_array_equal(_models.unpack(_models.pack(table)), table)


def test_frequencies_cost_little():
    law = np.exp(-np.abs(np.arange(256) - 128) / 14)
    counts = np.random.default_rng(0).multinomial(10**6, law / law.sum())
    p = counts / counts.sum()
    ideal = -(p[p > 0] * np.log2(p[p > 0])).sum()
    assert _models.cost_bits(counts, _models.frequencies(counts)) / 10**6 < ideal * 1.001


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00",
        b"\x05\x04\x00\xff",
        b"\x00\x00\x0f\xff",
        b"\x00\xff\x00" + b"\x00" * 40,
        b"a" * 5000,
    ],
)
def test_bad_tables_are_refused(data):
    with pytest.raises(ValueError, match="table"):
        _models.unpack(data)


@given(st.integers(0, 31), st.integers(0, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_planes_round_trip_in_numpy_and_jax(width, n, seed):
    n = _planes.padded(n)
    numbers = np.random.default_rng(seed).integers(0, 1 << width, n, dtype=np.uint32)
    if width == 0:
        return
    data = _planes.pack(numbers, width)
    assert data.nbytes == _planes.nbytes(n, width)
    np.testing.assert_array_equal(_planes.unpack(data, n, width), numbers)
    np.testing.assert_array_equal(np.asarray(_planes.pack(jnp.asarray(numbers), width)), data)
    np.testing.assert_array_equal(np.asarray(_planes.unpack(jnp.asarray(data), n, width)), numbers)


@given(
    hnp.arrays(np.uint32, st.integers(1, 300), elements=st.integers(0, 2**32 - 1)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 31),
)
@settings(max_examples=60, deadline=None)
def test_tokens_and_keys(keys, base, shift):
    token, raw = (np.asarray(a) for a in _tokens.split(jnp.asarray(keys), jnp.uint32(base), jnp.uint32(shift)))
    back = np.asarray(_tokens.join(jnp.asarray(token), jnp.asarray(raw), jnp.uint32(base), jnp.uint32(shift)))
    inside = ((keys.astype(np.int64) - base) % 2**32) >> shift < 255
    np.testing.assert_array_equal(token > 0, inside)
    np.testing.assert_array_equal(back[inside], keys[inside])
    assert (raw < max(1 << shift, 1)).all()


def scalar_rans(tokens, table):
    """One lane in plain Python integers: (state, words)."""
    start = np.cumsum(table.astype(int)) - table
    x, words = 1 << 16, []
    for t in tokens[::-1].tolist():
        f, s = int(table[t]), int(start[t])
        if x >= f << 18:
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // f << 14) + s + x % f
    return x, words[::-1]


@pytest.mark.parametrize("kind", ["one", "two", "rare", "flat", "peaked"])
def test_lanes_are_those_of_integer_rans(kind):
    rng = np.random.default_rng(3)
    tokens = {
        "one": np.full(5000, 9),
        "two": rng.integers(0, 2, 5000) * 255,
        "rare": np.where(np.arange(5000) % 4999 == 7, 3, 200),
        "flat": rng.integers(0, 256, 5000),
        "peaked": np.clip(rng.laplace(size=5000) * 3 + 128, 0, 255),
    }[kind].astype(np.uint8)
    table = _models.frequencies(np.bincount(tokens, minlength=256))
    ((states, counts, words),) = _encode.encode_chunks([(tokens, table)])
    (state, want) = scalar_rans(tokens, table)
    assert states.tolist() == [state] and counts.tolist() == [len(want)] and words.tolist() == want


# Round trips.


@pytest.mark.parametrize("shape", [(1024,), (5000,), (3, 70000), (700, 1000), (2, 3, 4, 5, 60)])
@pytest.mark.parametrize("step", [2.0**-8, 0.013, 2.0**-16])
def test_uniform_is_round_half_even(shape, step):
    x = weights(shape)
    got, _ = round_trip(x, step=step)
    exact = np.asarray(x, np.float64) / np.float32(step)
    level = np.rint(np.asarray(x) / np.float32(step))
    near = np.abs(got / np.float32(step) - level) < 0.5
    if step == 2.0**-8:
        assert near.all(), "no division by a power of two rounds"
    halfway = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-6 * np.abs(
        exact
    )  # a device may divide otherwise
    assert (near | halfway).all()
    want = (level.astype(np.float32) * np.float32(step))[near]
    np.testing.assert_array_equal(got[near], want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [(5000,), (700, 600)])
def test_lossless_keeps_every_bit(dtype, shape):
    x = weights(shape, dtype=dtype)
    got, small = round_trip(x, lossless=True)
    np.testing.assert_array_equal(bits_of(got), bits_of(x))
    assert small.nbytes < 0.95 * x.nbytes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_lossless_keeps_all_16_bit_patterns(dtype):
    every = np.arange(1 << 16, dtype=np.uint16)
    x = jax.lax.bitcast_convert_type(jnp.asarray(every), dtype)
    got, _ = round_trip(x, lossless=True)
    np.testing.assert_array_equal(bits_of(got), every)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("axis", [0, 1])
def test_lossless_keeps_all_16_bit_patterns_in_rows_of_classes(dtype, axis):
    scale = np.exp(np.random.default_rng(0).normal(size=(512, 1)) * 2)
    x = (np.random.default_rng(1).normal(size=(512, 700)) * scale).astype(dtype).view(np.uint16)
    x.reshape(-1)[::5][: 1 << 16] = np.arange(1 << 16, dtype=np.uint16)
    x = np.ascontiguousarray(x.T if axis else x).view(dtype)
    got, small = round_trip(jnp.asarray(x), lossless=True)
    assert small.tree["x"].meta.axis is not None and len(small.tree["x"].meta.parts) > 1
    np.testing.assert_array_equal(bits_of(got), bits_of(x))


@given(hnp.arrays(np.uint32, 1500, elements=st.integers(0, 2**32 - 1)))
@settings(max_examples=15, deadline=None)
def test_lossless_keeps_any_float32(bits):
    bits[:6] = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 1]  # zeros, infinities, a NaN, a subnormal
    x = bits.view(np.float32)
    small = codec.compress({"x": x}, lossless=True)
    host = np.asarray(codec.decompress(small)["x"])
    np.testing.assert_array_equal(bits_of(host), bits)


def test_float16_rows_in_float32_cost_no_trailing_zeros():
    x = np.array(weights((600, 500)))
    x[::3] = x[::3].astype(np.float16)
    got, small = round_trip(jnp.asarray(x), lossless=True)
    np.testing.assert_array_equal(got, x)
    whole = np.array(weights((600, 500)))
    saved = codec.compress({"x": whole}, lossless=True).nbytes - small.nbytes
    assert saved > 200 * 500 * 12 / 8  # 13 bits a weight of every third row


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rf8_is_that_of_rf8(dtype):
    x = weights((50, 100), dtype=dtype)
    got, small = round_trip(x, rf8=True)
    np.testing.assert_array_equal(bits_of(got), bits_of(ggjax.rf8.round(x)))
    kept = codec.decompress(small, keep_rf8=True)["x"]
    np.testing.assert_array_equal(kept.codes, ggjax.rf8.encode(x).codes)
    assert kept.exponents == ggjax.rf8.encode(x).exponents and kept.dtype == x.dtype


ODD = {
    "constant": np.full(3000, 0.7, np.float32),
    "zeros": np.zeros((40, 50), np.float32),
    "two": np.where(np.arange(3000) % 7, 0.5, -3.0).astype(np.float32),
    "outlier": np.append(np.linspace(-1, 1, 3000), 1e6).astype(np.float32),
    "wide": (np.random.default_rng(0).uniform(-(2.0**23), 2.0**23, 4000)).astype(np.float32),
    "transposed": np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32).T,
    "strided": np.random.default_rng(0).normal(size=8000).astype(np.float32)[::2],
    "falling": np.random.default_rng(0).normal(size=4000).astype(np.float32)[::-1],
}


@pytest.mark.parametrize("name", sorted(ODD))
@pytest.mark.parametrize(
    "options",
    [{"step": 1.0}, {"step": 0.01}, {"lossless": True}, {"bits": 3}, {"snr_db": 20}, {"step_per_std": 0.1}],
    ids=str,
)
def test_odd_arrays(name, options):
    x = ODD[name]
    got, small = round_trip(x, **options)
    if "lossless" in options:
        np.testing.assert_array_equal(bits_of(got), bits_of(np.ascontiguousarray(x)))
    elif "step" in options:
        slack = 1e-6 * np.abs(x).max()
        assert np.abs(got - x).max() <= options["step"] / 2 + slack
    assert small.nbytes <= 1.02 * x.nbytes + 600


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.sampled_from([{"step": 0.1}, {"step": 1e-3}, {"lossless": True}, {"rf8": True}]),
    st.integers(0, 2**31),
    st.floats(-6, 5),
)
@settings(max_examples=40, deadline=None)
def test_shapes_dtypes_and_scales(shape, dtype, options, seed, scale):
    rng = np.random.default_rng(seed)
    shape = (*shape, 1024 // math.prod(shape) + 1)
    with np.errstate(over="ignore"):
        x = (rng.normal(size=shape) * 10.0**scale).astype(jnp.dtype(dtype))
    if not np.isfinite(x.astype(np.float32)).all() and "lossless" not in options:
        return
    small = codec.compress({"x": x}, **options)
    assert isinstance(small.tree["x"], codec.Coded)
    got = np.asarray(codec.decompress(small)["x"])
    assert got.dtype == x.dtype and got.shape == x.shape
    if "lossless" in options:
        np.testing.assert_array_equal(bits_of(got), bits_of(x))
    elif "rf8" in options:
        np.testing.assert_array_equal(bits_of(got), bits_of(ggjax.rf8.round(x)))
    else:
        wide, ulp = x.astype(np.float64), float(jnp.finfo(x.dtype).eps)
        assert (np.abs(got.astype(np.float64) - wide) <= options["step"] * 0.51 + ulp * np.abs(wide)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_the_largest_numbers_stay_finite(dtype):
    largest = jnp.finfo(dtype).max
    x = jnp.tile(jnp.array([1, -1, 0.3, 0], dtype) * largest, 500)
    for options in ({"bits": 2}, {"snr_db": 20}, {"step_per_std": 0.7}):
        got, _ = round_trip(x, **options)
        wide = np.asarray(x, np.float64)
        assert np.isfinite(got.astype(np.float64)).all()
        assert np.abs(got.astype(np.float64) - wide).max() < 0.5 * float(largest)


def test_weights_beyond_float32_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"leaf 'w': its largest weight is 1e\+39, expected the range of float32"
    ):
        codec.compress({"w": np.full(2000, 1e39)}, bits=3)


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
    assert all(isinstance(x, np.ndarray) for x in leaves) and len(leaves) == 7
    again = jax.tree.map(jnp.asarray, small)
    np.testing.assert_array_equal(codec.decompress(again)["w"], codec.decompress(small)["w"])
    assert jax.tree.structure(again) == jax.tree.structure(small)


def test_the_same_tree_gives_the_same_streams():
    tree = {"a": weights((700, 1000)), "b": weights((40, 50), nu=1.5)}
    first, second = (jax.tree.leaves(codec.compress(tree, bits=4)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# Sizes.


@pytest.mark.parametrize("per_std", [0.25, 2**-4])
def test_size_is_that_of_the_entropy(per_std):
    x = weights((1000, 1000))
    step = float(np.std(x)) * per_std
    small = codec.compress({"x": x}, step=step)
    assert 8 * small.nbytes / x.size < 1.003 * entropy(np.rint(np.asarray(x) / np.float32(step)))


def test_rows_of_different_scale_share_models_where_that_pays():
    scale = np.exp(np.random.default_rng(0).normal(size=(1000, 1)) * 0.7).astype(np.float32)
    x = np.asarray(weights((1000, 400))) * scale
    sizes = {}
    for name, y in {"rows": x, "columns": np.ascontiguousarray(x.T), "same": weights((1000, 400))}.items():
        got, small = round_trip(jnp.asarray(y), step=2**-7)
        assert np.abs(got - y).max() <= 2**-8 + 1e-6
        sizes[name] = small.tree["x"]
    assert sizes["rows"].meta.axis == 0 and sizes["columns"].meta.axis == -1 and sizes["same"].meta.axis is None
    level = np.rint(x * 2**7)
    assert 8 * sizes["rows"].nbytes / x.size < entropy(level) - 0.1


@pytest.mark.parametrize("bits", [2.0, 4.0, 6.5, 10.0])
def test_bits_are_met(bits):
    small = codec.compress({"w": weights((500, 600))}, bits=bits)
    assert abs(small.bits["w"] - bits) < 0.06


def test_snr_is_met():
    x = weights((300, 400))
    got, _ = round_trip(x, snr_db=25.0)
    error = np.asarray(x, np.float64) - got
    assert abs(10 * np.log10(np.mean(np.float64(x) ** 2) / np.mean(error**2)) - 25) < 0.05


def test_step_per_std():
    x = weights((300, 400))
    small = codec.compress({"x": x}, step_per_std=0.5)
    np.testing.assert_allclose(small.tree["x"].meta.step, 0.5 * np.std(np.asarray(x, np.float64)), rtol=1e-6)


def test_centroids_lower_the_error_and_a_dead_zone_the_rate():
    x = weights((300, 400))

    def measure(**options):
        got, small = round_trip(x, step=0.08, **options)
        return float(np.mean((got - np.asarray(x)) ** 2)), small.bits["x"]

    plain, centred, dead = measure(), measure(centroids=True), measure(dead_zone=0.2)
    both = measure(dead_zone=0.2, centroids=True)
    assert centred[0] < 0.97 * plain[0] and abs(centred[1] - plain[1]) < 0.01
    assert dead[1] < plain[1] - 0.1 and both[0] < dead[0]


@pytest.mark.parametrize("value", [1.366, 1e-3, -7.0, 0.0])
def test_constants_have_no_standard_deviation(value):
    x = np.full(40000, value, np.float32)
    for options in ({"step_per_std": 0.01}, {"bits": 4}, {"snr_db": 30}):
        got, _ = round_trip(jnp.asarray(x), **options)
        np.testing.assert_array_equal(got, x)


def test_rare_weights_are_kept_though_no_sample_has_them():
    x = np.zeros(1_000_000, np.float32)
    x[[100, 7, 500_000]] = 1.0, 0.3, -0.2
    got = np.asarray(codec.decompress(codec.compress({"x": x}, snr_db=30.0))["x"])
    assert np.sum((got - x) ** 2) < 0.01 * np.sum(x**2)


def test_small_weights_are_rounded_or_refused():
    x = 1e-33 * np.random.default_rng(0).normal(size=5000).astype(np.float32)
    got, _ = round_trip(jnp.asarray(x), bits=6)
    wide = x.astype(np.float64)
    assert np.mean((got - wide) ** 2) < 1e-2 * np.mean(wide**2)
    with pytest.raises(ValueError, match="leaf 'x': its largest weight is .*expected at least 2.-120"):
        codec.compress({"x": x * np.float32(1e-4)}, bits=6)


def test_big_endian_arrays():
    x = np.asarray(weights((40, 50)))
    small = codec.compress({"x": x.astype(">f4")}, lossless=True)
    np.testing.assert_array_equal(codec.decompress(small)["x"], x)


def test_rf8_compiles_one_program_for_many_shapes():
    trees = [{"x": weights((40 + i, 50))} for i in range(4)]
    codec.decompress(codec.compress(trees[0], rf8=True))
    before = ggjax.rf8._encode._cache_size(), ggjax.rf8._decode._cache_size()
    for tree in trees[1:]:
        codec.decompress(codec.compress(tree, rf8=True))
    assert (ggjax.rf8._encode._cache_size(), ggjax.rf8._decode._cache_size()) == before


def test_zstd_decodes_on_the_host():
    pytest.importorskip("zstandard")
    x = weights((300, 400))
    small = codec.compress({"x": x}, bits=4, coder="zstd")
    plain = codec.compress({"x": x}, bits=4)
    np.testing.assert_array_equal(codec.decompress(small)["x"], codec.decompress(plain)["x"])
    assert plain.nbytes < small.nbytes < 1.1 * plain.nbytes
    with pytest.raises(ValueError, match="'zstd' decodes on the host only"):
        jax.jit(codec.decompress)(small)


# Devices and shards.


def test_eight_devices_decode_the_same_as_one():
    small = codec.compress({"x": weights((100, 120))}, lossless=True)
    want = np.asarray(codec.decompress(small)["x"])
    for device in jax.devices()[::3]:
        placed = jax.device_put(small, device)
        np.testing.assert_array_equal(np.asarray(jax.jit(codec.decompress)(placed)["x"]), want)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_sharded_leaves_are_coded_by_shard_and_come_back_sharded(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    specs = {"both": P("x", "y"), "rows": P("x"), "columns": P(None, "y"), "whole": P()}
    x = weights((128, 96))
    tree = {k: jax.device_put(x, NamedSharding(mesh, s)) for k, s in specs.items()}
    for options in ({"step": 2**-8}, {"lossless": True}, {"step_per_std": 0.25}):
        want = codec.decompress(codec.compress({"x": x}, **options))["x"]
        small = codec.compress(tree, **options)
        back = codec.decompress(small)
        for k in tree:
            np.testing.assert_array_equal(np.asarray(back[k]), np.asarray(want))
            if k != "whole":
                assert back[k].sharding.is_equivalent_to(tree[k].sharding, 2)
                assert isinstance(small.tree[k], codec.Blocks)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shards_keep_every_bit_under_jit(dtype):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    width = 8 * jnp.dtype(dtype).itemsize
    x = (
        np.random.default_rng(0)
        .integers(0, 1 << width, (64, 96), dtype=np.uint64)
        .astype(f"u{width // 8}")
        .view(dtype)
    )
    placed = jax.device_put(x, NamedSharding(mesh, P("x", "y")))
    small = codec.compress({"x": placed}, lossless=True)
    assert all(isinstance(b, codec.Coded) for b in small.tree["x"].blocks)  # of 768 weights each
    for got in (codec.decompress(small)["x"], jax.jit(codec.decompress)(small)["x"]):
        np.testing.assert_array_equal(bits_of(got), bits_of(x))
    part = codec.Blocks(
        **{**vars(small.tree["x"]), "blocks": small.tree["x"].blocks[:3], "starts": small.tree["x"].starts[:3]}
    )
    with pytest.raises(ValueError, match=r"shape \(64, 96\) has 2304 of its 6144 elements in this process"):
        jax.jit(codec.decompress)(part)


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of step, bits, snr_db, step_per_std"),
        ({"step": 1, "bits": 2}, "got step and bits"),
        ({"step": 1, "lossless": True}, "got step and lossless"),
        ({"rf8": True, "lossless": True}, "got rf8 and lossless"),
        ({"step": 0}, "step must be positive and finite, got 0"),
        ({"bits": -1}, "bits must be positive and finite, got -1"),
        ({"snr_db": np.nan}, "snr_db must be positive and finite, got nan"),
        ({"step": 1, "dead_zone": 0.5}, r"dead_zone must be in \[0, 0.5\), got 0.5"),
        ({"rf8": True, "dead_zone": 0.1}, "dead_zone and centroids belong to a step"),
        ({"lossless": True, "centroids": True}, "dead_zone and centroids belong to a step"),
        ({"step": 1, "coder": "lzma"}, 'coder must be "rans" or "zstd", got \'lzma\''),
        (
            {"step": 1e-12},
            r"leaf 'a/w': its largest weight is 1, 1e\+12 steps of 1e-12, expected fewer than 2\^31",
        ),
        ({"step": 1e-37}, r"step must be from 2\^-120 to 2\^100, got 1e-37"),
        ({"step": 1, "mask": {"b": True}}, "mask does not fit the tree"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        codec.compress({"a": {"w": jnp.ones((40, 50))}}, **options)


@pytest.mark.parametrize("options", [{"step": 1.0}, {"rf8": True}, {"bits": 4}], ids=str)
def test_weights_that_are_not_finite(options):
    x = np.ones((40, 50), np.float32)
    x[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got nan at index \(3, 4\)"):
        codec.compress({"a": {"w": x}}, **options)


def test_compress_refuses_traced_leaves():
    with pytest.raises(ValueError, match="leaf 'w': compress needs the weights themselves.*outside jit"):
        jax.jit(lambda w: codec.compress({"w": w}, step=1.0))(jnp.ones(2000))


def test_damaged_streams_are_refused():
    small = codec.compress({"x": weights((40, 50))}, step=2**-8).tree["x"]
    words = small.words.copy()
    words[5] ^= 1
    fields = {
        n: getattr(small, n) for n in ("states", "counts", "raw", "exceptions", "tables", "classes", "meta")
    }
    with pytest.raises(ValueError, match="array 0, chunk 0: its lanes do not end as an encoder begins"):
        codec.decompress({"x": codec.Coded(words=words, **fields)})
    with pytest.raises(ValueError, match="array 0: .* words, expected"):
        codec.decompress({"x": codec.Coded(words=words[:-1], **fields)})
