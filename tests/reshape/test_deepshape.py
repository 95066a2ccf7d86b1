"""DeepShape against a sort in NumPy float64, its histogram against its target, and its behaviour on trees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import DeepShapeInfo, deepshape
from ggjax.reshape import _deepshape

STEP = 2.0**-13
METHODS = ["histogram", "rank"]


def draw(nu, n, std=1.0, seed=0):
    r = np.random.default_rng(seed)
    x = r.gamma(1 / nu, size=n) ** (1 / nu) * r.choice([-1.0, 1.0], n)
    return np.float32(x * std / np.sqrt(sp.gamma(3 / nu) / sp.gamma(1 / nu)))


def fit64(x):
    """Shape (nearest of 0.10, 0.11, ..., 3.00) and scale by moments about 0."""
    if not np.any(x):
        return 2.0, 0.0
    ratio = np.mean(x**2) / np.mean(np.abs(x)) ** 2
    nus = np.round(np.arange(10, 301) / 100, 2)
    rho = np.exp(sp.gammaln(1 / nus) + sp.gammaln(3 / nus) - 2 * sp.gammaln(2 / nus))
    nu = nus[np.argmin(np.abs(rho - ratio))]
    return nu, np.sqrt(np.mean(x**2) * sp.gamma(1 / nu) / sp.gamma(3 / nu))


def reference(x, shape_scale=0.8, std_scale=0.6, step=STEP, min_count=1000):
    """New levels by sorting; (levels, nu, alpha, mu, max_level, kept, target pmf), all in float64."""
    x = np.float64(x)
    q = np.rint(x / step).astype(int)
    values, counts = np.unique(q[q > 0], return_counts=True)
    rare = values[counts <= min_count]
    fitted = x[np.abs(x) <= rare[0] * step] if rare.size else x
    nu, alpha = fit64(fitted)
    mu = int(np.trunc(fitted.mean() / step))
    top = int(rare[0]) if rare.size else int(np.abs(q - mu).max())
    k = np.arange(-top, top + 1)
    scale = max(alpha * std_scale / step, 1e-30)
    pmf = np.exp(-((np.abs(k) / scale) ** (nu * shape_scale)))
    pmf /= pmf.sum()
    kept = np.flatnonzero(np.abs(q - mu) <= top)
    order = kept[np.argsort(x[kept], kind="stable")]
    out = q.copy()
    rank = (np.arange(kept.size) + 0.5) / max(kept.size, 1)
    out[order] = mu + k[np.minimum(np.searchsorted(np.cumsum(pmf), rank, side="right"), 2 * top)]
    return out, nu, alpha, mu, top, kept, pmf


def levels(x, step=STEP):
    return np.rint(np.asarray(x, np.float64) / step).astype(int)


def total_variation(new, mu, top, kept, pmf):
    counts = np.bincount(new[kept] - mu + top, minlength=pmf.size)
    return 0.5 * np.abs(counts / kept.size - pmf).sum()


CASES = {
    "peaked": (draw(0.6, 10**6, 0.01), {}),
    "laplace": (draw(1.0, 10**6, 0.02, 1), {"min_count": 100}),
    "off centre": (draw(1.2, 10**6, 0.01, 2) + np.float32(0.004), {"min_count": 200}),
    "uncut": (draw(0.9, 10**6, 0.01, 3), {"min_count": 0}),
    "wider": (draw(1.0, 10**6, 0.01, 4), {"min_count": 50, "shape_scale": 1.3, "std_scale": 1.5}),
    "coarse": (draw(0.8, 10**6, 0.02, 5), {"min_count": 20, "step": 0.003}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_histogram_is_the_target(case, method):
    x, options = CASES[case]
    want, nu, alpha, mu, top, kept, pmf = reference(x, **options)
    step = options.get("step", STEP)
    new, info = deepshape(jnp.asarray(x.reshape(1000, -1)), method=method, **options)
    new = np.asarray(new).ravel()
    assert int(info.max_level) == top
    assert abs(float(info.before.nu) - nu) <= 0.0101
    np.testing.assert_allclose(info.before.scale, alpha, rtol=0.02)  # alpha moves with nu by a table step
    assert round(float(info.before.loc) / step) == mu
    got = levels(new, step)
    np.testing.assert_array_equal(new, np.float32(got) * np.float32(step))  # the grid
    assert total_variation(got, mu, top, kept, pmf) < 0.01
    assert np.mean(got != want) < 0.02 and np.abs(got - want)[np.abs(want - mu) < top // 2].max() <= 2
    ordered = got[kept[np.argsort(x[kept], kind="stable")]]
    assert np.all(np.diff(ordered) >= 0)  # monotone
    outside = np.setdiff1d(np.arange(x.size), kept)
    np.testing.assert_array_equal(got[outside], levels(x, step)[outside])
    # What the info says of the result.
    nu_after, alpha_after = fit64(new[kept].astype(np.float64))
    assert abs(float(info.after.nu) - nu_after) <= 0.0201
    np.testing.assert_allclose(info.after.scale, alpha_after, rtol=0.03)
    np.testing.assert_allclose(info.moved, np.mean(got != levels(x, step)), atol=0.01)


def test_one_table_serves_the_whole_tree():
    x = draw(0.8, 300_000, 0.02)
    whole, info = deepshape(jnp.asarray(x), min_count=20)
    tree = {"a": jnp.asarray(x[:100]), "b": [jnp.asarray(x[100:200_100]).reshape(400, 500)], "c": x[200_100:]}
    parts, parts_info = deepshape(tree, min_count=20)
    assert isinstance(parts_info, DeepShapeInfo)
    np.testing.assert_array_equal(np.concatenate([np.ravel(v) for v in jax.tree.leaves(parts)]), whole)
    jax.tree.map(np.testing.assert_array_equal, info, parts_info)


def test_many_small_leaves_are_reshaped_like_one():
    """Packed together, in few programs: with empty leaves, scalars, one of more than a pack, other dtypes."""
    x = draw(0.8, 60_000, 0.02)
    cuts = np.cumsum([0, 20_000, *[7] * 30, 0, *[1] * 30, 0, *[120] * 100, 20_000])
    assert cuts[-1] < x.size
    parts = {f"w{i:03}": x[a:b].reshape(-1, 1) for i, (a, b) in enumerate(itertools.pairwise([*cuts, x.size]))}
    half = {f"z{i:02}": parts.pop(f"w{i:03}").astype(jnp.bfloat16) for i in range(40, 70)}
    parts = {k: jnp.asarray(v) for k, v in {**parts, **half}.items()}
    lone = jax.tree.map(jnp.ravel, parts)
    lone = {t: jnp.concatenate([v for v in lone.values() if v.dtype == t]) for t in (jnp.float32, jnp.bfloat16)}
    got, info = deepshape(parts, min_count=10)
    want, want_info = deepshape(list(lone.values()), min_count=10)
    jax.tree.map(np.testing.assert_array_equal, info, want_info)
    for dtype, v in zip(lone, want, strict=True):
        back = [np.ravel(g) for g in got.values() if g.dtype == dtype]
        np.testing.assert_array_equal(np.concatenate(back), v)
    assert all(got[k].shape == parts[k].shape and got[k].dtype == parts[k].dtype for k in parts)


def test_a_program_for_many_leaves_rounds_in_packs():
    """Not leaf by leaf: XLA must not fuse what is done to a pack into the slices that leaves are cut out by."""
    leaves = [jnp.ones(100)] * 200
    args = [jnp.float32(v) for v in (0.8, 0.6, 2**-13, 0)]
    compiled = _deepshape._reshape.lower(leaves, *args, method="histogram", whole=True).compile()
    assert compiled.as_text().count(" round-nearest-even(") < 40


def test_no_rare_level_and_min_count_zero_keep_everything():
    x = np.repeat(np.float32([-3, -1, 0, 1, 2]), 2000) * np.float32(STEP)
    for min_count in (0, 1000):  # no level is rare in either
        new, info = deepshape(
            jnp.asarray(x), min_count=min_count, std_scale=1.0, shape_scale=1.0, method="rank"
        )
        assert int(info.max_level) == 3
        np.testing.assert_array_equal(levels(new), reference(x, 1.0, 1.0, min_count=min_count)[0])
    negative = -jnp.abs(jnp.asarray(x))  # no positive level at all
    new, info = deepshape(negative)
    assert int(info.max_level) == 2  # from mu = -1
    assert levels(new).min() >= -3 and levels(new).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_weights_are_assigned(method):
    x = draw(1.0, 200_000, 0.01)
    x[0], x[1] = x.max() * 1.5, -x.max() * 1.5  # alone at both ends
    new, info = deepshape(jnp.asarray(x), min_count=0, method=method)
    got = levels(new)
    assert got[0] == got.max() < levels(x)[0] and got[1] == got.min() > levels(x)[1]
    assert int(info.max_level) == levels(x)[0]


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_trees_are_defined(method):
    for tree in ({}, {"w": None}, {"w": jnp.zeros((0, 3))}, {"w": jnp.zeros((2, 3)), "b": jnp.zeros(())}):
        new, info = deepshape(tree, method=method)
        jax.tree.map(np.testing.assert_array_equal, new, tree)
        np.testing.assert_array_equal(info.before, [2, 0, 0])
        np.testing.assert_array_equal(info.after, [2, 0, 0])
        assert int(info.max_level) == 0 and float(info.moved) == 0
    for value in (0.3, -0.3, 100.0, 3e38):
        new, info = deepshape(jnp.float32(value), method=method)
        assert new.shape == () and jnp.isfinite(new)
        assert abs(float(new) - np.float32(value)) <= 0.3 and all(map(np.isfinite, jax.tree.leaves(info)))


def test_weights_out_of_reach_are_only_rounded():
    x = jnp.concatenate([draw(1.0, 20_000, 0.01), jnp.array([9.00001, -1e6, 3e38, -8.5])])
    new, info = deepshape(x, min_count=0)
    np.testing.assert_array_equal(new[-4:], np.float32([9, -1e6, 3e38, -8.5]))
    assert int(info.max_level) < 1500


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_get_the_nearest_value(dtype):
    x = jnp.asarray(draw(0.8, 50_000, 0.02)).astype(dtype)
    tree = {"w": x, "ids": jnp.arange(3), "b": jnp.float32([0.01, 0.02])}
    new, _ = deepshape(tree, min_count=0)
    assert new["w"].dtype == dtype and new["b"].dtype == jnp.float32
    np.testing.assert_array_equal(new["ids"], tree["ids"])
    wide, _ = deepshape({**tree, "w": x.astype(jnp.float32)}, min_count=0)
    np.testing.assert_array_equal(new["w"], wide["w"].astype(dtype))
    np.testing.assert_array_equal(new["b"], wide["b"])


def test_float64_weights():
    with jax.enable_x64(True):
        x = np.float64(draw(0.8, 100_000, 0.02)) + 1e-9
        for method in METHODS:
            new, _ = deepshape(jnp.asarray(x), min_count=20, method=method)
            assert new.dtype == jnp.float64
            want, *_ = reference(x, min_count=20)
            assert np.mean(levels(new) != want) < 0.03


def test_mask_leaves_the_rest_alone():
    x = jnp.asarray(draw(0.8, 50_000, 0.02))
    tree = {"w": x, "scale": jnp.full(7, 0.123456), "none": None}
    new, info = deepshape(tree, min_count=0, mask={"w": True, "scale": False, "none": None})
    assert new["scale"] is tree["scale"]
    alone, alone_info = deepshape(x, min_count=0)
    np.testing.assert_array_equal(new["w"], alone)
    jax.tree.map(np.testing.assert_array_equal, info, alone_info)
    by_name, _ = deepshape(tree, min_count=0, mask=lambda t: {k: k == "w" for k in t})
    np.testing.assert_array_equal(by_name["w"], alone)


def test_bad_arguments_are_named():
    w = {"a": {"w": jnp.ones(4)}}
    for name in ("shape_scale", "std_scale", "step"):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, got -0.5"):
            deepshape(w, **{name: -0.5})
    with pytest.raises(ValueError, match="min_count must be at least 0, got -1"):
        deepshape(w, min_count=-1)
    with pytest.raises(ValueError, match="min_count must be at least 0, got nan"):
        deepshape(w, min_count=float("nan"))
    with pytest.raises(TypeError, match="min_count must be a number, got 'all'"):
        deepshape(w, min_count="all")
    with pytest.raises(ValueError, match='method must be "histogram" or "rank", got \'sort\''):
        deepshape(w, method="sort")
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got inf at index \(1,\)"):
        deepshape({"a": {"w": jnp.array([1.0, jnp.inf])}})
    with pytest.raises(ValueError, match="no floating-point.*'ids', is int32"):
        deepshape({"ids": jnp.arange(3)})
    with pytest.raises(ValueError, match="mask does not fit the tree"):
        deepshape(w, mask={"b": True})


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


def test_counts_beyond_the_integers(monkeypatch):
    """With integers of 14 bits, 50,000 weights take the path of 10^10: groups of leaves, ranks in units."""
    x = jnp.asarray(draw(0.8, 50_000, 0.02))
    leaves = [x[i : i + 12_500] for i in range(0, x.size, 12_500)]
    args = [jnp.float32(v) for v in (0.8, 0.6, STEP, 20)]
    reshape = _deepshape._reshape.__wrapped__
    want, want_info = reshape(leaves, *args, method="histogram", whole=False)
    monkeypatch.setattr(_deepshape, "_COUNT_BITS", 14)
    got, info = reshape(leaves, *args, method="histogram", whole=False)
    assert int(info.max_level) == int(want_info.max_level)
    got, want = levels(np.concatenate(got)), levels(np.concatenate(want))
    order = np.argsort(np.asarray(x), kind="stable")
    inner = order[np.abs(levels(x))[order] <= int(info.max_level)]
    assert np.all(np.diff(got[inner]) >= 0)
    counts = [np.bincount(v[inner] + 5000, minlength=10001) for v in (got, want)]
    assert 0.5 * np.abs(counts[0] - counts[1]).sum() / inner.size < 0.03  # units of 4 ranks


def test_memory_is_at_most_twice_the_weights():
    x = jax.ShapeDtypeStruct((2 * 10**7,), jnp.float32)
    args = [jax.ShapeDtypeStruct((), jnp.float32)] * 4
    lowered = _deepshape._reshape.lower([x], *args, method="histogram", whole=True)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.2 * 4 * x.size
    half = [jax.ShapeDtypeStruct((10**7,), jnp.float32)] * 2
    lowered = _deepshape._reshape.lower(half, *args, method="histogram", whole=False)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2 * 4 * x.size


@settings(max_examples=25, deadline=None)
@given(
    x=st.lists(st.floats(-9, 9, width=32), min_size=64, max_size=64),
    exponent=st.integers(-10, 0),
    scales=st.tuples(st.floats(0.2, 3), st.floats(0.05, 3)),
    step=st.floats(2**-13, 1),
    min_count=st.sampled_from([0, 1, 3, 1000]),
    method=st.sampled_from(METHODS),
)
def test_always_monotone_and_on_the_grid(x, exponent, scales, step, min_count, method):
    x = np.float32(x) * np.float32(2.0**exponent)
    step = np.float32(step)
    new, info = deepshape(
        jnp.asarray(x),
        shape_scale=scales[0],
        std_scale=scales[1],
        step=step,
        min_count=min_count,
        method=method,
    )
    new = np.asarray(new)
    got = levels(new, np.float64(step))
    np.testing.assert_array_equal(new, np.float32(got) * step)
    q = np.rint(x / step).astype(int)
    mu, top = round(float(info.before.loc) / float(step)), int(info.max_level)
    reached = (np.abs(q) <= 2**16) & (np.abs(q - mu) <= top)
    if method == "histogram":
        assert np.all(np.diff(got[reached][np.argsort(x[reached], kind="stable")]) >= 0)
    np.testing.assert_array_equal(got[~reached], q[~reached])
    assert np.all(np.abs(got[reached] - mu) <= top)
    if min_count == 0:
        assert np.all(reached[np.abs(q) <= 2**15])
