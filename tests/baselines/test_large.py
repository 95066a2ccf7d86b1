"""Trees of more weights than an int32 counts, by their shapes alone."""

import jax
import jax.numpy as jnp
import pytest

from ggjax import baselines

LARGE = {f"layer {i}": jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16) for i in range(3)}
LARGE["embedding"] = jax.ShapeDtypeStruct((2**16, 2**16), jnp.bfloat16)

METHODS = {
    "epr": lambda: baselines.epr(),
    "mantissa": lambda: baselines.learned_bits("mantissa"),
    "uniform": lambda: baselines.learned_bits("uniform"),
    "quest": lambda: baselines.quest(4),
}


@pytest.mark.parametrize("name", METHODS)
def test_reparameterizations(name):
    method = METHODS[name]()
    latent = jax.eval_shape(method.init, LARGE)
    assert jax.eval_shape(method.rate, latent).shape == ()
    assert jax.tree.map(lambda x: x.shape, jax.eval_shape(method.apply, latent)) == {
        n: x.shape for n, x in LARGE.items()
    }


def test_rounding_and_sizes():
    assert jax.eval_shape(baselines.gecko_bits, LARGE).shape == ()
    found = jax.eval_shape(lambda p: baselines.entquant(p, 0.1).weights, LARGE)
    assert found["embedding"].shape == (2**16, 2**16)
