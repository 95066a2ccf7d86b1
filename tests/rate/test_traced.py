"""Rates of traced values: under jit and the other transformations, with NaN where errors cannot be raised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import rate
from ggjax._internal import pack
from ggjax.rate import _traced
from tests.rate.reference import TRACED, tree_of


@pytest.mark.parametrize("step", [2.0**-13, 0.003])
def test_under_jit_as_outside(step):
    tree = tree_of(0.7)
    for code, f in TRACED.items():
        traced, eager = f(tree, step), rate.bits(tree, step, code=code)
        np.testing.assert_allclose(traced, eager, rtol=2e-6, err_msg=code)
        assert traced.dtype == eager.dtype == jnp.float32 and traced.shape == eager.shape == ()


def test_a_second_call_does_not_trace():
    tree = tree_of()
    traces = []

    @jax.jit
    def entropy(tree, step):
        traces.append(step)
        return rate.bits(tree, step)

    entropy(tree, 0.01), entropy(tree, 0.011)
    assert len(traces) == 1


def test_bad_numbers_under_jit_give_nan():
    for code, f in TRACED.items():
        for x, step in (([1.0, np.nan], 0.1), ([1.0, np.inf], 0.1), ([1.0, 2.0], 0.0), ([1.0, 2.0], -0.1)):
            assert jnp.isnan(f(jnp.array(x), step)), (code, x, step)
        assert jnp.isnan(f(jnp.array([1.0, 2.0]), 1e-10))


PACKED = {c: jax.jit(functools.partial(_traced.traced_bits, code=c, packs=True)) for c in ("entropy", "gg")}


def many_leaves(n):
    """Distinct shapes of two dtypes, in NumPy: jax would compile a conversion for each."""
    r = np.random.default_rng(0)
    shapes = [(3 + i,) if i % 2 else (2 + i // 7, 3) for i in range(n)]
    dtypes = [jnp.bfloat16 if i % 5 else np.float32 for i in range(n)]
    return [(0.1 * r.standard_normal(s)).astype(d) for s, d in zip(shapes, dtypes, strict=True)]


def test_packed_leaves_count_the_same():
    leaves = [*many_leaves(40), jnp.float32(0.2), jnp.zeros((0, 3))]
    for code, f in PACKED.items():
        np.testing.assert_allclose(f(leaves, 0.003), rate.bits(leaves, 0.003, code=code), rtol=2e-6)
    leaves[7][0] = np.nan
    assert jnp.isnan(PACKED["entropy"](leaves, 0.003))


def test_programs_of_many_small_leaves_are_small():
    """What takes long to compile is a scatter for every leaf."""

    def scatters(n, **options):
        f = functools.partial(_traced.traced_bits, code="entropy", **options)
        return str(jax.make_jaxpr(f)(many_leaves(n), 0.003)).count("scatter-add")

    assert scatters(150, packs=True) <= 2 * (150 // pack.MOST + 2) < scatters(150, packs=False)


def test_packs_take_little_memory():
    leaves = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in (1 << 22, 1 << 18, *range(100, 120))]
    program = PACKED["entropy"].lower(leaves, 0.003).compile()
    table = 4 * rate.TRACED_LEVELS
    assert program.memory_analysis().temp_size_in_bytes < 4 * (1 << 22) / 8 + 20 * table
