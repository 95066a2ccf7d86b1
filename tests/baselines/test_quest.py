"""QuEST's grid: the published clips, the trust mask, the Hadamard transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate as si
import scipy.stats as st

from ggjax import baselines
from ggjax.baselines import _mse_clip, _quest

W = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
PUBLISHED = {1: 0.79788, 2: 1.49353, 3: 2.05107, 4: 2.51393, 5: 2.91609, 6: 3.27660, 7: 3.60105, 8: 3.88494}


@pytest.mark.parametrize("bits", PUBLISHED)
def test_a_gaussians_clips_are_the_published_ones(bits):
    clip = baselines.mse_clip(bits)
    np.testing.assert_allclose(clip, PUBLISHED[bits], rtol=1e-4 if bits < 6 else 0.01)
    errors = [_mse_clip.mean_squared_error(c, bits, 2.0) for c in (clip, PUBLISHED[bits], 1.02 * clip)]
    assert errors[0] <= min(errors[1:])


@pytest.mark.parametrize(("nu", "bits", "clip"), [(1.0, 2, 1.6311), (1.0, 3, 2.5583), (1.0, 4, 3.4574)])
def test_laplacian_clips_are_wider(nu, bits, clip):
    np.testing.assert_allclose(baselines.mse_clip(bits, nu), clip, rtol=1e-4)


@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
def test_the_error_is_that_of_quadrature(nu):
    law, clip, bits = st.gennorm(nu, scale=1 / st.gennorm(nu).std()), 1.7, 2
    step = 2 * clip / 3

    def integrand(x):
        q = (np.minimum(np.floor(x / step), 1) + 0.5) * step
        return 2 * (x - q) ** 2 * law.pdf(x)

    want = sum(
        si.quad(integrand, a, b, limit=200)[0] for a, b in [(0, step), (step, 2 * step), (2 * step, np.inf)]
    )
    np.testing.assert_allclose(_mse_clip.mean_squared_error(clip, bits, nu), want, rtol=1e-6)


def test_traced_shapes_have_nearly_the_same_clips():
    for nu in (0.23, 0.77, 1.4, 2.9):
        np.testing.assert_allclose(
            _mse_clip.traced_clip(3, jnp.float32(nu)), baselines.mse_clip(3, nu), rtol=3e-3
        )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_are_odd_multiples_of_half_a_step(bits):
    method = baselines.quest(bits)
    latent = method.init({"w": jnp.asarray(W)})
    clip = PUBLISHED[bits] * np.sqrt(np.mean(W**2, 0))
    step = 2 * clip / (2**bits - 1)
    want = np.clip(np.floor(W / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step + step / 2
    np.testing.assert_allclose(method.apply(latent)["w"], want, rtol=1e-3)
    frozen = method.freeze(latent)
    np.testing.assert_allclose((np.asarray(frozen.levels["w"]) + 0.5) * step, want, rtol=1e-3)
    assert frozen.side_bits == 16 * 6 and float(method.rate(latent)) == bits
    g = jax.grad(lambda z: method.apply(z)["w"].sum())(latent).weights["w"]
    np.testing.assert_array_equal(g, np.abs(W) <= clip + step / 2)
    trusted = np.abs(want - W) <= step / 2 * 1.001  # rounding changes these by at most half a step
    np.testing.assert_array_equal(g, trusted)
    assert bits == 4 or 0 < g.sum() < g.size


@pytest.mark.parametrize("block", [8, 128])
def test_hadamard_turns_there_and_back(block):
    x = jnp.asarray(W.T)
    turned = _quest._rotate(x, block)
    np.testing.assert_allclose(jnp.sum(turned**2), jnp.sum(x**2), rtol=1e-5)
    np.testing.assert_allclose(_quest._rotate(turned, block), x, atol=1e-6)
    np.testing.assert_allclose(turned[:, 0], W[: min(block, 32)].sum(0) / np.sqrt(min(block, 32)), atol=1e-5)


def test_with_hadamard_an_outlier_is_spread():
    w = np.full((128, 1), 0.01, np.float32)
    w[5] = 10
    plain, turned = baselines.quest(4), baselines.quest(4, hadamard=128)
    errors = [
        float(np.abs(np.asarray(m.apply(m.init({"w": jnp.asarray(w)}))["w"]) - w).max())
        for m in (plain, turned)
    ]
    assert errors[1] < 2 < errors[0]
    g = jax.grad(lambda z: (turned.apply(z)["w"] * w).sum())(turned.init({"w": jnp.asarray(w)}))
    np.testing.assert_allclose(g.weights["w"], w, atol=1e-4)  # all of it is trusted


def test_a_fitted_shape_is_near_the_known_one():
    w = np.random.default_rng(1).laplace(size=(4000, 1)).astype(np.float32)
    fitted, known = (
        m.apply(m.init({"w": jnp.asarray(w)}))["w"] for m in (baselines.quest(3, nu=v) for v in (None, 1.0))
    )
    np.testing.assert_allclose(jnp.max(fitted), jnp.max(known), rtol=0.05)


@pytest.mark.parametrize("nu", [2.0, None])
def test_leaves_of_every_kind(nu):
    params = {
        "brain": jnp.asarray(W, jnp.bfloat16),
        "conv": jnp.asarray(W[:12].reshape(3, 2, 6, 2)),
        "vector": jnp.asarray(W[:, 0]),
        "zeros": jnp.zeros((3, 4)),
        "empty": jnp.zeros((0, 4)),
        "scalar": jnp.asarray(0.3),
        "count": jnp.arange(3),
    }
    method = baselines.quest(4, nu=nu, hadamard=4, mask=None)
    latent = method.init(params)
    frozen = jax.jit(method.freeze)(latent)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), frozen.weights) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert not np.any(np.asarray(frozen.weights["zeros"])) and frozen.levels["conv"].shape == (3, 2, 6, 2)
    np.testing.assert_allclose(np.asarray(frozen.weights["brain"], np.float32), W, atol=0.7)
    grads = jax.grad(
        lambda z: sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(method.apply(z))), allow_int=True
    )(latent)
    assert np.all(np.isfinite(np.asarray(grads.weights["conv"]))) and not np.any(
        np.isnan(grads.weights["zeros"])
    )


def test_wrong_arguments():
    for kwargs, words in [
        ({"bits": 9}, "bits must be a whole number from 1 to 8, got 9"),
        ({"bits": 4, "nu": 0.1}, "nu must lie between 0.2 and 20, got 0.1"),
        ({"bits": 4, "hadamard": 12}, "hadamard must be a power of two, got 12"),
        ({"bits": 4, "hadamard": 0}, "hadamard must be .*got 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            baselines.quest(**kwargs)
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got nan"):
        baselines.quest(4).init({"w": jnp.full((2, 2), jnp.nan)})
