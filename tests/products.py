"""Products with small weights beside those in float64."""

import jax.numpy as jnp
import numpy as np

R = np.random.default_rng(5)


def vectors(*shape):
    return jnp.asarray(R.standard_normal(shape), jnp.float32)


def assert_same(y, x, w, spec="bk,kn->bn", tolerance=1e-6):
    """Equal within the tolerance, relative to the sum of magnitudes that every product adds up."""
    x = np.asarray(x, np.float64)
    size = np.einsum(spec, np.abs(x), np.abs(w))
    np.testing.assert_array_less(np.abs(y - np.einsum(spec, x, w)), tolerance * size + 1e-300)
