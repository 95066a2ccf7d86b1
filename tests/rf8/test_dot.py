"""rf8.dot and rf8.einsum against products with the decoded weights in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import rf8
from ggjax._internal.tiled import _kernel, _loops
from ggjax.rf8 import _dot
from tests.products import assert_same, vectors

R = np.random.default_rng(7)
AXES = {"tensor": None, "columns": 0, "rows": 1, "each": ()}
"""Along what exponents are shared, so that there is one, one a column, one a row, or one a weight."""


def made(shape, axis=None, spread=3):
    """Weights whose rows and columns are of different sizes, encoded."""
    w = R.standard_normal(shape) * 2.0 ** R.integers(-spread, spread, shape[-2:]) * 2.0 ** R.integers(-9, 9)
    return rf8.encode(jnp.asarray(w, jnp.float32), axis=axis)


def values(q):
    return rf8.values()[np.asarray(q.codes)] * 2.0 ** np.asarray(q.exponents, np.float64)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(96, 40), (101, 7), (1, 1)])
def test_equals_the_product_with_decoded_weights(axis, shape, small_tiles):
    q = made(shape, AXES[axis])
    for batch in (1, 17):
        x, y = vectors(batch, shape[0]), vectors(batch, shape[1])
        assert_same(rf8.dot(x, q), x, values(q))
        assert_same(rf8.einsum("bn,kn->bk", y, q), y, values(q), "bn,kn->bk")
        dx = jax.grad(lambda x, y=y: jnp.vdot(rf8.dot(x, q), y))(x)
        assert_same(dx, y, values(q), "bn,kn->bk")
        dy = jax.grad(lambda y, x=x: jnp.vdot(rf8.einsum("bn,kn->bk", y, q), x))(y)
        assert_same(dy, x, values(q))


def test_shapes_and_dtypes():
    q = made((12, 6), 0)
    w = values(q)
    x = vectors(2, 3, 12)
    assert_same(rf8.dot(x, q), x, w, "abk,kn->abn")
    assert rf8.dot(x[0, 0], q).shape == (6,) and rf8.dot(x[:0], q).shape == (0, 3, 6)
    assert rf8.dot(x[0], q[:, 0]).shape == (3,)
    stacked = made((4, 12, 6), (1, 2))
    np.testing.assert_allclose(rf8.dot(x, stacked), np.dot(x, values(stacked)), rtol=1e-4, atol=1e-4)
    half = x.astype(jnp.bfloat16)
    y = rf8.dot(half, q, preferred_element_type=jnp.float32)
    assert y.dtype == jnp.float32 and rf8.dot(half, q).dtype == jnp.bfloat16
    assert_same(y, half, w, "abk,kn->abn")  # added up in float32
    assert jax.grad(lambda x: rf8.dot(x, q).sum())(half).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = jnp.asarray(R.standard_normal((3, 12)))
        assert_same(rf8.dot(wide, q), wide, w, tolerance=1e-14)
    nothing = rf8.encode(jnp.zeros((0, 4)))
    np.testing.assert_array_equal(rf8.dot(jnp.zeros((2, 0)), nothing), np.zeros((2, 4)))


@pytest.mark.parametrize("exponent", [-125, 113])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (8, 1), (8, 3)])
def test_the_ends_of_the_range(exponent, shape):
    codes = np.full((8, 3), 0x0B if exponent > 0 else 0x7B, np.uint8)  # 2 and 2^15
    q = rf8.RF8Array(jnp.asarray(codes), jnp.full(shape, exponent, jnp.int8), jnp.dtype("float32"))
    x = jnp.full((1, 8), 2.0**-20 if exponent > 0 else 2.0**20)
    np.testing.assert_array_equal(rf8.dot(x, q), np.asarray(x, np.float64) @ values(q))


def test_what_was_not_finite_is_nan_and_every_byte_is_read_alike():
    for axis, bad in ((None, np.s_[:]), (0, np.s_[:, 1])):
        w = np.ones((4, 3), np.float32)
        w[2, 1] = np.nan
        q = jax.jit(rf8.encode, static_argnames="axis")(w, axis=axis)
        y = np.asarray(rf8.dot(jnp.ones((1, 4)), q))
        assert np.isnan(y[bad]).all() and np.isnan(y).sum() == (3 if axis is None else 1)
    rows = jax.jit(rf8.encode, static_argnames="axis")(w, axis=1)
    assert np.isnan(rf8.dot(jnp.ones((1, 4)), rows)).all()
    assert np.isfinite(rf8.einsum("bn,kn->bk", jnp.ones((1, 3)), rows)).sum() == 3
    codes = jnp.arange(256, dtype=jnp.uint8).reshape(1, 256)
    every = rf8.RF8Array(codes, jnp.zeros((1, 1), jnp.int8), jnp.dtype("float32"))
    np.testing.assert_array_equal(rf8.dot(jnp.ones((1, 1)), every), rf8.values()[None])
    np.testing.assert_array_equal(rf8.dot(jnp.ones((2, 1)), every), rf8.values()[None].repeat(2, 0))


@pytest.mark.parametrize(
    ("spec", "x", "q", "axis"),
    [
        ("bsd,dhk->bshk", (2, 3, 8), (8, 4, 5), (0, 2)),
        ("bshk,hkd->bsd", (2, 3, 4, 5), (4, 5, 8), (1,)),
        ("bshk,hkd->bsd", (2, 3, 4, 5), (4, 5, 8), (2,)),
        ("bsd,vd->bsv", (2, 3, 8), (9, 8), (1,)),
        ("ebd,edf->ebf", (3, 2, 8), (3, 8, 5), (1,)),
        ("ebd,edf->ebf", (3, 2, 8), (3, 8, 5), None),
        ("bd,edf->bef", (2, 8), (3, 8, 5), None),
        ("bk,kbn->bn", (4, 8), (8, 4, 3), 0),
        ("kb,nk->nb", (8, 4), (3, 8), None),
        ("b,n->bn", (4,), (3,), None),
    ],
)
def test_einsum(spec, x, q, axis):
    x, q = vectors(*x), made((1, *q))[0] if len(q) == 1 else made(q, axis)
    assert_same(rf8.einsum(spec, x, q), x, values(q), spec)


def test_vmap_and_scan(small_tiles):
    q, x = made((24, 10), 0), vectors(3, 4, 24)
    assert_same(jax.vmap(jax.vmap(lambda v: rf8.dot(v, q)))(x), x, values(q), "abk,kn->abn")
    assert_same(jax.vmap(lambda v: rf8.dot(v, q), 1, 2)(x), x, values(q), "abk,kn->anb")
    dx = jax.vmap(jax.grad(lambda v: rf8.dot(v, q).sum()))(x[0])
    np.testing.assert_allclose(dx, np.tile(values(q).sum(1), (4, 1)), rtol=1e-5, atol=1e-5)
    layers = made((5, 16, 16), (1, 2), spread=1)
    y = jax.vmap(rf8.dot)(vs := vectors(5, 2, 16), layers)
    assert_same(y, vs, values(layers), "lbk,lkn->lbn")

    @jax.jit
    def through(x, layers):
        return jax.lax.scan(lambda x, q: (jnp.tanh(rf8.dot(x, q)), None), x, layers)[0]

    want = x0 = np.asarray(vectors(2, 16), np.float64)
    for w in values(layers):
        want = np.tanh(want @ w)
    np.testing.assert_allclose(through(jnp.asarray(x0, jnp.float32), layers), want, rtol=1e-4, atol=1e-5)
    assert jax.grad(lambda x: through(x, layers).sum())(jnp.asarray(x0, jnp.float32)).shape == (2, 16)


def test_no_temporary_is_as_large_as_the_matrix():
    k = n = 2048
    q = rf8.RF8Array(
        jax.ShapeDtypeStruct((k, n), jnp.uint8), jax.ShapeDtypeStruct((1, n), jnp.int8), jnp.dtype("float32")
    )
    product = jax.jit(rf8.dot)
    back = jax.jit(lambda x, q: jax.grad(lambda x: (rf8.dot(x, q) ** 2).sum())(x))
    for batch in (1, 2, 8, 64):
        x = jax.ShapeDtypeStruct((batch, k), jnp.float32)
        for f in (product, back):
            temporary = f.lower(x, q).compile().memory_analysis().temp_size_in_bytes
            allowed = k * n if batch <= _loops.FEW else 4 * _loops.LARGE_TILE + 8 * batch * (k + n)
            assert temporary < allowed < 4 * k * n / 2, (batch, temporary)


def test_second_derivatives_and_a_second_call(compiled):
    q, x = made((8, 8)), vectors(2, 8)
    f = jax.jit(jax.grad(lambda x: (jax.grad(lambda x: (rf8.dot(x, q) ** 2).sum() / 2)(x) ** 2).sum() / 2))
    gram = values(q) @ values(q).T
    np.testing.assert_allclose(f(x), np.asarray(x, np.float64) @ gram @ gram, rtol=1e-4, atol=1e-3)
    rf8.dot(x, q)
    again = x + 1
    compiled.clear()
    rf8.dot(again, q)
    assert not compiled


@pytest.mark.parametrize("axis", ["columns", "rows"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
@pytest.mark.parametrize("spec", [P(None, "x"), P("x", "y"), P(("x", "y"), None)], ids=str)
def test_sharded_weights_are_used_where_they_lie(axis, kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    k, n = 128, 256
    q = made((k, n), AXES[axis])
    own = P(*(s if e > 1 else None for s, e in zip(spec, q.exponents.shape, strict=True)))
    placed = rf8.RF8Array(
        jax.device_put(q.codes, NamedSharding(mesh, spec)),
        jax.device_put(q.exponents, NamedSharding(mesh, own)),
        q.dtype,
    )
    forward = jax.jit(rf8.dot)
    back = jax.jit(lambda x, q: jax.vjp(lambda x: rf8.dot(x, q), x)[1](jnp.ones_like(rf8.dot(x, q)))[0])
    for batch in (1, 4):
        x = jax.device_put(vectors(batch, k), NamedSharding(mesh, P()))
        assert_same(forward(x, placed), x, values(q))
        assert_same(back(x, placed), np.ones((batch, n)), values(q), "bn,kn->bk")
        for f in (forward, back):
            text = f.lower(x, placed).compile().as_text()
            gathers = [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line]
            assert not [line for line in gathers if "u8[" in line or f"[{k},{n}]" in line], gathers


def test_inside_the_users_own_shard_map():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    q, x = made((32, 16)), vectors(3, 32)

    def here(x, codes, exponents):
        return jax.lax.psum(rf8.dot(x, rf8.RF8Array(codes, exponents, q.dtype)), "x")

    f = jax.shard_map(here, mesh=mesh, in_specs=(P(None, "x"), P("x"), P()), out_specs=P())
    assert_same(jax.jit(f)(x, q.codes, q.exponents), x, values(q))


def test_the_kernel_computes_the_same():
    for axis in ("tensor", "each"):
        q = made((256, 128), AXES[axis])
        arrays, decode = (
            ((q.codes,), _dot._decode)
            if axis == "tensor"
            else (
                (q.codes, q.exponents),
                _dot._decode_each,
            )
        )
        scale = 2.0 ** (float(q.exponents[0, 0]) + 15) if axis == "tensor" else 1.0
        for x in (vectors(3, 256), vectors(17, 256).astype(jnp.bfloat16)):
            y = _kernel.dot(decode, "interpret", x[None], arrays)
            assert y.dtype == jnp.float32
            assert_same(y * scale, x, values(q))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("axis", ["columns", "each"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_lowers_to_a_kernel_elsewhere(platform, axis, dtype):
    q = jax.eval_shape(lambda: rf8.encode(jnp.ones((512, 256)), axis=AXES[axis]))
    f = jax.jit(rf8.dot).trace(jax.ShapeDtypeStruct((4, 512), dtype), q)
    text = f.lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" if platform == "tpu" else "xla.gpu.triton") in text
    odd = jax.eval_shape(lambda: rf8.encode(jnp.ones((500, 256))))  # no whole blocks: by loops
    f = jax.jit(rf8.dot).trace(jax.ShapeDtypeStruct((4, 500), dtype), odd)
    text = f.lower(lowering_platforms=(platform,)).as_text()
    assert "tpu_custom_call" not in text and "triton" not in text


def test_messages_say_what_to_do():
    q = made((4, 6))
    for call in (rf8.dot, lambda x, q: rf8.einsum("bk,kn->bn", x, q)):
        with pytest.raises(TypeError, match="q must be an RF8Array, got ArrayImpl"):
            call(jnp.ones((2, 4)), jnp.ones((4, 6)))
        with pytest.raises(TypeError, match="x must be an array, got an RF8Array: decode it first"):
            call(q, q)
        with pytest.raises(TypeError, match="x must be a floating-point array, got int32"):
            call(jnp.ones((2, 4), jnp.int32), q)
        with pytest.raises(ValueError, match=r"of one size, got shapes \(2, 5\) and \(4, 6\)"):
            call(jnp.ones((2, 5)), q)
        with pytest.raises(ValueError, match="do not fit codes"):
            call(jnp.ones((2, 4)), rf8.RF8Array(q.codes, jnp.zeros((4,), jnp.int8), q.dtype))
    with pytest.raises(ValueError, match=r"needs axes to sum over, got shapes \(\)"):
        rf8.dot(jnp.float32(1), q)
    for spec, message in (
        ("bk,kn", 'like "bk,kn->bn"'),
        ("...k,kn->...n", "letters only"),
        ("bk,kk->b", "q has a letter twice"),
        ("bks,kn->bn", r"give x 3 axes, but its shape is \(2, 4\)"),
        ("bk,kn->b", "'n' must be in the other operand or in the result"),
        ("bk,kn->bm", "'m' of the result is in neither operand"),
    ):
        with pytest.raises(ValueError, match=message):
            rf8.einsum(spec, jnp.ones((2, 4)), q)
