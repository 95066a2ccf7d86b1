"""Calibrated rounding of float32 weights stays in float32 where float64 is enabled, and gives the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import sensitivity

MIXING = jax.random.normal(jax.random.key(2), (24, 24)) * jnp.exp(jnp.linspace(-3, 1, 24))[:, None]
BATCHES = [jax.random.normal(jax.random.key(i), (32, 24)) @ MIXING for i in range(2)]
PARAMS = {
    "first": 0.2 * jax.random.normal(jax.random.key(3), (24, 16)),
    "second": 0.2 * jax.random.normal(jax.random.key(4), (16, 12)),
    "bias": jnp.zeros(12),
}


def apply(p, x):
    return jnp.tanh(x @ p["first"]) @ p["second"] + p["bias"][None]


def everything(output):
    known = sensitivity.estimate(apply, PARAMS, BATCHES, key=jax.random.key(5), output=output)
    rounded = sensitivity.round_to(PARAMS, known, bits=3)
    better = sensitivity.compensate(apply, PARAMS, BATCHES, known, bits=3, output=output, steps=2)
    predicted = sensitivity.predict(PARAMS, rounded.params, known)
    return known, rounded.params, better.params, predicted, sensitivity.row_steps(known, 0.1)


@pytest.mark.parametrize("output", ["logits", "values"])
def test_it_is_as_without(output):
    expected = everything(output)
    with jax.enable_x64(True):  # and strict promotion, as the whole suite has it
        found = everything(output)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
