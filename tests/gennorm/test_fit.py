"""The fit: weights of every size, spread over devices, of odd dtypes, in trees of many leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from hypothesis import given, settings
from hypothesis import strategies as hs
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import gennorm
from ggjax._internal import pack
from ggjax.gennorm import _fit, _sums

LAW = st.gennorm(0.8, scale=0.05)
X = LAW.rvs(4096, random_state=1).astype(np.float32)


@functools.cache
def fitted(center=False):
    return gennorm.fit(X, center=center, method="interp")


@settings(max_examples=20, deadline=None)
@given(hs.integers(-105, 105), hs.booleans())
def test_a_power_of_two_changes_nothing_but_the_unit(exponent, center):
    factor = np.float32(2.0) ** np.float32(exponent)
    law, unit = gennorm.fit(X * factor, center=center, method="interp"), fitted(center)
    np.testing.assert_array_equal(law, [unit.nu, unit.scale * factor, unit.loc * factor])


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("center", [False, True])
def test_weights_of_any_size_fit_as_in_float64(size, center):
    x = X * np.float32(size)
    law = gennorm.fit({"a": x[:1000].reshape(10, 100), "b": x[1000:]}, center=center)
    wide = np.float64(x) - (np.float64(x).mean() if center else 0)
    nus, ratios = gennorm.table()
    nu = nus[np.argmin(np.abs(ratios - np.mean(wide**2) / np.mean(np.abs(wide)) ** 2))]
    np.testing.assert_allclose(law.nu, nu, rtol=1e-7)
    np.testing.assert_allclose(law.scale, np.sqrt(np.mean(wide**2)) / st.gennorm(nu).std(), rtol=3e-6)


def test_weights_of_different_sizes_together():
    tree = {
        "tiny": X * np.float32(1e-30),
        "huge": np.array([3e38, -3e38], np.float32),
        "zero": np.zeros(5, np.float32),
    }
    law = gennorm.fit(tree)
    assert law.nu == np.float32(0.1) and np.isfinite(law.scale)  # two values hold all of the variance


@pytest.mark.parametrize("value", [0.1, -0.1, 1e-30, 3e38, 1e-40])
def test_constant_weights_have_no_width_about_their_mean(value):
    law = gennorm.fit(np.full(1000, value, np.float32), center=True)
    np.testing.assert_array_equal(law, np.float32([2, 0, value if abs(value) > 1e-38 else law.loc]))


def abs_moments(leaves, unit=1.0):
    return _sums.moments(_sums.together(leaves), 0.0, unit, None)


def test_moments_of_many_laws_at_once():
    first, second = (jnp.stack(m) for m in zip(*(abs_moments([x]) for x in (X, X**3, 0 * X)), strict=True))
    laws = _fit.from_moments(first, second, jnp.full(3, float(X.size)))
    for i, x in enumerate((X, X**3, 0 * X)):
        np.testing.assert_allclose([v[i] for v in laws], gennorm.fit(x), rtol=1e-6)
    stacked = jax.vmap(gennorm.fit)(jnp.stack([X, X**3, 0 * X]))
    np.testing.assert_allclose(stacked, laws, rtol=1e-6)


def test_moments_in_a_unit():
    first, second = abs_moments([X * np.float32(1e25)], unit=1e25)
    np.testing.assert_allclose(first, np.abs(np.float64(X)).sum(), rtol=1e-5)
    law = _fit.from_moments(first, second, float(X.size), unit=1e25)
    np.testing.assert_allclose(law.scale, gennorm.fit(X).scale * 1e25, rtol=1e-5)


def test_the_gradient_of_the_scale_needs_no_unit():
    """Along the weights the scale grows as they do; zeros among them do no harm."""
    x = np.concatenate([X, np.zeros(3, np.float32)])
    for size in (1e-30, 1.0, 1e30):
        scale, slope = jax.value_and_grad(lambda s: gennorm.fit(x * s).scale)(np.float32(size))
        np.testing.assert_allclose(slope * np.float32(size), scale, rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda x: gennorm.fit(x).scale)(jnp.zeros(4))))


def test_shards_fit_one_law_by_axis_name():
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    specs = {"w": P("x", None), "b": P()}
    tree = {"w": X.reshape(64, 64) * np.float32(1e25), "b": X[:50] * np.float32(1e25)}
    tree = jax.device_put(tree, {k: NamedSharding(mesh, s) for k, s in specs.items()})

    def global_fit(t):
        return gennorm.fit(t, axis_name=("x", "y"), center=True, method="interp")

    law = jax.jit(jax.shard_map(global_fit, mesh=mesh, in_specs=(specs,), out_specs=P()))(tree)
    np.testing.assert_allclose(law, gennorm.fit(tree, center=True, method="interp"), rtol=1e-5)

    def local_fit(t):
        return gennorm.fit(t["w"]).scale[None]

    scales = jax.jit(jax.shard_map(local_fit, mesh=mesh, in_specs=(specs,), out_specs=P("x")))(tree)
    np.testing.assert_allclose(
        scales, [gennorm.fit(w).scale for w in np.split(np.asarray(tree["w"]), 4)], rtol=1e-6
    )


def test_shards_fit_one_law_where_nothing_tracks_them():
    parts = X.reshape(4, -1)
    laws = jax.vmap(lambda x: gennorm.fit(x, axis_name="i"), axis_name="i")(parts)
    for v, want in zip(laws, gennorm.fit(X), strict=True):
        np.testing.assert_allclose(v, np.full(4, want), rtol=1e-6)


def test_leaves_of_many_shapes_are_packed(monkeypatch):
    leaves = [X[: 5 + i].reshape(1, -1) for i in range(20)] + [X[:7], X[7:14], np.zeros((0, 2), np.float32)]
    want = gennorm.fit(leaves, center=True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(_sums, "_FEW", 3)
    monkeypatch.setattr(pack, "MOST", 8)
    assert [sum(x.size for x in g) for g in _sums.together(leaves).groups] == [14, 68, 132, 90]
    law = jax.jit(lambda t: _fit.fit_leaves.__wrapped__(t, center=True))(leaves)
    np.testing.assert_allclose(law, want, rtol=1e-6)


ODD = [jnp.float8_e8m0fnu, jnp.float4_e2m1fn, jnp.float6_e2m3fn, jnp.float6_e3m2fn]


@pytest.mark.parametrize("dtype", ODD)
def test_floats_that_hold_no_weights(dtype):
    odd = np.ones(3).astype(dtype)  # NumPy's: XLA has no arrays of six bits on a CPU
    np.testing.assert_array_equal(gennorm.fit({"w": X, "codes": odd}), gennorm.fit(X))
    with pytest.raises(TypeError, match=f"{jnp.dtype(dtype)} holds scales or codes, not weights"):
        gennorm.fit(odd)
    with pytest.raises(TypeError, match=f"{jnp.dtype(dtype)} holds scales or codes, not weights"):
        gennorm.sample(jax.random.key(0), 1.0, (3,), dtype)


def test_complex_arguments_are_refused():
    with pytest.raises(TypeError, match="expected real numbers, got complex64"):
        gennorm.logpdf(1j, 1.0)
