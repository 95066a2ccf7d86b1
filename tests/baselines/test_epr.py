"""EPR: rounding by trained steps, and rates against SciPy's laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from ggjax import baselines
from ggjax.baselines import _epr
from ggjax.baselines._priors import gg_bits, logistic_bits

W = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
G = np.random.default_rng(1).normal(size=W.shape).astype(np.float32)
PARAMS = {"w": jnp.asarray(W)}
KEY = jax.random.key(5)


def bits64(law, x):
    """-log2 of the mass of the bin, by the tail on the far side."""
    x = np.abs(np.asarray(x, np.float64))
    return -np.log2(law.sf(x - 0.5) - law.sf(x + 0.5))


@pytest.mark.parametrize("scale", [0.05, 0.4, 3.0, 200.0])
def test_logistic_bits_are_scipys(scale):
    x = np.linspace(-40, 40, 401) * min(scale, 1)
    np.testing.assert_allclose(
        logistic_bits(jnp.asarray(x, jnp.float32), scale),
        bits64(st.logistic(scale=scale), x),
        rtol=1e-5,
        atol=2e-5,
    )


@pytest.mark.parametrize("nu", [0.3, 0.7, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("scale", [0.02, 0.3, 5.0, 300.0])
def test_gg_bits_are_scipys(nu, scale):
    x = np.concatenate([np.linspace(-3, 3, 61), [4, 9, -9]]) * scale
    with np.errstate(divide="ignore"):
        want = bits64(st.gennorm(nu, scale=scale), x)
    seen = want < 150  # beyond, SciPy's tails end
    got = jax.jit(gg_bits)(jnp.asarray(x, jnp.float32), jnp.float32(nu), jnp.float32(scale))
    np.testing.assert_allclose(np.asarray(got)[seen], want[seen], rtol=1e-5, atol=2e-4)
    assert np.all(np.asarray(got)[~seen] > 100)


@pytest.mark.parametrize(
    "bits", [lambda x: logistic_bits(x, 0.1), lambda x: gg_bits(x, jnp.float32(1.5), jnp.float32(0.1))]
)
def test_bits_and_gradients_are_finite_everywhere(bits):
    x = jnp.array([0.0, 0.5, -0.5, 1.0, 30.0, -1e4, 1e6])
    value, slope = jax.jit(lambda x: jax.jvp(bits, (x,), (jnp.ones_like(x),)))(x)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(slope)) and slope[0] == 0
    assert np.all(np.diff(np.asarray(value)[[0, 1, 3, 4, 5, 6]]) > 0)


@functools.cache
def method(prior="logistic", **kwargs):
    return baselines.epr(prior=prior, step=0.25, **dict(kwargs))


def test_the_task_sees_multiples_of_the_step():
    latent = method().init(PARAMS)
    want = 0.25 * np.round(W / 0.25)
    np.testing.assert_allclose(method().apply(latent)["w"], want, atol=1e-6)
    frozen = method().freeze(latent)
    np.testing.assert_array_equal(frozen.levels["w"], np.round(W / 0.25))
    np.testing.assert_allclose(frozen.weights["w"], want, atol=1e-6)
    assert frozen.side_bits == 64
    g = jax.grad(lambda z: jnp.sum(G * method().apply(z)["w"]))(latent)
    np.testing.assert_allclose(g.weights["w"], G, rtol=1e-6)
    by_step = (
        np.sum(G * (np.round(W / 0.25) - W / 0.25)) * 0.25
    )  # d/d log step, at fixed gradient of the rounding
    np.testing.assert_allclose(g.log_steps["w"], by_step, rtol=1e-4)


def test_the_first_step_and_scale_are_the_papers():
    latent = baselines.epr().init(PARAMS)
    assert float(latent.log_steps["w"]) == -4 and latent.priors["w"].tolist() == [2.5]


@pytest.mark.parametrize("prior", ["logistic", "gg"])
def test_rate_with_and_without_noise(prior):
    latent = method(prior).init(PARAMS)
    p = np.exp(np.asarray(latent.priors["w"], np.float64))
    law = st.logistic(scale=p[0]) if prior == "logistic" else st.gennorm(p[0], scale=p[1])
    np.testing.assert_allclose(method(prior).rate(latent), bits64(law, np.round(W / 0.25)).mean(), rtol=1e-5)
    noise = np.asarray(jax.random.uniform(jax.random.split(KEY, 1)[0], W.shape)) - 0.5
    np.testing.assert_allclose(method(prior).rate(latent, KEY), bits64(law, W / 0.25 + noise).mean(), rtol=1e-5)


@pytest.mark.parametrize("prior", ["logistic", "gg", "log_penalty"])
def test_gradients_of_the_rate_are_finite_differences(prior):
    rate = jax.jit(method(prior).rate)
    latent = method(prior).init(PARAMS)
    grads = jax.jit(jax.grad(method(prior).rate))(latent, KEY)
    for field in ("log_steps", "priors"):
        here = getattr(latent, field)["w"]
        for i in np.ndindex(here.shape):
            ends = [
                rate(latent._replace(**{field: {"w": here.at[i].add(d)}}), KEY).astype(float)
                for d in (0.02, -0.02)
            ]
            np.testing.assert_allclose(
                getattr(grads, field)["w"][i], (ends[0] - ends[1]) / 0.04, rtol=0.02, atol=2e-4
            )


def test_log_penalty_is_fast_eprs():
    latent = method("log_penalty").init(PARAMS)
    want = np.log((np.abs(W / 0.25) + 0.01) / 0.01).mean()
    np.testing.assert_allclose(method("log_penalty").rate(latent), want, rtol=1e-5)
    assert latent.priors["w"].size == 0 and method("log_penalty").freeze(latent).side_bits == 32


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_the_fourier_basis_is_orthonormal_and_spans_each_frequency(n):
    basis = _epr._basis(n).astype(np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(n), atol=1e-6)
    spectrum = np.abs(np.fft.rfft(basis, norm="ortho")) > 1e-6
    assert [np.flatnonzero(s).tolist() for s in spectrum] == [[(k + 1) // 2] for k in range(n)]


def test_kernels_under_the_dft():
    kernel = jax.random.normal(KEY, (3, 3, 4, 5))
    fine = baselines.epr(step=2.0**-12, dft=True)
    latent = fine.init({"conv": kernel, "w": PARAMS["w"]})
    assert latent.log_steps["conv"].shape == (3, 3, 1, 1) and latent.log_steps["w"].shape == ()
    np.testing.assert_allclose(jnp.sum(latent.weights["conv"] ** 2), jnp.sum(kernel**2), rtol=1e-5)
    np.testing.assert_allclose(latent.weights["conv"][0, 0], kernel.mean((0, 1)) * 3, atol=1e-5)
    np.testing.assert_allclose(fine.apply(latent)["conv"], kernel, atol=2e-3)
    frozen = fine.freeze(latent)
    assert frozen.levels["conv"].shape == kernel.shape and frozen.side_bits == 32 * (9 + 1 + 2)


@pytest.mark.parametrize("prior", ["logistic", "gg", "log_penalty"])
def test_leaves_of_every_kind(prior):
    params = {
        "brain": jnp.asarray(W, jnp.bfloat16),
        "zeros": jnp.zeros((3, 4)),
        "empty": jnp.zeros((0, 4)),
        "scalar": jnp.asarray(0.3),
        "count": jnp.arange(3),
    }
    m = baselines.epr(prior=prior, step=2.0**-6, mask=None)
    latent = jax.jit(m.init)(params)
    got = jax.jit(m.apply)(latent)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    np.testing.assert_allclose(np.asarray(got["brain"], np.float32), W, atol=0.03)
    assert not np.any(np.asarray(got["zeros"])) and got["count"].tolist() == [0, 1, 2]
    rate, grads = jax.jit(jax.value_and_grad(m.rate, allow_int=True))(latent, KEY)
    floats = [g for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0]
    assert np.isfinite(rate) and all(np.all(np.isfinite(np.asarray(g, np.float32))) for g in floats)


def test_wrong_arguments():
    for kwargs, words in [
        ({"prior": "laplace"}, "prior must be .*got 'laplace'"),
        ({"step": 0.0}, "step must be positive and finite, got 0.0"),
        ({"scale": -1.0}, "scale must be positive and finite, got -1.0"),
        ({"alpha": float("nan")}, "alpha must be .*got nan"),
        ({"step": jnp.ones(2)}, r"step must be one number, got an array of shape \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            baselines.epr(**kwargs)
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got inf"):
        baselines.epr().init({"w": jnp.full((2, 2), jnp.inf)})
