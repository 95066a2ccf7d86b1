"""Rounding with feedback on both sides, against a sequential reference in float64."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax.sensitivity import _feedback, _two_sides

M, N = 2 * _two_sides.TILE + 7, _two_sides.TILE + 11


@jax.jit
def rounded(w, h, g, steps):
    return _two_sides.round_both(w, _feedback.factor_of(h, 0.05), _feedback.factor_of(g, 0.05), steps)


def problem(seed, m=M, n=N, spread=1.0):
    rng = np.random.default_rng(seed)

    def factor(k):
        x = rng.normal(size=(3 * k, k)) * np.exp(spread * rng.normal(size=k))
        x[:, k // 2 :] += 2 * x[:, : k - k // 2]  # neighbours that depend on each other
        h = x.T @ x
        return h / np.trace(h) * k

    steps = 0.3 * np.exp(0.3 * rng.normal(size=(m, 1))) * np.exp(0.3 * rng.normal(size=(1, n)))
    values = rng.normal(size=(m, n)), factor(m), factor(n), steps
    return tuple(np.asarray(v, np.float32) for v in values)


def lower(h, damping=0.05):
    return np.linalg.cholesky((h + damping * np.eye(len(h)))[::-1, ::-1])[::-1, ::-1].T


def reference(w, h, g, steps):
    """Weight by weight: the level that makes its element of M_L E M_R^T smallest."""
    w, h, g, steps = (np.asarray(v, np.float64) for v in (w, h, g, steps))
    left, right = lower(h), lower(g)
    levels, errors = np.zeros_like(w), np.zeros_like(w)
    for i in range(len(w)):
        above = left[i, :i] @ errors[:i]  # of M_L E, what the rows above have in row i
        for j in range(w.shape[1]):
            own = above[j] * right[j, j] + (above[:j] + left[i, i] * errors[i, :j]) @ right[j, :j]
            levels[i, j] = np.rint((w[i, j] - own / (left[i, i] * right[j, j])) / steps[i, j])
            errors[i, j] = levels[i, j] * steps[i, j] - w[i, j]
    return levels


def cost(levels, w, h, g, steps):
    e = np.asarray(levels, np.float64) * steps - w
    h, g = (np.asarray(x, np.float64) + 0.05 * np.eye(len(x)) for x in (h, g))
    return np.trace(e.T @ h @ e @ g)


def even_steps(h, g):
    """With which every weight contributes the same to the cost."""
    return np.float32(0.2 / np.outer(*(np.diag(lower(np.asarray(x, np.float64))) for x in (h, g))))


@pytest.mark.parametrize("seed", [0, 1])
def test_levels_are_those_of_the_reference(seed):
    given = problem(seed)
    got, want = np.asarray(rounded(*given)), reference(*given)
    # Float32 may tip a tie, and what follows with it; what the levels cost is then the same.
    assert np.mean(got != want) < 0.05
    assert cost(got, *given) == pytest.approx(cost(want, *given), rel=0.01)


def test_small_problems_agree_to_the_last_level():
    given = problem(3, 9, 5)
    np.testing.assert_array_equal(rounded(*given), reference(*given))


@hypothesis.given(st.integers(0, 2**32 - 1), st.floats(0, 2))
@hypothesis.settings(max_examples=25, deadline=None)
def test_costs_less_than_plain_rounding(seed, spread):
    w, h, g, _ = problem(seed, spread=spread)
    steps = even_steps(h, g)
    assert cost(rounded(w, h, g, steps), w, h, g, steps) < cost(np.rint(w / steps), w, h, g, steps)


def test_costs_less_than_feedback_on_one_side():
    w, h, g, _ = problem(4)
    steps = even_steps(h, g)
    one = _feedback.round_rows(w, _feedback.factor_of(h, 0.05), steps)
    assert cost(rounded(w, h, g, steps), w, h, g, steps) < 0.8 * cost(one, w, h, g, steps)


def test_without_dependence_it_is_plain_rounding_and_with_that_of_rows_it_is_theirs():
    w, h, _, steps = problem(5)
    eye = functools.partial(np.eye, dtype=np.float32)
    np.testing.assert_array_equal(rounded(w, eye(M), eye(N), steps), np.rint(w / steps))
    one = _feedback.round_rows(w, _feedback.factor_of(h, 0.05), steps)
    assert np.mean(np.asarray(rounded(w, h, eye(N), steps)) != np.asarray(one)) < 0.02


def test_blocks_of_many_tiles():
    size = _two_sides.TILE * _two_sides.BLOCK + 1  # two blocks each way
    w, h, g, steps = problem(6, size, size)
    levels = np.asarray(rounded(w, h, g, steps))
    left, right = lower(np.asarray(h, np.float64)), lower(np.asarray(g, np.float64))
    # Every element of M_L E M_R^T is at most half a step of its own, up to what float32 lost on the way.
    got = np.abs(left @ (levels * steps.astype(np.float64) - w) @ right.T)
    allowed = np.diag(left)[:, None] * np.diag(right) * steps / 2
    assert (got / allowed).max() < 1.01


def test_stacked_layers_and_no_weights():
    w, h, g, steps = problem(7, 40, 33)
    both = jax.vmap(rounded)(*(jnp.stack([x, x]) for x in (w, h, g, steps)))
    np.testing.assert_array_equal(both[1], rounded(w, h, g, steps))
    assert rounded(w[:, :0], h, g[:0, :0], steps[:, :0]).shape == (40, 0)
    one = rounded(w[:1, :1], h[:1, :1], g[:1, :1], steps[:1, :1])
    np.testing.assert_array_equal(one, np.rint(w[:1, :1] / steps[:1, :1]))
