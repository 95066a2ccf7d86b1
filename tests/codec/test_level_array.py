"""LevelArray, and codec.dot and codec.einsum with it, against products with its weights in float64."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec
from ggjax._internal.tiled import _kernel, _loops
from ggjax.codec.serving import _making, _matrices
from ggjax.codec.serving._pieces import Piece
from tests.products import assert_same, vectors

R = np.random.default_rng(5)
KINDS = ("bytes", "halves", "limited", "limited halves", "patched", "patched halves", "words")


def made(shape, kind="bytes", axis=-2, seed=0):
    """An array of one kind, with steps of rows and columns (of all but one axis, and of that one)."""
    rng = np.random.default_rng(seed)
    axis %= len(shape)
    small = "halves" in kind
    levels = rng.integers(-7 if small else -127, 8 if small else 128, shape).astype(np.int16)
    rows = 2.0 ** rng.integers(-3, 3, [n if a <= axis else 1 for a, n in enumerate(shape)])
    columns = 2.0 ** rng.integers(-3, 3, [n if a > axis else 1 for a, n in enumerate(shape)]) * 1.1
    if "patched" in kind:  # beyond: one in every second column
        columns_of_levels = np.moveaxis(levels, axis, -1)
        places = np.broadcast_to(np.arange(shape[axis]), columns_of_levels.shape)
        first = rng.permuted(places, axis=-1) < rng.integers(0, 2, (*columns_of_levels.shape[:-1], 1))
        levels = np.where(np.moveaxis(first, -1, axis), levels * 3 + 500, levels)
    if kind == "words":
        levels = levels * 200
    limit = np.full((1,) * len(shape), 1.3, np.float32) if "limited" in kind else None
    piece = Piece(levels, rows.astype(np.float32), columns.astype(np.float32), limit, axis)
    q = _making.level_array(piece, np.float32, axis)
    assert q.is_packed == small and (q.patches is not None) == ("patched" in kind)
    assert (q.levels.dtype == np.int16) == (kind == "words")
    return q


def values(q):
    """The weights by another way, in float64."""
    levels = np.asarray(q.levels)
    if q.is_packed:
        halves = np.stack(
            [(levels & 15 ^ 8).astype(np.int64) - 8, levels.view(np.int8).astype(np.int64) >> 4], -1
        )
        levels = np.moveaxis(halves, -1, q.axis % q.ndim + 1).reshape(q.shape)
    step = np.asarray(q.row_steps, np.float64) * np.asarray(q.column_steps, np.float64)
    w = levels * (step if q.limit is None else np.minimum(step, np.asarray(q.limit, np.float64)))
    if q.patches is not None:
        rows, found = map(np.asarray, q.patches)
        places = list(np.indices(rows.shape))
        places[q.axis % q.ndim] = rows
        inside = rows < q.shape[q.axis]
        w[tuple(p[inside] for p in places)] = found[inside]
    return w


@pytest.fixture
def few_slots(monkeypatch):
    """Room for patches in small matrices too."""
    monkeypatch.setattr(_making, "SLOTS", 8)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_product_with_decoded_weights(kind, small_tiles, few_slots):
    q = made((102, 14), kind)
    w = values(q)
    np.testing.assert_allclose(q.decode(), w, rtol=3e-7)
    for batch in (1, 17):
        x, y = vectors(batch, 102), vectors(batch, 14)
        found, back = jax.vjp(lambda x: codec.dot(x, q), x)
        assert_same(found, x, w)
        assert_same(back(y)[0], y, w, "bn,kn->bk")
        assert_same(codec.einsum("bn,kn->bk", y, q), y, w, "bn,kn->bk")


def test_odd_and_empty_sizes_and_dtypes():
    q = made((1, 1))
    assert_same(codec.dot(x := vectors(3, 1), q), x, values(q))
    q = made((24, 6), "halves")
    x = vectors(2, 3, 24)
    assert_same(codec.dot(x, q), x, values(q), "abk,kn->abn")
    assert codec.dot(x[0, 0], q).shape == (6,) and codec.dot(x[:0], q).shape == (0, 3, 6)
    assert codec.dot(x[0], q[:, 0]).shape == (3,)
    half = x.astype(jnp.bfloat16)
    assert codec.dot(half, q).dtype == jnp.bfloat16
    y = codec.dot(half, q, preferred_element_type=jnp.float32)
    assert_same(y, half, values(q), "abk,kn->abn")  # added up in float32
    assert jax.grad(lambda x: codec.dot(x, q).sum())(half).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = jnp.asarray(R.standard_normal((3, 24)))
        assert_same(codec.dot(wide, q), wide, values(q), tolerance=1e-14)
    nothing = dataclasses.replace(made((2, 4)), levels=jnp.zeros((0, 4), jnp.int8), row_steps=jnp.ones((1, 1)))
    np.testing.assert_array_equal(codec.dot(jnp.zeros((2, 0)), nothing), np.zeros((2, 4)))


@pytest.mark.parametrize("kind", ["bytes", "halves", "limited halves", "patched halves"])
@pytest.mark.parametrize(
    ("spec", "x", "w", "axis"),
    [
        ("bsd,dhk->bshk", (2, 3, 8), (8, 4, 6), 0),
        ("bshk,hkd->bsd", (2, 3, 4, 6), (4, 6, 8), 1),
        ("bshk,hkd->bsd", (2, 3, 4, 6), (4, 6, 8), 0),  # rows and columns are not those of the steps
        ("bsd,vd->bsv", (2, 3, 8), (10, 8), 0),
        ("ebd,edf->ebf", (3, 2, 8), (3, 8, 5), 1),
        ("bd,edf->bef", (2, 8), (3, 8, 5), 1),
        ("bk,kbn->bn", (4, 8), (8, 4, 3), 0),
        ("kb,nk->nb", (8, 4), (6, 8), 0),
    ],
)
def test_einsum(spec, x, w, axis, kind, monkeypatch):
    monkeypatch.setattr(_making, "SLOTS", 4)
    x, q = vectors(*x), made(w, kind, axis)
    assert_same(codec.einsum(spec, x, q), x, values(q), spec)


@pytest.mark.parametrize("kind", ["halves", "limited", "patched"])
def test_vmap_scan_and_indexing(kind, monkeypatch):
    monkeypatch.setattr(_making, "SLOTS", 8)
    q, x = made((24, 10), kind), vectors(3, 4, 24)
    assert_same(jax.vmap(jax.vmap(lambda v: codec.dot(v, q)))(x), x, values(q), "abk,kn->abn")
    layers = jax.tree.map(lambda *a: jnp.stack(a), *(made((16, 16), kind, seed=0) for _ in range(5)))
    w = values(layers)
    assert layers.shape == (5, 16, 16) and len(layers) == 5
    np.testing.assert_allclose(layers[1].decode(), w[1], rtol=3e-7)
    np.testing.assert_allclose(layers[1:3].decode(), w[1:3], rtol=3e-7)
    assert_same(jax.vmap(codec.dot)(vs := vectors(5, 2, 16), layers), vs, w, "lbk,lkn->lbn")

    @jax.jit
    def through(x, layers):
        return jax.lax.scan(lambda x, q: (jnp.tanh(codec.dot(x, q) / 300), None), x, layers)[0]

    want = x0 = np.asarray(vectors(2, 16), np.float64)
    for layer in w:
        want = np.tanh(want @ layer / 300)
    np.testing.assert_allclose(through(jnp.asarray(x0, jnp.float32), layers), want, rtol=1e-4, atol=1e-5)
    if kind == "patched":
        with pytest.raises(
            IndexError, match=r"only along the axes before axis -2, got \(.*decode\(\) it first"
        ):
            q[:, :3]
    else:
        np.testing.assert_allclose(q[jnp.array([3, 5]), 2:].decode(), values(q)[[3, 5], 2:], rtol=3e-7)


def test_no_temporary_is_as_large_as_the_matrix():
    k = n = 2048
    for kind in ("halves", "limited"):
        q = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), made((k, n), kind))
        for batch in (1, 8, 64):
            x = jax.ShapeDtypeStruct((batch, k), jnp.float32)
            temporary = jax.jit(codec.dot).lower(x, q).compile().memory_analysis().temp_size_in_bytes
            allowed = k * n if batch <= _loops.FEW else 4 * _loops.LARGE_TILE + 8 * batch * (k + n)
            assert temporary < allowed, (kind, batch, temporary)


def test_a_second_call_does_not_compile(compiled):
    q, x = made((8, 8), "halves"), vectors(2, 8)
    codec.dot(x, q)
    again = x + 1
    compiled.clear()
    codec.dot(again, q)
    assert not compiled


@pytest.mark.parametrize("kind", ["halves", "limited", "patched"])
@pytest.mark.parametrize("type_", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
@pytest.mark.parametrize("spec", [P(None, "x"), P("x", "y")], ids=str)
def test_sharded_weights_are_used_where_they_lie(kind, type_, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(type_,) * 2)
    k, n = 128, 256
    q = made((k, n), kind)

    def put(a):
        own = P(*(s if size > 2 else None for s, size in zip(spec, a.shape, strict=True)))
        return jax.device_put(a, NamedSharding(mesh, own))

    placed = jax.tree.map(put, q)
    forward = jax.jit(codec.dot)
    back = jax.jit(lambda x, q: jax.vjp(lambda x: codec.dot(x, q), x)[1](jnp.ones_like(codec.dot(x, q)))[0])
    x = jax.device_put(vectors(4, k), NamedSharding(mesh, P()))
    assert_same(forward(x, placed), x, values(q))
    assert_same(back(x, placed), np.ones((4, n)), values(q), "bn,kn->bk")
    np.testing.assert_allclose(placed.decode(), values(q), rtol=3e-7)
    for f in (forward, back):
        text = f.lower(x, placed).compile().as_text()
        gathers = [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line]
        assert not [g for g in gathers if any(s in g for s in ("u8[", "s8[", f"[{k},{n}]"))], gathers


def test_the_kernel_computes_the_same():
    for kind in ("bytes", "halves", "limited", "limited halves"):
        q = made((256, 128), kind)
        m = q.grouped((), (0,), (1,))[0]
        ones = jnp.ones(256) if m.rows is None else m.rows
        for dtype in (jnp.float32, jnp.bfloat16):
            x = vectors(3, 256).astype(dtype)
            parts = _matrices.apart((x.astype(jnp.float32) * ones[None]), m.cut)
            y = _kernel.dot(m.decode, "interpret", parts, m.arrays)
            assert_same(y * m.columns[None], x, values(q))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("kind", ["bytes", "halves", "limited halves"])
def test_it_lowers_to_a_kernel_elsewhere(platform, kind):
    q = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), made((512, 256), kind))
    f = jax.jit(codec.dot).trace(jax.ShapeDtypeStruct((4, 512), jnp.float32), q)
    text = f.lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" if platform == "tpu" else "xla.gpu.triton") in text


def test_it_is_like_an_array_but_for_arithmetic():
    q = made((4, 6), "halves")
    assert (q.shape, q.ndim, q.size, q.nbytes) == ((4, 6), 2, 24, 12 + 16 + 24)
    assert repr(q).startswith(
        "LevelArray(levels=uint8(2, 6), row_steps=float32(4, 1), column_steps=float32(1, 6)"
    )
    assert q.sharding == q.levels.sharding and q.decode(jnp.bfloat16).dtype == jnp.bfloat16
    back = pickle.loads(pickle.dumps(q))
    np.testing.assert_array_equal(back.decode(), q.decode())
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.levels = None
    message = r"no array of floats: multiply with codec\.dot.*w\.decode\(\)"
    for f in (lambda: q + 1, lambda: jnp.ones((1, 4)) @ q, lambda: np.ones(6) * q, lambda: np.asarray(q)):
        with pytest.raises(TypeError, match=message):
            f()
    for f in (jnp.sum, jnp.asarray, jax.jit(lambda q: jnp.tanh(q))):
        with pytest.raises(TypeError):
            f(q)


def test_messages_say_what_to_do():
    q = made((4, 6))
    for call in (codec.dot, lambda x, w: codec.einsum("bk,kn->bn", x, w)):
        with pytest.raises(TypeError, match="w must be weights.*got int32"):
            call(jnp.ones((2, 4)), jnp.ones((4, 6), jnp.int32))
        with pytest.raises(TypeError, match="x must be an array, got LevelArray: decode it first"):
            call(q, q)
        with pytest.raises(TypeError, match="x must be a floating-point array, got int32"):
            call(jnp.ones((2, 4), jnp.int32), q)
        with pytest.raises(ValueError, match=r"of one size, got shapes \(2, 5\) and \(4, 6\)"):
            call(jnp.ones((2, 5)), q)
        for change, message in (
            (
                {"row_steps": jnp.ones((3, 1))},
                r"row_steps of shape \(3, 1\) do not fit weights of shape \(4, 6\)",
            ),
            ({"row_steps": jnp.ones(4)}, "row_steps of shape"),
            (
                {"levels": jnp.ones((4, 6))},
                "levels must be int8, int16, or uint8 for two in a byte, got float32",
            ),
            ({"column_steps": jnp.ones((1, 6), jnp.int8)}, "column_steps must be float32, got int8"),
            ({"levels": jnp.ones((4, 6), jnp.uint8), "axis": -3}, "axis must be a negative one"),
            ({"dtype": jnp.dtype("int8")}, "dtype must be a floating one"),
        ):
            with pytest.raises((TypeError, ValueError), match="w: " + message):
                call(jnp.ones((2, 4)), dataclasses.replace(q, **change))
