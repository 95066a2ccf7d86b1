"""DeepShape on trees: many leaves, odd leaves, every dtype, nothing at all."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import DeepShapeInfo, deepshape
from ggjax.reshape import _deepshape, _histogram, _levels
from tests.reshape.reference import METHODS, STEP, draw, levels, reference


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
    settings = _deepshape._Settings(*(jnp.float32(v) for v in (0.8, 0.6, STEP, 0)))
    counting = _histogram.Counting(keep_zeros=True, whole=True, axis_name=None)
    compiled = _deepshape._reshape.lower(leaves, settings, counting, "histogram").compile()
    assert compiled.as_text().count(" round-nearest-even(") < 40


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


NARROW = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]


def test_narrow_dtypes_get_the_nearest_value_and_others_pass():
    x = jnp.asarray(draw(0.8, 20_000, 0.02))
    weights = {name: x.astype(name) for name in NARROW} | {"b": jnp.float32([0.01, 0.02])}
    others = {
        "ids": jnp.arange(3),
        "scales": jnp.ones(3, jnp.float8_e8m0fnu),
        "codes": jnp.ones(3, jnp.float4_e2m1fn),
        "activation": jax.nn.relu,
        "name": "dense",
        "key": jax.random.key(0),
    }
    new, _ = deepshape({**weights, **others}, min_count=0)
    wide, _ = deepshape(jax.tree.map(lambda v: v.astype(jnp.float32), weights), min_count=0)
    for name, w in weights.items():
        assert new[name].dtype == w.dtype
        np.testing.assert_array_equal(new[name], wide[name].astype(w.dtype))
    assert all(new[k] is v for k, v in others.items())


def test_no_level_is_beyond_the_range_of_a_dtype():
    for dtype, weight, step in (
        ("float8_e4m3fn", 448, 250),
        ("float16", 65504, 40_000),
        ("float32", 3e38, 2e38),
    ):
        x, step = jnp.asarray(weight, dtype), jnp.float32(step)
        q = _levels.level_of(x, step)
        assert float(q) == 2
        assert float(_levels.value_of(q, x, step)) == float(jnp.finfo(dtype).max)
        assert float(_levels.value_of(-q, x, step)) == -float(jnp.finfo(dtype).max)


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
    with pytest.raises(ValueError, match="min_count must be at least 0 and finite, got -1"):
        deepshape(w, min_count=-1)
    with pytest.raises(ValueError, match="min_count must be at least 0 and finite, got nan"):
        deepshape(w, min_count=float("nan"))
    with pytest.raises(TypeError, match="min_count must be a number, got 'all'"):
        deepshape(w, min_count="all")
    with pytest.raises(ValueError, match=r"step must be a scalar, got an array of shape \(2,\)"):
        deepshape(w, step=jnp.ones(2))
    with pytest.raises(TypeError, match="keep_zeros must be a bool, got 1"):
        deepshape(w, keep_zeros=1)
    with pytest.raises(ValueError, match='method must be "histogram" or "rank", got \'sort\''):
        deepshape(w, method="sort")
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got inf at index \(1,\)"):
        deepshape({"a": {"w": jnp.array([1.0, jnp.inf])}})
    with pytest.raises(ValueError, match="no floating-point.*'ids', is int32"):
        deepshape({"ids": jnp.arange(3)})
    with pytest.raises(ValueError, match="mask does not fit the tree"):
        deepshape(w, mask={"b": True})
