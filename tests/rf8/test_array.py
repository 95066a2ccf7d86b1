"""RF8Array as the array it stands for: views of it, operators, libraries that carry it, and its invariants."""

import functools
import operator

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ggjax import rf8

F32 = jnp.dtype("float32")


def made(shape, shared=(), seed=0):
    """An RF8Array of NumPy arrays (which index like JAX's, without compiling), one exponent along some axes."""
    r = np.random.default_rng(seed)
    codes = r.choice([c for c in range(256) if c == 0 or c & 7], shape).astype(np.uint8)
    exponents = [1 if a in shared else n for a, n in enumerate(shape)]
    return rf8.RF8Array(codes, r.integers(-20, 20, exponents).astype(np.int8), F32)


def values(q):
    """What q stands for, in float64, without the package's decoding; the exponents are broadcast."""
    return rf8.values()[np.asarray(q.codes)] * 2.0 ** np.asarray(q.exponents, np.float64)


SHAPE = (3, 4, 2)
INDICES = st.one_of(
    hnp.basic_indices(SHAPE, allow_newaxis=True, allow_ellipsis=True),
    hnp.integer_array_indices(SHAPE),
    st.tuples(st.integers(0, 2), st.just(slice(None)), st.just(np.array([[0], [1]]))),
    st.tuples(st.just(np.array([[0], [2]])), st.just(np.array([1, 3, 0]))),
    hnp.arrays(bool, SHAPE[:2]),
    st.tuples(st.just(...), hnp.arrays(bool, SHAPE[1:])),
)


@settings(max_examples=300, deadline=None)
@given(INDICES, st.sets(st.integers(0, 2)))
def test_an_index_takes_codes_and_exponents_alike(index, shared):
    q = made(SHAPE, shared)
    part = q[index]
    assert np.ndim(part.exponents) == np.ndim(part.codes)
    assert all(e in (1, n) for e, n in zip(np.shape(part.exponents), np.shape(part.codes), strict=True))
    np.testing.assert_array_equal(values(part), values(q)[index])
    if len(shared) == 3:  # one exponent stays one
        assert np.size(part.exponents) == 1


def test_indices_on_a_device_and_under_jit():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4)) * [[1], [9], [99]], jnp.float32)
    q = rf8.encode(x, axis=1)
    want = np.asarray(q)
    part = jax.jit(lambda q, i: q[i])(q, 2)
    rf8.validate(part)
    np.testing.assert_array_equal(part, want[2])
    np.testing.assert_array_equal(jax.vmap(lambda i: q[i])(jnp.array([2, 0])), want[[2, 0]])
    looped = jax.lax.fori_loop(0, 3, lambda i, total: total + q[i].astype(jnp.float32), jnp.zeros(4))
    np.testing.assert_allclose(looped, want.sum(0), rtol=1e-6)
    assert len(q) == 3 and [r.shape for r in q] == [(4,)] * 3
    for bad in (True, np.True_, jnp.array(True)):
        with pytest.raises(IndexError, match="a single bool is no index to a coded array.*decode it first"):
            q[bad]
    with pytest.raises(IndexError):
        q[0, 0, 0]
    with pytest.raises(TypeError, match="without dimensions has no length"):
        len(q[0, 0])


@pytest.mark.parametrize(
    ("shared", "new", "exponents"),
    [
        ({0, 1, 2}, (4, 6), (1, 1)),
        ({0, 1, 2}, (24,), (1,)),
        ({0, 1, 2}, (2, 2, 2, 3, 1), (1,) * 5),
        ({1, 2}, (2, 12), (2, 1)),
        ({1, 2}, (1, 2, 3, 4), (1, 2, 1, 1)),
        ({2}, (6, 4), (6, 1)),
        ({0, 1}, (6, 2, 2), (1, 2, 2)),
        (set(), (4, -1), (4, 6)),
    ],
)
def test_reshape_takes_exponents_along(shared, new, exponents):
    q = made((2, 3, 4), shared)
    for r in (q.reshape(new), q.reshape(*new)):
        assert r.exponents.shape == exponents
        np.testing.assert_array_equal(values(r), values(q).reshape(new))
    np.testing.assert_array_equal(values(r.T), values(q).reshape(new).T)


def test_reshape_says_when_it_cannot():
    q = made((2, 3, 4), {1, 2})
    for new in ((24,), (3, 2, 4), (4, 6)):
        with pytest.raises(ValueError, match=r"exponents of shape \(2, 1, 1\) do not follow .* decode first"):
            q.reshape(new)
    with pytest.raises(ValueError):
        q.reshape(5, 5)
    empty = rf8.encode(jnp.zeros((0, 3)), axis=0).reshape(3, 0, 2)
    rf8.validate(empty)
    assert empty.shape == (3, 0, 2)
    assert made((1, 1)).reshape(()).exponents.shape == () and made(()).reshape(1, 1).shape == (1, 1)


def test_sizes_and_texts():
    q = rf8.encode(jnp.ones((3, 5), jnp.bfloat16), axis=0)
    assert (q.shape, q.ndim, q.size, q.nbytes, q.dtype) == ((3, 5), 2, 15, 20, jnp.bfloat16)
    assert q.sharding == q.codes.sharding
    assert repr(q) == "RF8Array(codes=uint8(3, 5), exponents=int8(1, 5), dtype=bfloat16)"
    assert "'a'" in repr(rf8.RF8Array("a", None, F32))
    assert q.astype(jnp.float32).dtype == jnp.float32


def test_numpy_and_jax_numpy_see_the_decoded_array():
    q = rf8.encode(jnp.asarray(np.random.default_rng(2).standard_normal((3, 3)), jnp.float32), axis=0)
    w, x, host = rf8.decode(q), jnp.arange(9.0).reshape(3, 3), np.arange(9, dtype=np.float32).reshape(3, 3)
    got = np.asarray(q)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, w)
    assert np.array(q, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy=False cannot be had"):
        np.array(q, copy=False)
    pairs = [
        (x @ q, x @ w),
        (q @ x, w @ x),
        (host @ q, host @ w),
        (q @ host, w @ host),
        (q + x, w + x),
        (host - q, host - w),
        (q - 1, w - 1),
        (2 * q, 2 * w),
        (x / q, x / w),
        (jnp.einsum("ij,jk->ik", x, q), x @ w),
        (jnp.sum(q, axis=0), jnp.sum(w, axis=0)),
        (jnp.stack([q, q]), jnp.stack([w, w])),
        (jax.jit(lambda a, b: a @ b)(x, q), x @ w),
        (jax.vmap(lambda row, w: row @ w, (0, None))(x, q), x @ w),
        (jax.grad(lambda a: (a @ q).sum())(x), jax.grad(lambda a: (a @ w).sum())(x)),
    ]
    for i, (a, b) in enumerate(pairs):
        assert isinstance(a, jax.Array) and a.dtype == jnp.float32, i
        np.testing.assert_array_equal(a, b, err_msg=str(i))
    with pytest.raises(ValueError, match="__jax_array__"):
        jax.lax.dot(x, q)  # never the codes in place of the weights


def test_dot_computes_in_the_dtype_of_x():
    x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.array([[0.5, 0.3], [0.2, -1.0], [0.0, 0.1]])
    q = rf8.encode(w)
    y = rf8.dot(x, q)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), np.ones((2, 3)) @ values(q), rtol=2**-7)


def test_a_flax_layer_takes_an_encoded_kernel():
    layer, x = nn.Dense(4), jnp.ones((2, 3))
    params = layer.init(jax.random.key(0), x)
    small = rf8.tree_encode(params, mask=lambda t: jax.tree.map(lambda w: w.ndim == 2, t))
    np.testing.assert_array_equal(layer.apply(small, x), layer.apply(rf8.tree_decode(small), x))


def test_any_leaf_may_stand_in_its_place():
    """Transformations put masks, shapes, specs and names where the arrays were."""
    q = rf8.encode(jnp.ones((2, 3)))
    for f in (str, lambda x: None, lambda x: True, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), type):
        made = jax.tree.map(f, q)
        assert isinstance(made, rf8.RF8Array) and repr(made)
    abstract = jax.eval_shape(functools.partial(rf8.encode, axis=0), jax.ShapeDtypeStruct((5, 2), jnp.bfloat16))
    assert (abstract.shape, abstract.exponents.shape, abstract.nbytes) == ((5, 2), (1, 2), 12)
    rf8.validate(abstract)
    assert jax.eval_shape(rf8.decode, abstract).dtype == jnp.bfloat16
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path({"w": q})]
    assert paths == ["['w'].codes", "['w'].exponents"]


def test_checkpoints_of_flax_and_orbax(tmp_path):
    tree = {"w": rf8.encode(jnp.linspace(-1, 1, 6).reshape(2, 3), axis=0), "b": jnp.ones(2)}
    blank = jax.tree.map(jnp.zeros_like, tree)
    back = {"flax": flax.serialization.from_bytes(blank, flax.serialization.to_bytes(tree))}
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "saved", tree)
        saver.wait_until_finished()
        back["orbax"] = saver.restore(tmp_path / "saved", jax.eval_shape(lambda: tree))
    for got in back.values():
        assert got["w"].dtype == jnp.float32
        rf8.validate(got["w"])
        jax.tree.map(np.testing.assert_array_equal, got, tree)
        np.testing.assert_array_equal(rf8.decode(got["w"]), rf8.decode(tree["w"]))


def test_decode_refuses_what_it_would_misread():
    q = rf8.encode(jnp.ones((4, 4)))
    with pytest.raises(TypeError, match="q must be an RF8Array, got ndarray"):
        rf8.decode(np.ones(3, np.uint8))
    with pytest.raises(TypeError, match="dtype must be a floating one of at least 8 bits, got int32"):
        rf8.decode(q, jnp.int32)
    for bad, error in (
        (
            rf8.RF8Array(q.codes, jnp.zeros(4, jnp.int8), F32),
            ValueError,
        ),  # one a layer, which would go by column
        (rf8.RF8Array(q.codes, jnp.int8(0), F32), ValueError),
        (rf8.RF8Array(q.codes.astype(jnp.int32), q.exponents, F32), TypeError),
    ):
        for call in (rf8.decode, rf8.validate, jnp.asarray, np.asarray, lambda q: rf8.tree_decode([q])):
            with pytest.raises(error, match="do not fit codes|codes must be uint8"):
                call(bad)


def test_validate_names_what_is_wrong():
    codes, zero = np.full((2, 3), 3, np.uint8), np.zeros((1, 1), np.int8)
    rf8.validate(rf8.RF8Array(codes, zero, F32))
    rf8.validate(rf8.RF8Array(codes, np.full((2, 1), 127, np.int8), F32))
    with pytest.raises(TypeError, match="w must be an RF8Array, got dict"):
        rf8.validate({}, "w")
    with pytest.raises(TypeError, match="codes must be uint8 and exponents int8, got int32 and int8"):
        rf8.validate(rf8.RF8Array(codes.astype(np.int32), zero, F32))
    with pytest.raises(TypeError, match="codes must be uint8 and exponents int8, got uint8 and str"):
        rf8.validate(rf8.RF8Array(codes, "a", F32))
    with pytest.raises(TypeError, match="dtype must be a floating one of at least 8 bits, got int32"):
        rf8.validate(rf8.RF8Array(codes, zero, jnp.dtype("int32")))
    for shape in ((), (3,), (2, 2), (1, 1, 1)):
        with pytest.raises(ValueError, match=r"exponents of shape .* do not fit codes of shape \(2, 3\)"):
            rf8.validate(rf8.RF8Array(codes, np.zeros(shape, np.int8), F32))
    for exponent in (-126, 114):
        with pytest.raises(ValueError, match=rf"exponents must be in \[-125, 113\] or 127, got {exponent}"):
            rf8.validate(rf8.RF8Array(codes, zero + np.int8(exponent), F32))
    for code, exponent, message in (
        (0x08, 0, "1 reserved codes and 0 codes beyond float32"),
        (0x80, 0, "1 reserved codes and 0 codes beyond float32"),
        (0x7B, 113, "0 reserved codes and 1 codes beyond float32"),
        (0x7A, 113, None),
    ):
        some = codes.copy()
        some[0, 0] = code
        q = rf8.RF8Array(some, zero + np.int8(exponent), F32)
        if message is None:
            rf8.validate(q, "w")
        else:
            with pytest.raises(ValueError, match="w: " + message):
                rf8.validate(q, "w")


def test_operators_are_those_of_the_decoded_array():
    q = rf8.encode(jnp.array([[0.5, -0.75, 0.0]]))
    x = np.asarray(q)
    for f in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.pow):
        np.testing.assert_array_equal(
            f(q, 0.5 if f is not operator.pow else 2), f(x, 0.5 if f is not operator.pow else 2)
        )
    np.testing.assert_array_equal(q == q, np.ones((1, 3), bool))
    np.testing.assert_array_equal(-q, -x)
    np.testing.assert_array_equal(abs(q), abs(x))
    assert float(q[0, 0]) == 0.5
    with pytest.raises(TypeError, match="unhashable"):
        hash(q)
