"""Reparameterizations of float32 weights stay in float32 where float64 is enabled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import baselines

METHODS = {
    "epr": lambda: baselines.epr(),
    "epr, GG": lambda: baselines.epr(prior="gg"),
    "epr, penalty": lambda: baselines.epr(prior="log_penalty"),
    "mantissa": lambda: baselines.learned_bits("mantissa", start=2.5),
    "float": lambda: baselines.learned_bits("float", start=(2.5, 3.5)),
    "uniform": lambda: baselines.learned_bits("uniform", start=3.5),
    "quest": lambda: baselines.quest(4),
}


@pytest.mark.parametrize("name", METHODS)
def test_they_do_what_they_do_without(name):
    params = {"w": 0.1 * jax.random.normal(jax.random.key(0), (16, 8), jnp.float32)}

    def everything():
        method = METHODS[name]()
        latent, key = method.init(params), jax.random.key(1)
        grads = jax.grad(lambda x: method.rate(x, key) + jnp.sum(method.apply(x, key)["w"] ** 2))(latent)
        return latent, grads, method.rate(latent, key), method.apply(latent, key), method.freeze(latent)

    expected = everything()
    with jax.enable_x64(True):  # and strict promotion, as the whole suite has it
        found = everything()
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b) or not hasattr(a, "dtype")
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
