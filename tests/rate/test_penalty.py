"""The penalty, which ``rate`` names too: its value, its gradient and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import gennorm, rate
from tests.rate.reference import tree_of


@pytest.mark.parametrize("eps", [1.0, 1e-3])
@pytest.mark.parametrize("nu", [None, 0.6, 1.0, 2.0])
def test_penalty_and_its_gradient(nu, eps):
    tree = tree_of(0.7, scale=0.05, n=960)
    tree["a"] = tree["a"].at[0].set(0.0)
    x = np.concatenate([np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(tree)])
    shape = float(gennorm.fit(tree).nu) if nu is None else nu
    value, grad = jax.jit(jax.value_and_grad(lambda t: rate.penalty(t, eps=eps, gg_shape=nu, mask=None)))(tree)
    np.testing.assert_allclose(value, np.mean((np.abs(x) + eps) ** shape), rtol=2e-6)
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grad)])
    want = shape * np.sign(x) * (np.abs(x) + eps) ** (shape - 1) / len(x)
    np.testing.assert_allclose(flat, want, rtol=2e-6, atol=1e-12)
    h, i = 1e-6, 700  # and the same slope by differences, in float64
    moved = [np.mean((np.abs(np.where(np.arange(len(x)) == i, x + d, x)) + eps) ** shape) for d in (h, -h)]
    np.testing.assert_allclose(flat[i], (moved[0] - moved[1]) / (2 * h), rtol=1e-4)


def test_penalty_dtypes_and_errors():
    half = {"w": jnp.array([0.5, -0.25, 0.0], jnp.bfloat16)}
    value, grad = jax.value_and_grad(lambda t: rate.penalty(t, gg_shape=2.0))(half)
    assert value.dtype == jnp.float32 and grad["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(value, (1.5**2 + 1.25**2 + 1) / 3, rtol=1e-6)
    np.testing.assert_array_equal(
        grad["w"].astype(jnp.float32), jnp.bfloat16([1.0, -2.5 / 3, 0.0]).astype(jnp.float32)
    )
    for name in ("eps", "gg_shape"):
        for bad in (0.0, -1.0, np.nan):
            with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {bad}"):
                rate.penalty(half, **{name: bad})
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got inf"):
        rate.penalty({"w": jnp.array([jnp.inf])})
    # Under jit a leaf that no law fits is left out, as backslash leaves it.
    assert jax.jit(rate.penalty)({"w": jnp.array([jnp.nan])}) == 0
