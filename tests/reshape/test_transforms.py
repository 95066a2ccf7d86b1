"""DeepShape under the transformations of JAX, and on sharded weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import deepshape
from ggjax.reshape import _deepshape, _histogram
from ggjax.reshape._pieces import PIECE
from tests.reshape.reference import METHODS, draw

equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.mark.parametrize("method", METHODS)
def test_jit_is_eager_and_compiles_once(method):
    traces = []

    @jax.jit
    def jitted(x, **scales):
        traces.append(1)
        return deepshape(x, method=method, **scales)

    x = {"w": jnp.asarray(draw(0.8, 50_000, 0.02)).reshape(100, 500), "b": jnp.full(5, 0.01)}
    for scales in ({"std_scale": 0.6, "min_count": 0}, {"std_scale": 0.7, "min_count": 10}):
        eager = deepshape(x, method=method, **scales)
        jax.tree.map(np.testing.assert_array_equal, jitted(x, **scales), eager)
    assert len(traces) == 1
    before = _deepshape._reshape._cache_size()
    deepshape(x, method=method, std_scale=0.5, shape_scale=0.9, step=2.0**-12, min_count=3)
    assert _deepshape._reshape._cache_size() == before
    bad = jitted({**x, "b": jnp.full(5, jnp.nan)}, std_scale=0.6, min_count=0)[0]
    assert jnp.isnan(bad["b"]).all()  # a NaN stays one under jit


def shard(x, spec, axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    return jax.device_put(x, NamedSharding(mesh, spec))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_is_unsharded(axis_type):
    x = jnp.asarray(draw(0.8, 120_000, 0.02)).reshape(400, 300)
    tree = {"row": x[:200], "col": x[200:300], "both": x[300:], "whole": jnp.full(8, 0.01)}
    specs = {"row": P("x", None), "col": P(None, "y"), "both": P("x", "y"), "whole": P()}
    sharded = {k: shard(v, specs[k], axis_type) for k, v in tree.items()}
    want = deepshape(tree, min_count=20)
    compiled = jax.jit(deepshape).lower(sharded, min_count=20).compile()
    for f in (deepshape, compiled):
        got = f(sharded, min_count=20)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        for k, v in got[0].items():
            assert v.sharding.is_equivalent_to(sharded[k].sharding, v.ndim), k
    text = compiled.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


def test_rank_on_sharded_leaves():
    x = jnp.asarray(draw(0.8, 40_000, 0.02)).reshape(200, 200)
    with pytest.raises(
        ValueError, match="sorts the weights on one device, but leaf 'w' is sharded over an Expl"
    ):
        deepshape({"w": shard(x, P("x", None), AxisType.Explicit)}, method="rank")
    got, _ = deepshape(shard(x, P("x", None), AxisType.Auto), min_count=0, method="rank")
    np.testing.assert_array_equal(got, deepshape(x, min_count=0, method="rank")[0])


def test_memory_is_at_most_twice_the_weights():
    x = jax.ShapeDtypeStruct((2 * 10**7,), jnp.float32)
    settings = _deepshape._Settings(*[jax.ShapeDtypeStruct((), jnp.float32)] * 4)
    counting = _histogram.Counting(keep_zeros=True, whole=True, axis_name=None)
    lowered = _deepshape._reshape.lower([x], settings, counting, "histogram")
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.2 * 4 * x.size
    half = [jax.ShapeDtypeStruct((10**7,), jnp.float32)] * 2
    lowered = _deepshape._reshape.lower(half, settings, counting._replace(whole=False), "histogram")
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2 * 4 * x.size


SMALL = {"w": jnp.asarray(draw(0.8, 4096, 0.02)).reshape(64, 64), "b": jnp.zeros(8)}


def second(tree):
    return jax.tree.map(lambda v: v[1], tree)


def vmapped(f):
    return jax.vmap(lambda i: jax.tree.map(lambda v: v + 0 * i.astype(v.dtype), f()))(jnp.arange(2))


WAYS = {
    "jit": lambda f: jax.jit(f)(),
    "scan": lambda f: second(lax.scan(lambda c, _: (c, f()), 0, None, length=2)[1]),
    "vmap": lambda f: second(vmapped(f)),
    "grad": lambda f: jax.grad(lambda x: (x, f()), has_aux=True)(1.0)[1],
    "cond": lambda f: lax.cond(jnp.bool_(True), f, f),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_a_traced_function_closes_over(way):
    equal(WAYS[way](lambda: deepshape(SMALL)), deepshape(SMALL))
    assert jax.eval_shape(lambda: deepshape(SMALL))[0]["w"].shape == (64, 64)


def test_without_jit_and_with_checks_for_nan():
    """Operation by operation, so that every one is checked."""
    tree = {**SMALL, "far": jnp.float32([3e38, -1e6, 0.0]), "octet": jnp.full(3, 0.3, jnp.float8_e4m3fn)}
    want = deepshape(tree)
    with jax.disable_jit(), jax.debug_nans(True):
        got = deepshape(tree)
        for nothing in (jnp.zeros(5), jnp.full(5, 0.3)):
            deepshape(nothing)
    equal(got[0], want[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), got[1], want[1])


def test_vmap_reshapes_each_member_by_itself():
    x = jnp.asarray(draw(0.8, 3 * 4096, 0.02)).reshape(3, 64, 64)
    got = jax.jit(jax.vmap(lambda w: deepshape({"w": w, "b": jnp.zeros(8)})))(x)
    for i in range(3):
        equal(jax.tree.map(lambda v, i=i: v[i], got), deepshape({"w": x[i], "b": jnp.zeros(8)}))


def test_vmap_with_an_axis_name_reshapes_all_together():
    x = jnp.asarray(draw(0.8, 4096, 0.02)).reshape(4, 32, 32)
    got, info = jax.jit(jax.vmap(lambda w: deepshape(w, axis_name="member"), axis_name="member"))(x)
    want, want_info = deepshape(x)
    np.testing.assert_array_equal(got, want)
    equal(jax.tree.map(lambda v: v[0], info), want_info)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_inside_shard_map(axis_type):
    """By the histogram of a device, or of all of them; in pieces, and many leaves in packs."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(axis_type,), devices=jax.devices()[:2])
    large = jnp.asarray(draw(0.8, 2 * PIECE + 4, 0.02)).reshape(2, -1)
    many = {f"w{i:02}": v for i, v in enumerate(jnp.asarray(draw(0.8, 20 * 64, 0.05)).reshape(20, 64))}
    whole = jnp.asarray(draw(1.0, 4096, 0.02))

    def body(large, many, whole):
        info, all_info = deepshape(large)[1], deepshape((large, many), axis_name="d")[1]
        own, together = deepshape((large, many))[0], deepshape((large, many), axis_name="d")[0]
        return own, info.max_level[None], together, all_info, deepshape(whole)

    place = {P("d"): large, P(): (many, whole)}
    large, (many, whole) = (
        jax.tree.map(lambda v, s=s: jax.device_put(v, NamedSharding(mesh, s)), t) for s, t in place.items()
    )
    f = jax.shard_map(
        body, mesh=mesh, in_specs=(P("d"), P("d"), P()), out_specs=(P("d"), P("d"), P("d"), P(), P())
    )
    many = {k: jax.device_put(v, NamedSharding(mesh, P("d"))) for k, v in many.items()}
    own, top, together, info, replicated = jax.device_get(jax.jit(f)(large, many, whole))
    large, many, whole = jax.device_get((large, many, whole))
    equal((together, info), deepshape((large, many)))
    equal(replicated, deepshape(whole))
    for i in range(2):
        half = large[i : i + 1], {k: v[32 * i : 32 * i + 32] for k, v in many.items()}
        got = own[0][i : i + 1], {k: v[32 * i : 32 * i + 32] for k, v in own[1].items()}
        equal(got, deepshape(half)[0])
    assert top.shape == (2,)


def test_rank_refuses_an_axis_name():
    with pytest.raises(ValueError, match="sorts the weights on one device, and cannot with axis_name='d'"):
        deepshape(jnp.ones(3), method="rank", axis_name="d")


@pytest.mark.parametrize("method", METHODS)
def test_float32_stays_float32_where_float64_is_on(method):
    want = deepshape(SMALL, method=method)
    with jax.enable_x64(True):
        got = deepshape(SMALL, method=method)
        assert [v.dtype for v in jax.tree.leaves(got)] == [v.dtype for v in jax.tree.leaves(want)]
        equal(got[0], want[0])
