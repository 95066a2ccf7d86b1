"""Divergences of outputs, against float64 and where probabilities are zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from ggjax import sensitivity
from ggjax.sensitivity import _outputs

LOGITS = np.asarray(3 * jax.random.normal(jax.random.key(0), (64, 30)))
CHANGES = np.asarray(jax.random.normal(jax.random.key(1), (64, 30)))


def in_float64(old, new):
    p, q = (log_softmax(np.asarray(x, np.float64), -1) for x in (old, new))
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(p), 0, np.exp(p) * (p - q)).sum(-1)


def divergences(old, new):
    return np.asarray(_outputs.divergences([jnp.asarray(old)], [jnp.asarray(new)], "logits"))


@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1, 1.0, 30.0, 300.0])
def test_small_and_large_divergences_are_those_of_float64(size):
    new = LOGITS + np.float32(size) * CHANGES
    found = divergences(LOGITS, new)
    assert (found > 0).all()
    # Differences of float32 logits near 10 are known to 1e-6.
    np.testing.assert_allclose(found, in_float64(LOGITS, new), rtol=1e-4 + 2e-6 / size)


def test_no_change_is_no_divergence():
    np.testing.assert_array_equal(divergences(LOGITS, LOGITS), 0)


def test_outputs_that_cannot_be_are_left_out():
    seen = np.arange(30) < 20
    old, new = (np.where(seen, x, -np.inf) for x in (LOGITS, LOGITS + CHANGES))
    np.testing.assert_allclose(divergences(old, new), in_float64(old[:, :20], new[:, :20]), rtol=1e-4)
    # What was impossible before takes probability from what was not; the other way round it is infinite.
    np.testing.assert_allclose(divergences(old, LOGITS), in_float64(old, LOGITS), rtol=1e-4)
    assert np.isinf(divergences(LOGITS, old)).all()


def test_the_gradient_is_finite_where_probabilities_are_zero():
    seen = jnp.arange(30) < 20

    def mean(change):
        old, new = (jnp.where(seen, x, -jnp.inf) for x in (LOGITS, LOGITS + change))
        return _outputs.divergences([old], [new], "logits").mean()

    for size in (1.0, 300.0):
        found = np.asarray(jax.grad(mean)(jnp.asarray(size * CHANGES)))
        new = log_softmax((LOGITS + size * CHANGES)[:, :20].astype(np.float64), -1)
        expected = (np.exp(new) - np.exp(log_softmax(LOGITS[:, :20].astype(np.float64), -1))) / 64
        np.testing.assert_allclose(found[:, :20], expected, rtol=1e-3, atol=1e-8)
        np.testing.assert_array_equal(found[:, 20:], 0)


def test_a_vocabulary_may_be_masked_by_infinities():
    params = {"kernel": 0.3 * jax.random.normal(jax.random.key(2), (64, 10))}
    batches = [jax.random.normal(jax.random.key(i), (32, 64)) for i in range(4)]

    def estimate(fill):
        def apply(p, x):
            return jnp.where(jnp.arange(10) < 7, x @ p["kernel"], fill)

        return sensitivity.estimate(apply, params, batches, key=jax.random.key(9)).measured

    found = estimate(-jnp.inf)
    assert len(found) == 3
    np.testing.assert_allclose(found, estimate(-1e9), rtol=1e-5)
