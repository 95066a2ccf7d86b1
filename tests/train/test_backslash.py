"""BackSlash against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special as sp

import ggjax
from ggjax._internal import pack
from ggjax.train import _packs

PAPER = {"mask": None, "move_idle": True}
"""All weights, as in the code published with the paper."""


def reference(theta, u, rate_weight, eps=1.0, nu=None, n=None, clamp=False):
    """The updates and nu by the papers' formulas in float64; theta, u are lists of arrays."""
    flat = np.concatenate([np.float64(t).ravel() for t in theta])
    n = n or flat.size
    if nu is None:
        nus = np.round(np.arange(10, 301) / 100, 2)
        table = sp.gamma(1 / nus) * sp.gamma(3 / nus) / sp.gamma(2 / nus) ** 2
        nu = min(nus[np.argmin(np.abs(table - np.mean(flat**2) / np.mean(np.abs(flat)) ** 2))], 2)
    out = []
    for t, v in zip(theta, u, strict=True):
        new = np.float64(t) + np.float64(v)
        s = rate_weight * nu / n * (np.abs(new) + eps) ** (nu - 1)
        s = np.minimum(s, np.abs(new)) if clamp else s
        out.append(np.float64(v) - np.sign(new) * s)
    return out, nu


def weights(seed=0, nu=0.8, scale=0.05):
    r = np.random.default_rng(seed)
    draw = r.gamma(1 / nu, size=(40, 50)) ** (1 / nu) * r.choice([-1, 1], (40, 50)) * scale
    draw[0, :5] = 0
    return {"w": jnp.float32(draw), "b": jnp.float32(r.normal(size=30) * scale)}


def small_updates(params, seed=1, size=1e-3):
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(size * r.normal(size=p.shape), p.dtype).at[..., 0].set(0), params)


SETTINGS = [
    {},
    {"eps": 1e-3},
    {"eps": 2.0**-8, "clamp": True},
    {"gg_shape": 1.0},
    {"gg_shape": 2.0, "eps": 0.1},
    {"gg_shape": 1.3},
    {"gg_shape": jnp.float32(2), "eps": np.float64(0.1)},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_step_is_the_formula(options, packed, monkeypatch):
    if packed:
        monkeypatch.setattr(pack, "one_device", lambda: True)
        monkeypatch.setattr(_packs, "MANY", 1)
    params = weights()
    updates = jax.tree.map(jnp.zeros_like, params)  # so that the result is the step itself, to full precision
    tx = ggjax.backslash(3.0, **PAPER, **options)
    got, state = jax.jit(tx.update)(updates, tx.init(params), params)
    keys = sorted(params)
    options = {"nu" if k == "gg_shape" else k: v for k, v in options.items()}
    want, nu = reference([params[k] for k in keys], [updates[k] for k in keys], 3.0, **options)
    np.testing.assert_allclose(state.gg_shape, nu, rtol=1e-6)
    for k, w in zip(keys, want, strict=True):
        np.testing.assert_allclose(got[k], w, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("eps", [1.0, 1e-3])
def test_step_of_a_large_leaf_is_the_formula(eps):
    r = np.random.default_rng(0)
    params = {"w": jnp.float32(0.02 * r.laplace(size=(300, 300)))}
    updates = jax.tree.map(jnp.zeros_like, params)
    tx = ggjax.backslash(3.0, eps=eps, **PAPER)
    got, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    (want,), _ = reference([params["w"]], [updates["w"]], 3.0, eps=eps)
    np.testing.assert_allclose(got["w"], want, rtol=1e-6, atol=1e-30)


def test_step_is_taken_at_the_updated_weights_and_nu_at_the_old_ones():
    params = weights()
    updates = small_updates(params, size=0.05)
    tx = ggjax.backslash(20.0, eps=0.01, **PAPER)
    got, state = tx.update(updates, tx.init(params), params)
    keys = sorted(params)
    want, nu = reference([params[k] for k in keys], [updates[k] for k in keys], 20.0, eps=0.01)
    np.testing.assert_allclose(state.gg_shape, nu, rtol=1e-6)
    for k, w in zip(keys, want, strict=True):
        np.testing.assert_allclose(got[k], w, rtol=2e-6, atol=1e-8)


def test_one_nu_per_leaf_keeps_n_of_the_whole():
    params, updates = weights(), jax.tree.map(jnp.zeros_like, weights())
    tx = ggjax.backslash(3.0, per_leaf=True, **PAPER)
    got, state = tx.update(updates, tx.init(params), params)
    for i, k in enumerate(sorted(params)):
        want, nu = reference([params[k]], [updates[k]], 3.0, n=2030)
        np.testing.assert_allclose(state.gg_shape[i], nu, rtol=1e-6)
        np.testing.assert_allclose(got[k], want[0], rtol=1e-6, atol=1e-30)


def test_mask_and_optax_masked_fit_and_count_what_they_select():
    params = weights()
    updates = small_updates(params)
    chosen = {"w": True, "b": False}
    want, nu = reference([params["w"]], [updates["w"]], 3.0)
    for tx in (
        ggjax.backslash(3.0, mask=chosen, move_idle=True),
        ggjax.backslash(3.0, move_idle=True, mask=lambda t: jax.tree.map(lambda x: x.ndim > 1, t)),
        optax.masked(ggjax.backslash(3.0, **PAPER), chosen),
    ):
        got, state = tx.update(updates, tx.init(params), params)
        np.testing.assert_allclose(optax.tree.get(state, "shape_in_use"), nu, rtol=1e-6)
        np.testing.assert_allclose(got["w"], want[0], rtol=1e-5, atol=1e-8)
        np.testing.assert_array_equal(got["b"], updates["b"])


def test_bits_are_the_entropy_of_the_fitted_law():
    params = weights(nu=1.0, scale=0.1)
    tx = ggjax.backslash(1.0, **PAPER)
    _, state = tx.update(params, tx.init(params), params)
    law = ggjax.gennorm.fit(params)
    np.testing.assert_allclose(state.bits, ggjax.gennorm.entropy(law.nu, law.scale) / np.log(2), rtol=1e-5)


def test_weights_more_even_than_a_gaussians_pull_as_its_do():
    params = {"w": jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64)}
    updates = small_updates(params)
    fitted, two = ggjax.backslash(3.0), ggjax.backslash(3.0, gg_shape=2.0)
    (got, state), (want, _) = (tx.update(updates, tx.init(params), params) for tx in (fitted, two))
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6, atol=1e-9)
    assert state.gg_shape == 2
    np.testing.assert_allclose(ggjax.rate.penalty(params), ggjax.rate.penalty(params, gg_shape=2.0), rtol=1e-6)
    law = ggjax.gennorm.fit(params)
    assert law.nu > 2.5
    np.testing.assert_allclose(state.bits, ggjax.gennorm.entropy(law.nu, law.scale) / np.log(2), rtol=1e-4)


def test_the_weight_may_follow_a_schedule_and_end():
    params = weights()
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = ggjax.backslash(lambda count: jnp.where(count < 2, 2.0, 0.0), **PAPER)
    state = tx.init(params)
    seen = []
    for _ in range(4):
        updates, state = tx.update(zeros, state, params)
        seen.append((float(state.rate_weight), float(jnp.abs(updates["w"]).max()) > 0))
    assert seen == [(2.0, True), (2.0, True), (0.0, False), (0.0, False)]
    with jax.numpy_dtype_promotion("standard"):  # optax's own schedules need it
        schedule = ggjax.follow_learning_rate(100.0, optax.linear_schedule(0.2, 0.0, 10), peak=0.2)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [100.0, 50.0, 0.0], atol=1e-5)


def test_estimate_every_skips_the_fit_in_between():
    first, second = weights(nu=0.5), weights(nu=2.0)
    tx = ggjax.backslash(1.0, estimate_every=3, **PAPER)
    update, state = jax.jit(tx.update), tx.init(first)
    nus = []
    for params in (first, second, second, second):
        _, state = update(params, state, params)
        nus.append(float(state.gg_shape))
    assert nus[0] == nus[1] == nus[2] < 0.8 < nus[3]
    text = jax.jit(tx.update).lower(first, state, first).compile().as_text()
    assert "conditional" in text


def test_it_lowers_the_rate_that_penalty_measures():
    params = weights()
    tx = optax.chain(optax.sgd(0.1), ggjax.backslash(2.0, gg_shape=1.0, **PAPER))
    state, size = tx.init(params), [float(jnp.abs(params["w"]).mean())]
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        size.append(float(jnp.abs(params["w"]).mean()))
    assert all(b < a for a, b in zip(size, size[1:], strict=False))
