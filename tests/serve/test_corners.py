"""Narrow indices, scans over rows, dtypes in between, and leaves that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ggjax import rf8, serve
from ggjax.codec import compress
from tests.app.fresh import printed_by
from tests.serve.test_in_place import array, levels, patched

LONG = array(300, 2)
INDICES = {"uint8": [3, 255], "int8": [3, 127], "int16": [3, -1], "uint32": [3, 2**32 - 1]}
LOOKUPS = {
    "take": lambda w, at: jnp.take(w, at, axis=0),
    "clip": lambda w, at: jnp.take(w, at, axis=0, mode="clip"),
    "one": lambda w, at: lax.dynamic_index_in_dim(w, at[1], keepdims=False),
}


@pytest.mark.parametrize("dtype", INDICES)
@pytest.mark.parametrize("name", LOOKUPS)
def test_indices_of_any_dtype(name, dtype):
    q, at, f = rf8.encode(LONG), jnp.asarray(INDICES[dtype], dtype), LOOKUPS[name]
    np.testing.assert_array_equal(serve.in_place(f)(q, at), f(rf8.decode(q), at))


FORMS = {
    "levels": lambda: levels(32, 8),
    "half a byte": lambda: levels(32, 8, bits=4),
    "12 bits": lambda: levels(32, 8, bits=12),
    "patched": lambda: patched(32, 8),
}
ELEMENTWISE = {
    "rows": lambda w: lax.scan(lambda c, row: (c, 2 * row), 0, w)[1],
    "map of rows": lambda w: lax.map(lambda row: row.sum(), w),
    "columns": lambda w: lax.map(lambda column: 2 * column, w.T),
    "by way of bfloat16": lambda w: 2 * w.astype(jnp.bfloat16).astype(jnp.float32),
    "by way of float16": lambda w: 2 * w.astype(jnp.float16).astype(jnp.bfloat16),
    "platforms": lambda w: lax.platform_dependent(w, cpu=lambda w: w[0], default=lambda w: w[1]),
    "none of a new axis": lambda w: lax.slice(w[None], (0, 0, 0), (0, *w.shape)),
    "all of a new axis": lambda w: lax.slice(w[None], (0, 0, 0), (1, *w.shape)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_levels_and_twelve_bits(name, form):
    q, f = FORMS[form](), ELEMENTWISE[name]
    found, want = (jax.jit(g)(w) for g, w in ((serve.in_place(f), q), (f, q.decode())))
    assert found.dtype == want.dtype
    np.testing.assert_array_equal(found, want)


def test_platforms_are_chosen_as_in_the_program():
    served = serve.in_place(ELEMENTWISE["platforms"])
    assert "branches_platforms=(('cpu',), None)" in str(jax.make_jaxpr(served)(levels(32, 8)))


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
def test_a_dtype_that_jax_does_not_have_stays_small():
    q = rf8.encode(LONG).replace(dtype=jnp.dtype("float64"))
    assert serve.in_place(lambda w: w.T.T)(q) is q


def test_apply_leaves_all_names_to_the_model():
    def f(w, *, model, variables):
        return w * model + variables

    q = rf8.encode(jnp.ones((2, 2)))
    assert serve.apply(f, q, model=3.0, variables=jnp.ones(())).tolist() == [[4.0, 4.0], [4.0, 4.0]]


def test_messages_name_the_leaf():
    q = levels(4, 2, bits=12)
    damaged = dataclasses.replace(q, base=jnp.zeros((3, 1), jnp.int32))
    with pytest.raises((TypeError, ValueError), match="^leaf 'layer/kernel': .*shapes"):
        serve.in_place(lambda tree: tree)({"layer": {"kernel": damaged}})
    coded = compress({"kernel": array(64, 64)}, step=1 / 64, coder="zstd")
    f = serve.in_place(lambda tree: tree["kernel"] + 1)
    assert f(coded).shape == (64, 64)
    with pytest.raises(ValueError, match="^leaf 'kernel': coded by 'zstd', which decodes on the host only"):
        jax.jit(f)(coded)


def test_nnx_is_loaded_where_it_is_used():
    code = "import sys; from ggjax import serve; serve.in_place, serve.apply; print('flax.nnx' in sys.modules)"
    assert printed_by(code) == "False\n"
