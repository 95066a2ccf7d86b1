"""Compressed trees: round trips on the host and under jit, and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ggjax
from ggjax import codec
from tests.codec.helpers import bits_of, round_trip, weights


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rf8_is_that_of_rf8(dtype):
    x = weights((50, 100), dtype=dtype)
    got, small = round_trip(x, rf8=True)
    np.testing.assert_array_equal(bits_of(got), bits_of(ggjax.rf8.round(x)))
    kept = codec.decompress(small, keep_rf8=True)["x"]
    np.testing.assert_array_equal(kept.codes, ggjax.rf8.encode(x).codes)
    assert kept.exponents.shape == (1, 1) and kept.dtype == x.dtype
    assert kept.exponents.item() == ggjax.rf8.encode(x).exponents.item()


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
    coded = isinstance(small.tree["x"], codec.Coded)
    got = np.asarray(codec.decompress(small)["x"])
    assert got.dtype == x.dtype and got.shape == x.shape
    assert small.nbytes <= x.nbytes
    if "lossless" in options or not coded:  # no coding of it is smaller than the weights themselves
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
    for options in ({"bits": 30}, {"snr_db": 20}, {"step_per_std": 0.7}):
        got, _ = round_trip(x, **options)
        wide = np.asarray(x, np.float64)
        assert np.isfinite(got.astype(np.float64)).all()
        assert np.abs(got.astype(np.float64) - wide).max() < 0.5 * float(largest)


def test_weights_beyond_float32_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"leaf 'w': its largest weight is 1e\+39, expected the range of float32"
    ):
        codec.compress({"w": np.full(2000, 1e39)}, bits=3)


def test_big_endian_arrays():
    x = np.asarray(weights((40, 50)))
    small = codec.compress({"x": x.astype(">f4")}, lossless=True)
    np.testing.assert_array_equal(codec.decompress(small)["x"], x)


def test_many_shapes_share_their_programs():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    for options in ({"rf8": True}, {"step": 2**-8}, {"lossless": True}):
        codec.decompress(codec.compress({"x": weights((40, 50))}, **options))
        others = [np.asarray(weights((41 + i, 50))) for i in range(3)]
        compiled.clear()
        for x in others:
            codec.decompress(codec.compress({"x": x}, **options))
        assert not compiled


def test_zstd_decodes_on_the_host():
    pytest.importorskip("zstandard")
    x = weights((300, 400))
    small = codec.compress({"x": x}, step=0.02, coder="zstd")
    plain = codec.compress({"x": x}, step=0.02)
    np.testing.assert_array_equal(codec.decompress(small)["x"], codec.decompress(plain)["x"])
    assert plain.nbytes < small.nbytes < 1.1 * plain.nbytes
    with pytest.raises(ValueError, match="'zstd' decodes on the host only"):
        jax.jit(codec.decompress)(small)


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
    with pytest.raises(ValueError, match="array 0, chunk 0: its lanes do not end as an encoder begins"):
        codec.decompress({"x": dataclasses.replace(small, words=words)})
    with pytest.raises(ValueError, match="array 0: .* words, expected"):
        codec.decompress({"x": dataclasses.replace(small, words=words[:-1])})
