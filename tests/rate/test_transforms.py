"""Rates inside the transformations of JAX, its debugging modes, and with steps of every kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import rate
from ggjax.rate import _codes
from tests.rate.reference import TRACED, tree_of

WAYS = {
    "jit": lambda f: jax.jit(f)(),
    "scan": lambda f: jax.lax.scan(lambda c, _: (c, f()), 0, None, length=2)[1][0],
    "vmap": lambda f: jax.vmap(lambda x: f() + 0 * x)(jnp.arange(2.0))[0],
    "grad": lambda f: jax.value_and_grad(lambda x: f() + 0 * x)(1.0)[0],
    "shard_map": lambda f: jax.jit(
        jax.shard_map(f, mesh=jax.make_mesh((2,), ("x",)), in_specs=(), out_specs=P())
    )(),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_closed_over_are_counted_as_outside(way):
    tree = tree_of()
    for code in ("entropy", "huffman", "gg"):
        want = rate.bits(tree, 0.003, code=code)
        np.testing.assert_allclose(WAYS[way](lambda c=code: rate.bits(tree, 0.003, code=c)), want, rtol=1e-6)
    want = rate.report(tree, 0.003)
    got = []
    WAYS[way](lambda: (got.append(rate.report(tree, 0.003)), jnp.float32(0))[1])
    assert got[0] == want
    large = jnp.full((1 << 18,), 0.5).at[0].set(0)
    np.testing.assert_allclose(WAYS[way](lambda: rate.bits(large, 0.5)), rate.bits(large, 0.5), rtol=1e-6)


def test_closed_over_weights_have_an_abstract_rate_and_errors_by_name():
    tree = tree_of()
    out = jax.eval_shape(lambda: rate.bits(tree, 0.003))
    assert out.shape == () and out.dtype == jnp.float32
    bad = {"w": jnp.array([jnp.nan])}
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got nan"):
        jax.jit(lambda: rate.bits(bad, 0.1))()


def test_vmap_counts_every_row():
    w = tree_of()["a"][:8]
    for code in ("entropy", "exp_golomb_rank"):
        rows = jax.jit(jax.vmap(functools.partial(rate.bits, code=code), in_axes=(0, None)))(w, 0.003)
        np.testing.assert_allclose(rows, [rate.bits(r, 0.003, code=code) for r in w], rtol=2e-6)


@pytest.mark.parametrize("x", [[0.0, 0.1, -0.2], [0.0, 0.0, 0.0]])
def test_gradients_are_finite(x):
    """Counts are constant between jumps; the closed form follows the law's scale, d log2(rms) / dx."""
    x = jnp.array(x)
    grads = {
        c: jax.jit(jax.grad(functools.partial(rate.bits, code=c)))(x, 0.01)
        for c in ("entropy", "gg_closed_form")
    }
    np.testing.assert_array_equal(grads["entropy"], 0)
    want = x / jnp.sum(x * x) / np.log(2) if x.any() else 0 * x
    np.testing.assert_allclose(grads["gg_closed_form"], want, rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("code", ["entropy", "gg"])
def test_inside_shard_map_every_device_measures_its_shard(kind, code):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    w = jnp.concatenate(list(tree_of()["a"].reshape(4, -1) * jnp.arange(1.0, 5.0)[:, None]))

    def local(w):
        return rate.bits({"w": w}, 0.003, code=code)[None]

    f = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P("x")))
    got = f(jax.device_put(w, NamedSharding(mesh, P("x"))))
    np.testing.assert_allclose(got, [rate.bits(v, 0.003, code=code) for v in w.reshape(4, -1)], rtol=3e-6)


def test_inside_shard_map_large_shards_are_counted_in_parts():
    mesh = jax.make_mesh((2,), ("x",))
    w = jax.random.normal(jax.random.key(0), (2 << 10, 1 << 10))
    f = jax.shard_map(lambda v: rate.bits(v, 0.01)[None], mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    got = jax.jit(f)(jax.device_put(w, NamedSharding(mesh, P("x"))))
    np.testing.assert_allclose(got, [rate.bits(v, 0.01) for v in jnp.split(w, 2)], rtol=2e-6)


HEALTHY = {
    "w": jnp.array([0.0, 0.3, -0.2]),
    "zeros": jnp.zeros((2, 2)),
    "none": jnp.zeros((0, 2)),
    "s": jnp.float32(1),
}


def test_healthy_weights_make_no_nan():
    for f in (_codes.measure, TRACED["gg"]):
        f.clear_cache()  # some NaNs appear in the course of compiling
    with jax.debug_nans(True):
        want = rate.report(HEALTHY, 0.1).total.bits
        for code in ("entropy", "gg", "gg_closed_form"):
            np.testing.assert_allclose(TRACED[code](HEALTHY, 0.1), want[code], rtol=1e-6)
        np.testing.assert_allclose(jax.jit(lambda: rate.bits(HEALTHY, 0.1, code="gg"))(), want["gg"], rtol=1e-6)
        with jax.disable_jit():  # every intermediate value is looked at
            assert jnp.isfinite(jax.vmap(lambda w: rate.bits(w, 0.1))(HEALTHY["w"][:, None])).all()
            np.testing.assert_allclose(rate.bits(HEALTHY, 0.1, code="gg"), want["gg"], rtol=1e-6)


def test_without_jit():
    codes = ("entropy", "huffman", "gg")
    want = rate.report(HEALTHY, 0.1, codes=codes)
    with jax.disable_jit():
        got = rate.report(HEALTHY, 0.1, codes=codes)
    for a, b in zip((*got.rows, got.total), (*want.rows, want.total), strict=True):
        np.testing.assert_allclose(list(a.bits.values()), list(b.bits.values()), rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, np.float64, np.int32]
)
def test_steps_of_any_dtype(dtype):
    x = jnp.array([0.0, 1.0, 2.0, 5.5, -3.0])
    plain = np.dtype(dtype).type(2) if np.issubdtype(dtype, np.integer) else np.dtype(dtype).type(0.7)
    for step in (plain, jnp.asarray(plain)):
        want = rate.bits(x, float(step))
        assert rate.bits(x, step) == want
        np.testing.assert_allclose(TRACED["entropy"](x, step), want, rtol=1e-6)
        assert rate.report(x, step).step == float(step)


@pytest.mark.parametrize("step", [2.0**-125, 2.0**-120, 2.0**120])
def test_steps_at_the_ends_of_float32(step):
    q = np.float32([0, 0, 1, 2, -5, 6])
    want = rate.report(jnp.asarray(q), 1.0).total
    got = rate.report(jnp.asarray(q * np.float32(step)), step).total
    np.testing.assert_allclose(list(got.bits.values())[:-1], list(want.bits.values())[:-1], rtol=1e-6)
    np.testing.assert_allclose([got.nu, got.std], [want.nu, want.std * step], rtol=1e-6)
    x = jnp.asarray(q * np.float32(step))
    np.testing.assert_allclose(TRACED["gg_closed_form"](x, step), want.bits["gg_closed_form"], rtol=1e-6)


@pytest.mark.parametrize("step", [1e-38, 1e-45, 1e-60, 1e39])
def test_steps_beyond_the_normal_numbers_are_refused(step):
    x = jnp.array([0.0, 1e-38, 1.0])
    for f in (rate.bits, rate.report):
        with pytest.raises(
            ValueError, match="step must be a normal number of float32, 1.18e-38 to 3.4e.38, got"
        ):
            f(x, step)
    traced = np.float32(np.float64(step)) if step < 1 else np.float32(np.inf)
    assert jnp.isnan(TRACED["entropy"](x, traced))
    with jax.enable_x64(True):
        wide = jnp.asarray([0.0, 1.0, 1.0], jnp.float64) * step
        np.testing.assert_allclose(
            rate.bits(wide, step), -np.log2(1 / 3) / 3 - 2 / 3 * np.log2(2 / 3), rtol=1e-6
        )
