"""bfloat16 in 12 bits: every bit comes back, and products are those of the weights."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec
from ggjax._internal.tiled import _loops
from ggjax.codec.serving import _twelve
from tests.products import assert_same, vectors

R = np.random.default_rng(9)


def normal(*shape, scale=0.02):
    return (R.standard_normal(shape) * scale).astype(ml_dtypes.bfloat16)


def bits(x):
    return np.asarray(jax.lax.bitcast_convert_type(x, jnp.uint16))


def kept(x, **options):
    return codec.resident({"w": jnp.asarray(x)}, bits=12, mask=None, **options)["w"]


def with_odd_values(*shape):
    """Weights with a few of every kind that has no code."""
    x = normal(*shape)
    odd = np.array([0x7FC1, 0x7F81, 0xFF80, 0x7F80, 0x8000, 0x0000, 0x0001, 0x807F, 0x7F00, 0xC2C8], np.uint16)
    step = x.shape[-1] // len(odd)
    for i, number in enumerate(odd):
        x.view(np.uint16)[..., 3 * i % x.shape[-2], i * step] = number
    return x


@pytest.mark.parametrize("scale", [1e-30, 0.02, 1e30])
def test_every_bit_comes_back(scale):
    x = normal(96, 50, scale=scale)
    q = kept(x)
    assert isinstance(q, codec.TwelveBitArray) and q.shape == (96, 50) and q.dtype == jnp.bfloat16
    np.testing.assert_array_equal(bits(q.decode()), bits(x))
    x = with_odd_values(96, 50)
    q = kept(x)
    np.testing.assert_array_equal(bits(q.decode()), bits(x))
    assert q.decode(jnp.float32).dtype == jnp.float32
    patches = sum(a.nbytes for a in q.patches)
    assert q.nbytes == x.size * 1.5 + 4 + patches and patches <= x.size / 4


def test_the_window_is_the_best_there_is():
    q = kept(normal(512, 256))
    assert int((q.patches.rows < 512).sum()) / q.size < 1e-3  # of a normal law, 15 exponents leave 4e-5
    zeros = kept(np.zeros((8, 4), ml_dtypes.bfloat16))
    assert zeros.patches is None and not bits(zeros.decode()).any()
    wide = R.integers(0, 1 << 16, (64, 8)).astype(np.uint16).view(ml_dtypes.bfloat16)
    assert kept(wide).dtype == jnp.bfloat16 and not isinstance(kept(wide), codec.TwelveBitArray)
    assert not isinstance(kept(normal(7, 8)), codec.TwelveBitArray)  # rows in pairs
    assert not isinstance(
        codec.resident({"embedding": jnp.ones((8, 8), jnp.bfloat16)}, bits=12)["embedding"],
        codec.TwelveBitArray,
    )


def test_products(small_tiles):
    x = with_odd_values(102, 30)
    x.view(np.uint16)[np.isnan(x.astype(np.float32)) | np.isinf(x.astype(np.float32))] = 0x4000
    x[x.astype(np.float32) > 1e9] = 3
    q, w = kept(x), x.astype(np.float64)
    assert q.patches is not None
    for batch in (1, 17):
        a, b = vectors(batch, 102), vectors(batch, 30)
        assert_same(codec.dot(a, q), a, w)
        assert_same(codec.einsum("bn,kn->bk", b, q), b, w, "bn,kn->bk")
        da = jax.grad(lambda a, b=b: jnp.vdot(codec.dot(a, q), b))(a)
        assert_same(da, b, w, "bn,kn->bk")
    half = vectors(3, 102).astype(jnp.bfloat16)
    y = codec.dot(half, q, preferred_element_type=jnp.float32)
    narrow = codec.dot(half.astype(jnp.float16), q, preferred_element_type=jnp.float32)
    np.testing.assert_allclose(narrow, y, rtol=1e-2, atol=1e-2 * float(jnp.abs(y).max()))
    assert_same(y, half, w)
    jax.clear_caches()


def test_what_is_not_finite_reaches_the_results():
    x = normal(32, 12)
    x[3, 5], x[4, 7] = np.nan, np.inf
    y = np.asarray(codec.dot(jnp.ones((2, 32)), kept(x)))
    assert np.isnan(y[:, 5]).all() and np.isinf(y[:, 7]).all() and np.isfinite(y).sum() == 20


def test_stacked_layers_and_einsum():
    x = normal(3, 64, 64)
    q, w = kept(x, batch_axis=0), x.astype(np.float64)
    assert q.base.shape == (3, 1, 1)
    np.testing.assert_array_equal(bits(q[1].decode()), bits(x[1]))
    np.testing.assert_array_equal(bits(q[1:].decode()), bits(x[1:]))
    y, _ = jax.lax.scan(lambda a, w: (codec.dot(a, w), None), a := vectors(2, 64), q)
    for layer in w:
        a = np.asarray(a, np.float64) @ layer
    np.testing.assert_allclose(y, a, atol=1e-5 * np.abs(a).max())
    assert_same(codec.einsum("lbk,lkn->lbn", a := vectors(3, 2, 64), q), a, w, "lbk,lkn->lbn")
    one = kept(x)  # one window for all: the rows are those of all layers
    assert_same(codec.einsum("bk,lkn->lbn", a := vectors(2, 64), one), a, w, "bk,lkn->lbn")
    with pytest.raises(IndexError, match=r"TwelveBitArray of shape \(3, 64, 64\) can be indexed only along"):
        q[:, :3]


def test_no_temporary_is_as_large_as_the_matrix():
    k = n = 2048
    q = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), kept(normal(k, n)))
    for batch in (1, 8, 64):
        x = jax.ShapeDtypeStruct((batch, k), jnp.float32)
        temporary = jax.jit(codec.dot).lower(x, q).compile().memory_analysis().temp_size_in_bytes
        allowed = k * n if batch <= _loops.FEW else 4 * _loops.LARGE_TILE + 12 * batch * (k + n)
        assert temporary < allowed, (batch, temporary)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_sharded_weights_are_used_where_they_lie(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    x = normal(128, 256)
    q = kept(x)

    def put(a):
        own = P(*(s if size > 4 else None for s, size in zip(("x", "y"), a.shape, strict=True)))
        return jax.device_put(a, NamedSharding(mesh, own))

    placed = jax.tree.map(put, q)
    a = jax.device_put(vectors(4, 128), NamedSharding(mesh, P()))
    f = jax.jit(codec.dot)
    assert_same(f(a, placed), a, x.astype(np.float64))
    text = f.lower(a, placed).compile().as_text()
    gathers = [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line]
    assert not [g for g in gathers if "u8[" in g or "[128,256]" in g], gathers


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_lowers_to_a_kernel_elsewhere(platform, dtype):
    q = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), kept(normal(512, 256)))
    f = jax.jit(codec.dot).trace(jax.ShapeDtypeStruct((4, 512), dtype), q)
    text = f.lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" if platform == "tpu" else "xla.gpu.triton") in text


def test_messages():
    with pytest.raises(ValueError, match="leaf 'w': 12 bits are a form of bfloat16, got float32: cast it"):
        kept(np.ones((4, 4), np.float32))
    with pytest.raises(TypeError, match=r"a TwelveBitArray is no array of floats"):
        kept(normal(64, 4)) + 1
    assert repr(kept(np.zeros((8, 4), ml_dtypes.bfloat16))).startswith("TwelveBitArray(first=uint8(4, 4)")
    assert _twelve.encode(normal(64, 4), 0).nbytes < 64 * 4 * 2
