"""The power in BackSlash's inner loop against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax._internal.power import power

POWERS = (-0.95, -0.9, -0.2, 0.0, 0.5, 1.0, 2.0)


@pytest.mark.parametrize("p", POWERS)
def test_equals_float64(p):
    r = np.random.default_rng(0)
    x = np.float32(np.exp(r.uniform(np.log(1e-30), np.log(1e30), 20_000)))
    near = np.float32(1 + 1e-3 * r.normal(size=20_000))  # where log2 is small
    x = np.concatenate([x, near, np.float32(2.0) ** np.arange(-40, 41, dtype=np.float32)])
    x = x[(np.float64(x) ** p > 2.0**-124) & (np.float64(x) ** p < 2.0**125)]
    want = np.float64(x) ** np.float64(np.float32(p))
    np.testing.assert_allclose(np.float64(jax.jit(power)(x, jnp.float32(p))), want, rtol=1.5e-7)


def test_stops_before_the_ends_of_float32():
    ends = power(jnp.float32([1e30, 1e30, 8, 0]), jnp.float32([3, -3, 5e4, -0.5]))
    assert (np.isfinite(ends) & (ends > 0)).all()
    assert ends[0] > 1e37 and ends[1] < 1e-37 and ends[2] > 1e37 and ends[3] > 1e18


def test_derivatives():
    x, p = jnp.float32(0.3), jnp.float32(-0.4)
    d = jax.grad(power, (0, 1))(x, p)
    want = (-0.4 * 0.3**-1.4, 0.3**-0.4 * np.log(0.3))
    np.testing.assert_allclose(d, want, rtol=1e-6)


def test_float64_keeps_its_digits():
    with jax.enable_x64(True):
        np.testing.assert_allclose(power(jnp.float64(0.3), jnp.float64(0.7)), 0.3**0.7, rtol=1e-15)
