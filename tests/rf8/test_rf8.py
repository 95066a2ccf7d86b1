"""RF8 against the paper's rule computed in float64 NumPy, over all codes and all 16-bit floats."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import rf8
from ggjax.rf8 import _rf8

BYTES = np.arange(256, dtype=np.uint8)
CANONICAL = np.array([c for c in range(256) if c == 0 or c & 7])
INT16 = np.arange(2**16, dtype=np.uint16)
BFLOAT16 = INT16.view(jnp.bfloat16)
FLOAT16 = INT16.view(np.float16)


def round_log2(v):
    """The integer nearest to log2(v), exactly: v = m 2^e with m in [1/2, 1), and m^2 has at most 48 bits."""
    m, e = np.frexp(v)
    return e - (m * m < 0.5)


def signed_digits(w):
    """w^ of the paper for non-zero float64 w that are exact in float32, and no window."""
    a = round_log2(np.abs(w))
    first = np.sign(w) * np.ldexp(1.0, a)
    r = w - first
    b = round_log2(np.where(r == 0, 1.0, np.abs(r)))
    return first + np.where((r != 0) & (a - b <= 4), np.sign(r) * np.ldexp(1.0, b), 0.0)


def nearest(w):
    """The nearest of (1 + residual) 2^e for non-zero w, ties away from zero."""
    m, e = np.frexp(np.abs(w))  # in [1/2, 1)
    grid = np.array([8, 8.5, 9, 10, 12, 14, 15, 16]) / 16
    at = np.searchsorted((grid[1:] + grid[:-1]) / 2, m, side="right")
    return np.sign(w) * np.ldexp(grid[at], e)


def exponent_of(values):
    """15 below a for values (1 + residual) 2^a of residuals -1/8 to 1/2, at least -125 (as for 0)."""
    m, e = np.frexp(values)  # m in 8/16, 8.5/16, 9/16, 10/16, 12/16, or 14/16, 15/16 of the power above
    a = np.where(m < 0.8, e - 1, e)
    return np.where(values == 0, -125, np.maximum(a - 15, -125))


def reference(w, rounding, axis=None, largest=15 / 16 * 2.0**128):
    """(RF8 of a float64 array, exponents), with windows shared along axis."""
    w = np.asarray(w, np.float64)
    rule = {"digits": signed_digits, "nearest": nearest}[rounding]
    out = np.where(w == 0, 0.0, rule(np.where(w == 0, 1.0, w)))
    out = np.clip(out, -largest, largest)
    window = exponent_of(np.abs(out).max(axis, initial=0, keepdims=axis is not None))
    smallest = np.ldexp(7 / 8, window)
    low = np.where(np.abs(w) >= smallest / 2, np.sign(w) * smallest, 0.0)
    return np.where(np.abs(out) < smallest, low, out), window


def agree(x, rounding, axis=None, **kw):
    """Encode a NumPy array, compare exactly with the reference, and check the codes; the encoded array."""
    q = rf8.encode(jnp.asarray(x), axis=axis, rounding=rounding)
    rf8.validate(q)
    want, window = reference(x, rounding, axis, **kw)
    np.testing.assert_array_equal(q.exponents, window)
    np.testing.assert_array_equal(np.asarray(rf8.decode(q, jnp.float32), np.float64), want)
    np.testing.assert_array_equal(np.asarray(rf8.decode(q), np.float64), want)
    return q


@pytest.fixture(params=["digits", "nearest"])
def rounding(request):
    return request.param


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
    q = rf8.RF8Array(jnp.asarray(BYTES), jnp.int8(exponent), jnp.dtype("float32"))
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


BOUND = {"digits": 1.5 / (1 + math.sqrt(2) / 4) - 1, "nearest": 1 / 11}


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
        assert q.exponents.shape == () and q.exponents == -125 and not np.any(q.codes)
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
        assert q.exponents[0, j] == one.exponents
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
    w, smallest = np.float64(x), 7 / 8 * 2.0 ** float(q.exponents)
    inside = (np.abs(w) >= smallest) & (np.abs(w) < 15 / 16 * 2.0**128)
    assert np.all(np.abs(y - w)[inside] <= BOUND[rounding] * np.abs(w)[inside])
    assert np.all(np.abs(y - w)[np.abs(w) < smallest] <= smallest / 2)


def test_nearest_is_nearest_and_never_worse_than_digits():
    x = np.float32(np.random.default_rng(1).standard_normal(20_000))
    q = rf8.encode(x, rounding="nearest")
    values = rf8.values()[CANONICAL] * 2.0 ** float(q.exponents)
    best = np.abs(np.float64(x)[:, None] - values).min(1)
    np.testing.assert_array_equal(np.abs(np.float64(rf8.decode(q)) - x), best)
    assert np.all(np.abs(np.float64(rf8.round(x)) - x) >= best)


def test_eager_jit_vmap_and_scan_agree_in_bits(rounding):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((6, 5, 4)) * 1e-3, jnp.float32)
    with jax.disable_jit():
        slow = rf8.encode(x, axis=(1, 2), rounding=rounding)
        slow_values = rf8.decode(slow)
    encode = jax.jit(lambda v: rf8.encode(v, axis=(1, 2), rounding=rounding))
    rows = jax.vmap(lambda v: rf8.encode(v, rounding=rounding))(x)
    scanned = jax.lax.scan(lambda c, v: (c, rf8.encode(v, rounding=rounding)), 0, x)[1]
    for q in (encode(x), rows, scanned):
        np.testing.assert_array_equal(q.codes, slow.codes)
        np.testing.assert_array_equal(jnp.ravel(q.exponents), jnp.ravel(slow.exponents))
    np.testing.assert_array_equal(jax.jit(rf8.decode)(slow), slow_values)


def test_second_call_does_not_compile():
    x = jnp.ones((3, 5))
    rf8.round(x), rf8.tree_encode({"w": x}), rf8.decode(rf8.encode(x))
    sizes = [f._cache_size() for f in (_rf8._encode, _rf8._decode, _rf8._round, _rf8._encode_leaves)]
    rf8.round(2 * x), rf8.tree_encode({"w": 2 * x}), rf8.decode(rf8.encode(2 * x))
    assert sizes == [f._cache_size() for f in (_rf8._encode, _rf8._decode, _rf8._round, _rf8._encode_leaves)]


def test_encode_stores_nothing_but_its_output():
    """Of float32 and bfloat16, one window or one per column: no temporary of parameter size."""
    for dtype in (jnp.float32, jnp.bfloat16):
        for axis in (None, 0):
            x = jax.ShapeDtypeStruct((1024, 1024), dtype)
            lowered = jax.jit(lambda v, axis=axis: rf8.encode(v, axis=axis)).lower(x)
            assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.05 * 1024 * 1024


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


def test_trees():
    tree = {
        "w": jnp.linspace(-1, 1, 12).reshape(3, 4),
        "b": jnp.ones(4, jnp.bfloat16),
        "none": None,
        "masked": optax.MaskedNode(),
        "ids": jnp.arange(3),
    }
    q = rf8.tree_encode(tree, axis=-2)
    assert q["w"].exponents.shape == (1, 4) and q["b"].exponents.shape == ()  # b has no axis -2
    assert q["none"] is None and q["masked"] == optax.MaskedNode() and q["ids"] is tree["ids"]
    y = rf8.tree_decode(q)
    np.testing.assert_array_equal(y["w"], rf8.round(tree["w"], axis=0))
    assert y["b"].dtype == jnp.bfloat16
    assert jax.tree.structure(y) == jax.tree.structure(tree)
    jitted = jax.jit(lambda t: rf8.tree_decode(rf8.tree_encode(t, axis=-2)))(tree)
    jax.tree.map(np.testing.assert_array_equal, jitted, y)
    some = rf8.tree_encode(tree, mask=lambda t: {k: k == "w" for k in t})
    assert isinstance(some["w"], rf8.RF8Array) and some["b"] is tree["b"]
    near = rf8.tree_decode(rf8.tree_encode(tree, rounding="nearest"))["w"]
    np.testing.assert_array_equal(near, rf8.round(tree["w"], rounding="nearest"))
    abstract = jax.eval_shape(rf8.tree_encode, {"w": jax.ShapeDtypeStruct((5, 2), jnp.bfloat16)})["w"]
    assert abstract.shape == (5, 2) and abstract.codes.dtype == jnp.uint8 and abstract.dtype == jnp.bfloat16
    rf8.validate(abstract)
    assert rf8.tree_encode({}) == {}


def test_nnx_state():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    nnx.update(model, rf8.tree_decode(rf8.tree_encode(state)))
    np.testing.assert_array_equal(model.kernel[...], rf8.round(state["kernel"][...]))


def test_dot():
    x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.array([[0.5, 0.3], [0.2, -1.0], [0.0, 0.1]])
    y = rf8.dot(x, rf8.encode(w))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), np.ones((2, 3)) @ reference(w, "digits")[0], rtol=2**-7)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("i", None), P(None, "j"), P("i", "j")])
def test_sharded_arrays_stay_sharded(kind, spec):
    mesh = jax.make_mesh((4, 2), ("i", "j"), axis_types=(kind, kind))
    x = np.float32(np.random.default_rng(4).standard_normal((8, 16)))
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    for axis in (None, 0):
        want, q = rf8.encode(x, axis=axis), rf8.encode(sharded, axis=axis)
        np.testing.assert_array_equal(q.codes, want.codes)
        np.testing.assert_array_equal(q.exponents, want.exponents)
        assert q.codes.sharding.is_equivalent_to(sharded.sharding, 2)
        y = rf8.decode(q)
        np.testing.assert_array_equal(y, rf8.decode(want))
        assert y.sharding.is_equivalent_to(sharded.sharding, 2)
    assert rf8.round(sharded, axis=0).sharding.is_equivalent_to(sharded.sharding, 2)
    text = _rf8._round.lower(sharded, axis=0, rounding="digits").compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"leaf 'x': expected finite weights, got nan at index \(1,\)"):
        rf8.encode(jnp.array([1.0, jnp.nan]))
    with pytest.raises(ValueError, match=r"leaf 'x': expected finite weights, got -inf at index \(0,\)"):
        rf8.round(jnp.array([-jnp.inf, 1.0]))
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got inf at index \(1, 0\)"):
        rf8.tree_encode({"a": {"w": jnp.array([[1.0], [jnp.inf]])}})
    with pytest.raises(TypeError, match="x must be a floating-point array, got int32"):
        rf8.encode(jnp.arange(3))
    for call in (rf8.encode, rf8.round, rf8.tree_encode):
        with pytest.raises(ValueError, match='rounding must be "digits" or "nearest", got \'up\''):
            call(jnp.ones(3), rounding="up")
    with pytest.raises(ValueError, match=r"axis \(0, 2\) is out of range for x of shape \(3, 2\)"):
        rf8.encode(jnp.ones((3, 2)), axis=(0, 2))
    with pytest.raises(ValueError, match="no floating-point .*'ids', is int32"):
        rf8.tree_encode({"ids": jnp.arange(3)})
    with pytest.raises(TypeError, match="q must be an RF8Array, got ndarray"):
        rf8.decode(np.ones(3, np.uint8))
    with pytest.raises(TypeError, match="dtype must be a floating one, got int32"):
        rf8.decode(rf8.encode(jnp.ones(3)), jnp.int32)


def test_validate_names_what_is_wrong():
    codes, zero, f32 = jnp.full((2, 3), 3, jnp.uint8), jnp.int8(0), jnp.dtype("float32")
    rf8.validate(rf8.RF8Array(codes, zero, f32))
    rf8.validate(rf8.RF8Array(codes, jnp.full((2, 1), 127, jnp.int8), f32))
    with pytest.raises(TypeError, match="w must be an RF8Array, got dict"):
        rf8.validate({}, "w")
    with pytest.raises(TypeError, match="codes must be uint8 and exponents int8, got int32 and int8"):
        rf8.validate(rf8.RF8Array(codes.astype(jnp.int32), zero, f32))
    with pytest.raises(TypeError, match="dtype must be a floating one, got int32"):
        rf8.validate(rf8.RF8Array(codes, zero, jnp.dtype("int32")))
    for shape in ((3,), (2, 2), (1, 1, 1)):
        with pytest.raises(ValueError, match=r"exponents of shape .* do not fit codes of shape \(2, 3\)"):
            rf8.validate(rf8.RF8Array(codes, jnp.zeros(shape, jnp.int8), f32))
    for exponent in (-126, 114):
        with pytest.raises(ValueError, match=rf"exponents must be in \[-125, 113\] or 127, got {exponent}"):
            rf8.validate(rf8.RF8Array(codes, jnp.int8(exponent), f32))
    for code, exponent, message in (
        (0x08, 0, "1 reserved codes and 0 codes beyond float32"),
        (0x80, 0, "1 reserved codes and 0 codes beyond float32"),
        (0x7B, 113, "0 reserved codes and 1 codes beyond float32"),
    ):
        with pytest.raises(ValueError, match="w: " + message):
            rf8.validate(rf8.RF8Array(codes.at[0, 0].set(code), jnp.int8(exponent), f32), "w")
    rf8.validate(rf8.RF8Array(codes.at[0, 0].set(0x7A), jnp.int8(113), f32))
