"""Every function of the law in every way that JAX calls functions, and in its modes."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import gennorm

X = jnp.linspace(-1, 1, 8)
Q = jnp.linspace(0.1, 0.9, 8)
NU, SCALE = jnp.float32(0.7), jnp.float32(0.3)
KEY = jax.random.key(3)

CALLS = {
    "fit": lambda x=X, q=Q, nu=NU: gennorm.fit({"w": x}),
    "fit_center": lambda x=X, q=Q, nu=NU: gennorm.fit({"w": x}, center=True, method="interp"),
    "logpdf": lambda x=X, q=Q, nu=NU: gennorm.logpdf(x, nu, SCALE, 0.1),
    "cdf": lambda x=X, q=Q, nu=NU: gennorm.cdf(x, nu, SCALE, 0.1),
    "ppf": lambda x=X, q=Q, nu=NU: gennorm.ppf(q, nu, SCALE, 0.1),
    "std": lambda x=X, q=Q, nu=NU: gennorm.std(nu, SCALE),
    "entropy": lambda x=X, q=Q, nu=NU: gennorm.entropy(nu, SCALE),
    "rho": lambda x=X, q=Q, nu=NU: gennorm.rho(nu),
    "shape_from_ratio": lambda x=X, q=Q, nu=NU: gennorm.shape_from_ratio(1 + q, "interp"),
    "sample": lambda x=X, q=Q, nu=NU: gennorm.sample(KEY, nu, (8,), x.dtype, scale=SCALE),
    "sample_each": lambda x=X, q=Q, nu=NU: gennorm.sample(KEY, nu + q, (8,), x.dtype),
}
WAYS = {
    "jit": lambda g: jax.jit(g)(),
    "scan": lambda g: jax.lax.scan(lambda c, _: (c, g()), 0, None, length=2),
    "vmap": lambda g: jax.vmap(lambda x: (g(), x)[1])(jnp.arange(2.0)),
    "grad": lambda g: jax.grad(lambda x: (g(), x)[1])(1.0),
}


def same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
def test_closed_over_values_in_every_way(name):
    for way in WAYS.values():
        jax.eval_shape(functools.partial(way, CALLS[name]))  # traces as each of them does, and compiles nothing
    same(jax.jit(CALLS[name])(), CALLS[name]())


@pytest.mark.parametrize("name", CALLS)
def test_arguments_may_be_traced_or_mapped(name):
    same(jax.jit(CALLS[name])(X, Q, NU), CALLS[name]())
    mapped = jax.vmap(CALLS[name])(jnp.stack([X, X]), jnp.stack([Q, Q]), jnp.stack([NU, NU]))
    same(jax.tree.map(lambda v: v[1], mapped), CALLS[name]())


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name, caplog):
    CALLS[name]()
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        jax.block_until_ready(CALLS[name]())
    assert not [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()]


@pytest.mark.parametrize("name", CALLS)
def test_without_jit_and_watching_for_nan(name):
    want = CALLS[name]()
    with jax.disable_jit(), jax.debug_nans(True):
        same(CALLS[name](), want)


@pytest.mark.parametrize("name", CALLS)
def test_inside_shard_map(name):
    mesh = jax.make_mesh((2,), ("i",), devices=jax.devices()[:2])
    out = P() if name in ("std", "entropy", "rho", "sample") else P("i")
    batched = name.startswith("fit")

    def local(x, q, nu):
        got = CALLS[name](x, q, nu) if name != "sample_each" else gennorm.sample(KEY, nu + q)
        return jax.tree.map(lambda v: v[None], got) if batched else got

    x, q = (jax.device_put(v, NamedSharding(mesh, P("i"))) for v in (X, Q))
    got = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P("i"), P("i"), P()), out_specs=out))(x, q, NU)
    if batched:
        same(jax.tree.map(lambda v: v[1], got), CALLS[name](X[4:]))
    elif name != "sample_each":
        same(got, CALLS[name]())


@pytest.mark.parametrize("name", CALLS)
def test_float32_stays_float32_under_x64(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        narrow = jax.eval_shape(CALLS[name], X, Q, NU), jax.eval_shape(CALLS[name])
        assert {v.dtype for v in jax.tree.leaves(narrow)} == {jnp.dtype("float32")}
        wide = jax.eval_shape(CALLS[name], np.float64(X), np.float64(Q), np.float64(NU))
        assert {v.dtype for v in jax.tree.leaves(wide)} == {jnp.dtype("float64")}


@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_python_numbers_follow_the_arrays_under_x64(promotion):
    with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
        for nu in (1, 0.7):
            narrow = {
                "logpdf": lambda nu=nu: gennorm.logpdf(X, nu, 2, 0.5),
                "traced": lambda nu=nu: jax.jit(gennorm.logpdf)(X, nu),
                "half": lambda nu=nu: gennorm.logpdf(X.astype(jnp.bfloat16), nu),
                "whole": lambda nu=nu: gennorm.logpdf(jnp.arange(3), nu, SCALE),
                "cdf": lambda nu=nu: gennorm.cdf(X, nu, 2, 0.5),
                "ppf": lambda nu=nu: gennorm.ppf(Q, nu),
                "std": lambda nu=nu: gennorm.std(nu, SCALE),
                "entropy": lambda nu=nu: gennorm.entropy(nu, SCALE),
                "sample": lambda nu=nu: gennorm.sample(KEY, nu, (3,), jnp.float32, scale=2.0),
            }
            for name, f in narrow.items():
                assert jax.eval_shape(f).dtype == np.float32, name
            assert gennorm.logpdf(nu, nu).dtype == gennorm.rho(nu).dtype == gennorm.std(nu).dtype == np.float64


def test_known_nans_are_named_and_traced_ones_stay():
    bad = {"w": jnp.array([1.0, jnp.inf])}
    with pytest.raises(ValueError, match=r"leaf 'w': expected finite weights, got inf at index \(1,\)"):
        gennorm.fit(bad)
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights"):
        jax.jit(lambda: gennorm.fit(bad))()
    assert all(np.isnan(v) for v in jax.jit(gennorm.fit)(bad)[:2])


@pytest.mark.parametrize("name", [n for n in CALLS if not n.startswith("sample")])
def test_arrays_on_an_explicit_mesh(name):
    """Called eagerly, outside any ``jax.set_mesh``."""
    mesh = jax.make_mesh((2,), ("i",), devices=jax.devices()[:2])
    x, q, nu = (jax.device_put(v, NamedSharding(mesh, P("i"))) for v in (X, Q, jnp.full(8, NU)))
    same(CALLS[name](x, q, nu), CALLS[name](X, Q, jnp.full(8, NU)))
