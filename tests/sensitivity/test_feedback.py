"""Rounding with feedback, against a sequential reference in float64."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax.sensitivity import _feedback

ROWS, COLUMNS = 2 * _feedback.BLOCK + 22, 12


@functools.partial(jax.jit, static_argnames="damping")
def rounded(w, h, steps, damping=0.01):
    return _feedback.round_rows(w, _feedback.factor_of(h, damping), steps)


def problem(seed, spread=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * ROWS, ROWS)) * np.exp(spread * rng.normal(size=ROWS))
    x[:, ROWS // 2 :] += 2 * x[:, : ROWS - ROWS // 2]  # rows that depend on each other
    h = x.T @ x
    steps = 0.3 * np.exp(0.3 * rng.normal(size=(ROWS, 1))) * np.exp(0.3 * rng.normal(size=(1, COLUMNS)))
    values = rng.normal(size=(ROWS, COLUMNS)), h / np.trace(h) * ROWS, steps
    return tuple(np.asarray(v, np.float32) for v in values)


def reference(w, h, steps, damping):
    """Row by row: the level that makes row i of M E smallest, M^T M = H + damping I."""
    w, h, steps = (np.asarray(v, np.float64) for v in (w, h, steps))
    turned = (h + damping * np.eye(len(h)))[::-1, ::-1]
    m = np.linalg.cholesky(turned)[::-1, ::-1].T
    np.testing.assert_allclose(m.T @ m, turned[::-1, ::-1], rtol=1e-9, atol=1e-9)
    levels, errors = np.zeros_like(w), np.zeros_like(w)
    for i in range(len(w)):
        levels[i] = np.rint((w[i] - m[i, :i] @ errors[:i] / m[i, i]) / steps[i])
        errors[i] = levels[i] * steps[i] - w[i]
    return levels


@pytest.mark.parametrize("damping", [0.001, 0.1])
def test_levels_are_those_of_the_reference(damping):
    w, h, steps = problem(0)
    got = np.asarray(rounded(w, h, steps, damping))
    want = reference(w, h, steps, damping)
    assert np.mean(got != want) < 0.01  # float32 may tip a tie, and what follows with it
    assert np.mean(np.abs(got - want)) < 0.01


@hypothesis.given(st.integers(0, 2**32 - 1), st.floats(0, 2))
@hypothesis.settings(max_examples=25, deadline=None)
def test_costs_less_than_plain_rounding(seed, spread):
    w, h, steps = problem(seed, spread)

    def cost(levels):
        e = np.asarray(levels, np.float64) * steps - w
        return np.trace(e.T @ np.asarray(h, np.float64) @ e)

    assert cost(rounded(w, h, steps)) < cost(np.rint(w / steps))


def test_without_dependence_it_is_plain_rounding():
    w, _, steps = problem(1)
    np.testing.assert_array_equal(rounded(w, np.eye(ROWS, dtype=np.float32), steps), np.rint(w / steps))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_columns_are_independent_and_may_be_sharded(kind):
    w, h, steps = problem(2)
    want = rounded(w, h, steps)
    np.testing.assert_array_equal(rounded(w[:, 3:7], h, steps[:, 3:7]), want[:, 3:7])
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    put = lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec))  # noqa: E731
    sharded = put(w, P(None, "x")), put(h, P()), put(steps, P(None, "x"))
    program = rounded.lower(*sharded).compile()
    assert "all-gather" not in program.as_text()
    np.testing.assert_array_equal(rounded(*sharded), want)


def test_stacked_layers_and_sizes_of_no_whole_block():
    w, h, steps = problem(3)
    both = jax.vmap(rounded)(jnp.stack([w, w[::-1]]), jnp.stack([h, h]), jnp.stack([steps, steps]))
    np.testing.assert_array_equal(both[0], rounded(w, h, steps))
    one = rounded(w[:1], h[:1, :1], steps[:1])
    np.testing.assert_array_equal(one, np.rint(w[:1] / steps[:1]))
    assert rounded(w[:, :0], h, steps[:, :0]).shape == (ROWS, 0)
