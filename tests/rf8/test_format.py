"""The format: every code, every 16-bit and 8-bit float, thresholds, windows, against the rule in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ggjax import rf8
from tests.rf8.reference import BFLOAT16, BOUND, BYTES, CANONICAL, FLOAT16, agree, reference


def test_the_byte_is_as_published():
    """Value by value from the layout: sign 1, exponent 4, residual 3."""
    residual = dict(zip(range(8), (-0.25, -0.125, -0.0625, 0.0, 0.0625, 0.125, 0.25, 0.5), strict=True))
    want = [(-1) ** (c >> 7) * (1 + residual[c % 8]) * 2 ** (c // 8 % 16) for c in range(256)]
    want[0x00], want[0x80] = 0.0, -0.0
    np.testing.assert_array_equal(rf8.values(), want)
    np.testing.assert_array_equal(np.signbit(rf8.values()), BYTES >= 128)
    assert np.all(np.diff(rf8.values()[[c for c in CANONICAL if c < 128]]) > 0)
    reserved = set(range(256)) - set(CANONICAL.tolist())
    assert set(BYTES[rf8.is_reserved(BYTES)].tolist()) == reserved and len(reserved) == 31


@pytest.mark.parametrize("exponent", [-125, -15, -1, 0, 40, 112])
def test_all_codes_decode_to_their_values_and_encode_back(exponent, rounding):
    q = rf8.RF8Array(jnp.asarray(BYTES), jnp.int8([exponent]), jnp.dtype("float32"))
    np.testing.assert_array_equal(np.asarray(rf8.decode(q), np.float64), rf8.values() * 2.0**exponent)
    np.testing.assert_array_equal(np.signbit(rf8.decode(q)), BYTES >= 128)
    low = rf8.decode(q, jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(low, np.float64), rf8.values() * 2.0**exponent)
    again = rf8.encode(rf8.decode(q)[CANONICAL], rounding=rounding)
    np.testing.assert_array_equal(again.codes, CANONICAL)
    assert again.exponents == exponent


def test_every_bfloat16_and_float16(rounding):
    """In one window each, in the window of every 64 neighbours, and each in a window of its own."""
    for every, largest in ((BFLOAT16, 15 / 16 * 2.0**128), (FLOAT16, 15 / 16 * 2.0**16)):
        x = every[np.isfinite(np.float32(every))]
        assert len(x) >= 2**16 - 2**11
        agree(x, rounding, largest=largest)
        agree(x.reshape(-1, 64), rounding, axis=1, largest=largest)
        q = agree(x[:, None], rounding, axis=1, largest=largest)
        inside = np.abs(np.float64(x)) >= 2.0**-125
        error = np.abs(np.asarray(rf8.decode(q, jnp.float32), np.float64)[:, 0] / np.where(inside, x, 1) - 1)
        over = np.abs(np.float64(x)) > largest
        assert error[inside & ~over].max() <= BOUND[rounding]


def test_a_million_float32(rounding):
    r = np.random.default_rng(0)
    bits = r.integers(0, 2**32, 500_000, dtype=np.uint32).view(np.float32)
    agree(bits[np.isfinite(bits)][:, None], rounding, axis=1)  # every exponent, each in its own window
    x = np.float32(r.standard_normal(500_000) * 2.0 ** r.integers(-18, 1, 500_000))
    agree(x, rounding)
    agree(x.reshape(100, 50, 100), rounding, axis=(0, 2))


def test_the_floats_next_to_every_threshold(rounding):
    """The last float32 below and the first above each boundary between two values."""
    edges = [2.0 ** (k + 0.5) for k in range(-6, 0)]
    edges = [1 + e for e in edges] + [1 - e for e in edges] + list(np.arange(33, 64) / 32)
    x = np.float32([np.nextafter(np.float32(e), np.float32(d)) for e in edges for d in (0, e, 9)])
    agree(x, rounding)


def test_the_ends_of_the_window():
    smallest = 7 / 8 * 2.0**-15
    half = np.float32(smallest / 2)
    x = np.float32([1, smallest, 0.8 * 2.0**-15, half, -half, np.nextafter(half, np.float32(0)), -1e-9, -0.0])
    q = agree(x, "digits")
    assert q.codes.tolist() == [0x7B, 0x01, 0x01, 0x01, 0x81, 0, 0, 0]
    # the window hangs from 3/4 written as 3/2 of the power below, and from 7/8 as 7/8 of its own
    for value, exponent in ((0.75, -16), (0.875, -15)):
        assert rf8.encode(np.float32([value])).exponents == exponent
    # the last magnitudes of float32, bfloat16 and float16 stay finite
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        top = jnp.finfo(dtype).max
        q = rf8.encode(jnp.array([top, -top, 1], dtype))
        value = 15 / 16 * 2.0 ** jnp.finfo(dtype).maxexp
        np.testing.assert_array_equal(np.float64(rf8.decode(q))[:2], [value, -value])
    tiny = np.float32([1e-45, -1e-40, 7 / 8 * 2.0**-126, 2.0**-126, -(2.0**-125)])
    q = agree(tiny, "digits")
    assert q.exponents == -125 and q.codes.tolist() == [0, 0, 1, 1, 0x83]


def test_degenerate_arrays():
    for x in (jnp.zeros((0, 3)), jnp.zeros(4), jnp.float32(0), -jnp.zeros((2, 2), jnp.bfloat16)):
        q = rf8.encode(x)
        rf8.validate(q)
        assert q.shape == x.shape and q.ndim == x.ndim and q.size == x.size and q.dtype == x.dtype
        assert q.exponents.shape == (1,) * x.ndim and np.all(q.exponents == -125) and not np.any(q.codes)
        y = rf8.decode(q)
        assert y.dtype == x.dtype and y.shape == x.shape and not np.any(np.signbit(y))
    assert rf8.encode(jnp.zeros((0, 3)), axis=0).exponents.shape == (1, 3)
    assert rf8.encode(jnp.float32(-3)).codes == 0xFF
    assert rf8.round(0.3).dtype == jnp.float32


def test_windows_of_channels():
    x = np.float32([[1e-6, 1.0], [2e-6, 2.0]])
    q = rf8.encode(x, axis=0)
    assert q.exponents.shape == (1, 2)
    rf8.validate(q)
    for j in range(2):
        one = rf8.encode(x[:, j])
        np.testing.assert_array_equal(q.codes[:, j], one.codes)
        assert q.exponents[0, j] == one.exponents[0]
    np.testing.assert_array_equal(rf8.encode(x, axis=(-2, -1)).codes, rf8.encode(x).codes)


finite = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=1, min_side=16, max_side=16),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@settings(max_examples=200, deadline=None)
@given(finite, st.sampled_from(["digits", "nearest"]))
def test_properties(x, rounding):
    q = rf8.encode(x, rounding=rounding)
    rf8.validate(q)
    y = np.float64(rf8.round(x, rounding=rounding))
    np.testing.assert_array_equal(y, np.float64(rf8.decode(q)))
    # rounding twice changes nothing, and is odd and monotone
    np.testing.assert_array_equal(rf8.round(np.float32(y), rounding=rounding), y)
    np.testing.assert_array_equal(rf8.round(-x, rounding=rounding), -y)
    assert np.all(np.diff(y[np.argsort(x)]) >= 0)
    # the relative error is bounded within the window, the absolute one by half the smallest value below it
    w, smallest = np.float64(x), 7 / 8 * 2.0 ** float(q.exponents[0])
    inside = (np.abs(w) >= smallest) & (np.abs(w) < 15 / 16 * 2.0**128)
    assert np.all(np.abs(y - w)[inside] <= BOUND[rounding] * np.abs(w)[inside])
    assert np.all(np.abs(y - w)[np.abs(w) < smallest] <= smallest / 2)


def test_nearest_is_nearest_and_never_worse_than_digits():
    x = np.float32(np.random.default_rng(1).standard_normal(20_000))
    q = rf8.encode(x, rounding="nearest")
    values = rf8.values()[CANONICAL] * 2.0 ** float(q.exponents[0])
    best = np.abs(np.float64(x)[:, None] - values).min(1)
    np.testing.assert_array_equal(np.abs(np.float64(rf8.decode(q)) - x), best)
    assert np.all(np.abs(np.float64(rf8.round(x)) - x) >= best)


def test_not_finite_under_jit_decodes_to_nan():
    x = np.float32([[1, 2], [3, 4], [0, -1]])
    encode = jax.jit(rf8.encode, static_argnames="axis")
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            y = x.copy()
            y[1, 0] = bad
            q = encode(jnp.asarray(y, dtype), axis=1)
            rf8.validate(q)
            assert q.exponents.tolist() == [[-14], [127], [-15]]
            np.testing.assert_array_equal(np.isnan(rf8.decode(q)), [[0, 0], [1, 1], [0, 0]])
            assert np.isnan(rf8.decode(encode(jnp.asarray(y, dtype)))).all()


def test_float64_goes_through_float32():
    with jax.enable_x64(True):
        x = np.array([0.3, -1e300, 1e-300, 0.0])
        q = rf8.encode(x)
        assert q.dtype == jnp.float64 and q.exponents == 113
        y = rf8.decode(q)
        assert y.dtype == jnp.float64
        np.testing.assert_array_equal(y, [0, -15 / 16 * 2.0**128, 0, 0])
        z = np.random.default_rng(3).standard_normal(1000)
        np.testing.assert_array_equal(rf8.round(z), reference(np.float32(z), "digits")[0])
        assert jnp.isnan(jax.jit(rf8.round)(np.array([1.0, np.inf]))).all()


EIGHT_BITS = [
    jnp.float8_e3m4,
    jnp.float8_e4m3,
    jnp.float8_e4m3b11fnuz,
    jnp.float8_e4m3fn,
    jnp.float8_e4m3fnuz,
    jnp.float8_e5m2,
    jnp.float8_e5m2fnuz,
]


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=lambda d: jnp.dtype(d).name)
def test_every_float_of_8_bits(dtype, rounding):
    """Each in a window of its own, and all of them in one; decoding to the dtype itself is a cast."""
    x = BYTES.view(dtype)
    x = x[np.isfinite(x.astype(np.float64))]
    top = float(jnp.finfo(dtype).max)
    largest = max(
        v * 2.0**e
        for v in (1, 17 / 16, 9 / 8, 5 / 4, 3 / 2, 7 / 4, 15 / 8)
        for e in range(-20, 17)
        if v * 2.0**e <= top
    )
    for values, axis in ((x, None), (x[:, None], 1)):
        want, window = reference(values.astype(np.float64), rounding, axis, largest=largest)
        for q in (
            rf8.encode(values, axis=axis, rounding=rounding),
            rf8.tree_encode([values], axis=axis, rounding=rounding)[0],
        ):
            rf8.validate(q)
            assert q.dtype == dtype
            np.testing.assert_array_equal(q.exponents, window)
            np.testing.assert_array_equal(rf8.decode(q, jnp.float32), want)
            np.testing.assert_array_equal(
                np.asarray(rf8.decode(q)).astype(np.float64), want.astype(dtype).astype(np.float64)
            )


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "int4"])
def test_dtypes_that_hold_no_weights_are_refused(name):
    """In a tree they pass through."""
    dtype = getattr(jnp, name, None)
    if dtype is None:
        pytest.skip(f"this version of JAX has no {name}")
    x = np.ones(3, dtype)
    for call in (rf8.encode, rf8.round):
        with pytest.raises(TypeError, match=f"x must be a floating-point array with a sign.*got {name}"):
            call(x)
    assert rf8.tree_encode({"w": jnp.ones(2), "scales": x})["scales"] is x
    with pytest.raises(TypeError, match=f"dtype must be a floating one of at least 8 bits, got {name}"):
        rf8.decode(rf8.encode(jnp.ones(3)), dtype)
