"""Functions of small arrays compute what they compute of the decoded ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ggjax import codec, rf8, serve
from ggjax.codec import compress
from ggjax.codec.serving import _patches

R = np.random.default_rng(3)


def array(*shape):
    return jnp.asarray(R.standard_normal(shape), jnp.float32)


W, X = array(3, 8, 6), array(4, 8)
AXES = {"tensor": None, "columns": 1, "rows": 2, "layers": (1, 2), "each": ()}


def looped(w, x):
    return lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y @ w[i] @ w[i].T), x)


IN_PLACE = {
    "matmul": lambda w, x: x @ w[0],
    "from the left": lambda w, x: w[1].T @ x.T,
    "transposed": lambda w, x: (x @ w[0]) @ w[0].T,
    "einsum": lambda w, x: jnp.einsum("bd,edf->ebf", x, w),
    "einsum over experts": lambda w, x: jnp.einsum("ed,edf->ef", x[:3], w),
    "cast": lambda w, x: x.astype(jnp.bfloat16) @ w[0].astype(jnp.bfloat16),
    "preferred": lambda w, x: jnp.dot(x, w[2], preferred_element_type=jnp.bfloat16),
    "halves": lambda w, x: [x @ part for part in jnp.split(w[0], 2, axis=1)],
    "part": lambda w, x: x[:, 1:5] @ w[0, 1:5, ::2],
    "axes swapped and part": lambda w, x: x[:, :6] @ w.transpose(2, 1, 0)[:, 3, 1:],
    "axes swapped": lambda w, x: jnp.einsum("bd,fd->bf", x, w.transpose(2, 0, 1)[:, 1]),
    "take": lambda w, _: jnp.take(w, jnp.array([[0, 2], [-1, 7]]), axis=0),
    "take, clipped": lambda w, _: jnp.take(w[0], jnp.array([0, 7, 9]), axis=0, mode="clip"),
    "take of one": lambda w, _: jnp.take(w[0].astype(jnp.bfloat16), jnp.int32(5), axis=0),
    "grouped": lambda w, x: jnp.einsum("bd,dhk->bhk", x, w[0].reshape(8, 2, 3)),
    "jit": lambda w, x: jax.jit(lambda w, x: x @ w[0])(w, x),
    "vmap": lambda w, x: jax.vmap(lambda w: jnp.tanh(x @ w))(w),
    "scan": lambda w, x: lax.scan(lambda y, w: (jnp.tanh(y @ w @ w.T), y), x, w),
    "scan, axes swapped": lambda w, x: lax.scan(lambda y, w: (y @ w.T @ w, y), x, w.transpose(0, 2, 1)),
    "scan, reversed": lambda w, x: lax.scan(lambda y, w: (y @ w @ w.T, None), x, w, reverse=True),
    "scan over x": lambda w, x: lax.map(lambda x: x @ w[0], x),
    "loop": looped,
    "while": lambda w, x: lax.while_loop(lambda y: abs(y @ w[0]).sum() < 100, lambda y: 2 * y, abs(x)),
    "cond": lambda w, x: lax.cond(x[0, 0] > 0, lambda w: x @ w[0], lambda w: x @ w[1], w),
    "switch": lambda w, x: lax.switch(2, [lambda w, i=i: x @ w[i] for i in range(3)], w),
    "checkpoint": lambda w, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w[0]))(w, x),
    "stop_gradient": lambda w, x: x @ lax.stop_gradient(w)[0],
    "new axes": lambda w, x: jnp.matmul(x[None], w[None, 0]),
    "barrier": lambda w, x: x @ lax.optimization_barrier((w, x))[0][0],
}
DECODED = {
    "arithmetic": lambda w, x: x @ (2 * w[0] + 1),
    "sum": lambda w, x: (w**2).sum() * x,
    "products of two": lambda w, x: x @ (w[0] @ w[1].T),
    "integers": lambda w, _: lax.dot(jnp.ones((2, 8), jnp.int32), w[0], preferred_element_type=jnp.float32),
    "to 8 bits": lambda w, x: x @ w[0].astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "to integers": lambda w, _: w.astype(jnp.int32),
    "other columns": lambda w, _: jnp.take(w[0], jnp.array([0, 2]), axis=1),
    "parts at run time": lambda w, x: lax.dynamic_slice(w[0], (x[0, 0].astype(jnp.int32), 1), (4, 2)),
    "scan over another axis": lambda w, x: lax.scan(lambda y, w: (y, y @ w.T), x[:, :6], w.transpose(1, 0, 2)),
    "carried": lambda w, _: lax.fori_loop(0, 2, lambda _, w: w + 1, w),
    "derivative of its own": lambda w, _: jax.nn.relu(w),
    "results of a loop": lambda w, x: lax.scan(lambda y, w: (y, w.T), x, w),
    "concatenated": lambda w, x: x @ jnp.concatenate([w[0], w[1]], axis=1),
    "whole, swapped": lambda w, _: w.transpose(1, 0, 2),
}


INDEXED = ("transposed", "take", "axes swapped and part", "scan", "halves")
CASES = [(name, "tensor") for name in IN_PLACE] + [(n, a) for n in INDEXED for a in ("columns", "each")]
CASES += [("part", "rows"), ("vmap", "layers"), ("scan", "layers"), ("loop", "rows")]


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_multiplies_in_place(name, axis, decoded, assert_same):
    q, f = rf8.encode(W, axis=AXES[axis]), IN_PLACE[name]
    found = jax.jit(serve.in_place(f))(q, X)
    rows = [s for s in decoded if s == q.shape or s in (W[0].shape, W[0].T.shape)]
    assert not rows or name.startswith("take")
    tolerance = 0.01 if any(y.dtype == jnp.bfloat16 for y in jax.tree.leaves(found)) else 2e-6
    assert_same(found, f(rf8.decode(q), X), tolerance)


@pytest.mark.parametrize("name", DECODED)
def test_decodes_where_it_must(name, decoded, assert_same):
    q, f = rf8.encode(W, axis=1), DECODED[name]
    found = jax.jit(serve.in_place(f))(q, X)
    assert decoded
    assert_same(found, f(rf8.decode(q), X))


def test_rows_are_looked_up_before_they_are_decoded(decoded):
    q = rf8.encode(array(100, 4))
    serve.in_place(lambda w: jnp.take(w, jnp.array([[3, 5]]), axis=0))(q)
    assert decoded == [(1, 2, 4)]


def test_without_jit_with_other_arguments_and_without_small_ones(assert_same):
    q = rf8.encode(W)

    @serve.in_place
    def f(tree, x, mode, *, scale=None):
        """What f does."""
        y = x @ tree["w"][0] * (1 if scale is None else scale)
        return {"y": y if mode == "as it is" else -y, "tree": tree["w"], "nothing": None}

    tree = {"w": q, "name": "layer"}
    found, want = f(tree, X, "as it is", scale=2.0), 2 * X @ rf8.decode(q)[0]
    assert f.__doc__ == "What f does." and found["tree"] is q and found["nothing"] is None
    assert_same(found["y"], want)
    assert_same(f(tree | {"w": rf8.decode(q)}, X, "negative", scale=2.0)["y"], -want)


def test_derivatives_and_mixed_trees(assert_same):
    q, low = rf8.encode(W), {"a": array(8, 2), "b": array(2, 6)}  # as LoRA has them

    def f(w, low, x):
        return jnp.sum(jnp.tanh(x @ w[0] + x @ low["a"] @ low["b"]) ** 2)

    found = jax.jit(jax.value_and_grad(serve.in_place(f), argnums=(1, 2)))(q, low, X)
    assert_same(found, jax.value_and_grad(f, argnums=(1, 2))(rf8.decode(q), low, X), 1e-5)
    each = jax.vmap(jax.grad(serve.in_place(f), argnums=2), in_axes=(None, None, 0))(q, low, X[:, None])
    assert_same(each[:, 0], found[1][1], 1e-5)


def test_closed_over_in_loops_of_the_caller(assert_same):
    q = rf8.encode(W, axis=(1, 2))
    step = serve.in_place(lambda w, x: jnp.tanh(x @ w @ w.T))
    found = jax.jit(lambda q, x: lax.fori_loop(0, 3, lambda i, y: step(q[i], y), x))(q, X)
    assert_same(found, looped(rf8.decode(q), X), 1e-5)


def test_effects_and_names_stay(capsys):
    def f(w, x):
        with jax.named_scope("my_layer"):
            y = x @ w
        jax.debug.print("sum {}", jnp.sum(w * 0))
        return y

    served, q = jax.jit(serve.in_place(f)), rf8.encode(W[0])
    jax.block_until_ready(served(q, X))
    jax.effects_barrier()
    assert capsys.readouterr().out == "sum 0.0\n"
    assert "my_layer" in served.lower(q, X).compile().as_text()


def test_no_temporary_is_as_large_as_a_matrix():
    n, layers = 2048, 2
    q = jax.eval_shape(lambda: rf8.encode(jnp.zeros((layers, n, n)), axis=(1, 2)))
    x = jax.ShapeDtypeStruct((1, n), jnp.float32)
    programs = (
        looped,
        lambda w, x: lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, w)[0],
        lambda w, x: lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w[0]), x),  # not decoded ahead of the loop
    )
    for f in programs:
        compiled = jax.jit(serve.in_place(f)).lower(q, x).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * n * n  # floats would be 4 times n^2 bytes


def test_messages_name_the_leaf():
    q = rf8.encode(W)
    damaged = rf8.RF8Array(q.codes, q.exponents[0], q.dtype)
    f = serve.in_place(lambda tree, x: x)
    with pytest.raises(ValueError, match=r"^leaf 'layer/kernel': exponents of shape \(1, 1\) do not fit"):
        f({"layer": {"kernel": damaged}}, X)


def levels(*shape, bits=8):
    w = {"kernel": (0.1 * array(*shape)).astype(jnp.bfloat16 if bits == 12 else jnp.float32)}
    return codec.resident(w, bits=bits, batch_axis=0 if len(shape) > 2 else ())["kernel"]


def patched(*shape):
    """Levels, and beside them two weights of every third column."""
    q, where = levels(*shape), np.zeros(shape, bool)
    where[..., 2, ::3] = where[..., 5, ::3] = True
    patches = _patches.of_mask(where, np.full(where.sum(), 0.5, np.float32), where.ndim - 2)
    return dataclasses.replace(q, levels=jnp.where(where, 0, q.levels).astype(jnp.int8), patches=patches)


FORMS = {
    "levels": lambda: levels(3, 32, 32),
    "half a byte": lambda: levels(3, 32, 32, bits=4),
    "12 bits": lambda: levels(3, 32, 32, bits=12),
    "patched": lambda: patched(3, 32, 32),
    "coded layers": lambda: codec.layers(0.1 * array(3, 32, 32)),
    "compressed": lambda: compress({"w": 0.1 * array(3, 32, 32)}, step=1 / 64).tree["w"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["transposed", "part", "scan", "loop", "cast"])
def test_other_small_arrays(name, form, decoded, assert_same):
    q, f = FORMS[form](), IN_PLACE[name]
    x = array(4, 32).astype(q.dtype)
    found = jax.jit(serve.in_place(f))(q, x)
    assert not decoded or form == "compressed" or name not in ("transposed", "scan", "loop")
    assert_same(found, f(serve.tree_decode(q), x), 0.02 if name == "cast" or form == "12 bits" else 1e-5)


def test_rows_of_levels(decoded):
    q, at = levels(32, 16), jnp.array([[2, 5], [30, -1]])
    found = serve.in_place(lambda w: jnp.take(w, at, axis=0))(q)
    assert decoded == [(2, 2, 16)]
    np.testing.assert_array_equal(found, q.decode()[at])


def test_a_compressed_tree_stands_for_what_was_compressed(decoded, assert_same):
    params = {"a": {"w": array(32, 48)}, "b": array(48, 32)}
    small = compress(params, step=1 / 64)
    found = jax.jit(serve.in_place(lambda p, x: x @ p["a"]["w"] @ p["b"]))(small, array(2, 32) * 0 + 1)
    assert not decoded  # codec.einsum does that
    floats = serve.tree_decode(small)
    assert_same(found, jnp.ones((2, 32)) @ floats["a"]["w"] @ floats["b"], 1e-5)
