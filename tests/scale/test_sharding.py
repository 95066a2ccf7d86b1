"""Sharded weights stay where they are: what the compiled programs send between devices.

On eight virtual devices, from the text of the compiled programs: no collective moves an array of the size of a
leaf's shard; what is all-reduced are scalars and histograms.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax import gennorm, rate, rf8
from ggjax.rate import _histogram

MESHES = {
    "auto": jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2),
    "explicit": jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2),
}
SPECS = {
    "rows": P("x", None),
    "columns": P(None, "y"),
    "both": P("x", "y"),
    "joint": P(("x", "y"), None),
    "cube": P(None, "x", "y"),
    "replicated": P(),
    "scalar": P(),
}
SHAPES = {k: (256, 512) for k in SPECS} | {"cube": (4, 256, 128), "replicated": (64,), "scalar": ()}
SHARD = 256 * 512 // 8
"""Elements of the smallest shard of a matrix."""

COLLECTIVE = re.compile(
    r"= (?P<shape>\([^)]*\)|\S+) (?P<name>all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)
STEP = 2.0**-6
STEPS = {k: np.full((*s[:-1], 1) if s else (), STEP, np.float32) for k, s in SHAPES.items()}
"""Of rows."""


def backslash_step(options, params):
    tx = optax.chain(optax.scale(0.1), ggjax.backslash(0.5, **options))
    updates, state = tx.update(params, tx.init(params), params)
    return optax.apply_updates(params, updates), state


def to_rate_step(step, params):
    tx = optax.chain(optax.scale(0.1), ggjax.backslash_to_rate(2.0, step, learning_rate=0.1))
    updates, state = tx.update(params, tx.init(params), params)
    return optax.apply_updates(params, updates), state


def rows_only(params):
    return {k: k != "columns" for k in params}


FUNCTIONS = {
    "backslash": functools.partial(backslash_step, {}),
    "backslash_per_leaf": functools.partial(backslash_step, {"per_leaf": True}),
    "backslash_masked": functools.partial(backslash_step, {"mask": rows_only, "estimate_every": 2}),
    "to_rate": functools.partial(to_rate_step, STEP),
    "to_rate_rows": functools.partial(to_rate_step, STEPS),
    "deepshape": lambda p: ggjax.deepshape(p, step=STEP, min_count=3),
    "rf8": lambda p: rf8.tree_encode(p),
    "rf8_by_column": lambda p: rf8.tree_decode(rf8.tree_encode(p, axis=0)),
    "fit": lambda p: gennorm.fit(p, center=True),
    "entropy": lambda p: rate.bits(p, STEP),
    "gg_rate": lambda p: rate.bits(p, STEP, code="gg"),
    "penalty": lambda p: jax.value_and_grad(lambda q: rate.penalty(q, eps=0.1))(p),
}
EXACT = {"rf8", "rf8_by_column"}


def tree():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {k: 0.3 * jax.random.normal(key, s) for key, (k, s) in zip(keys, SHAPES.items(), strict=True)}


def placed(mesh, params):
    return {k: jax.device_put(v, NamedSharding(MESHES[mesh], SPECS[k])) for k, v in params.items()}


def moved(text):
    """(operation, elements) of every collective in the text of a compiled program."""
    out = []
    for match in COLLECTIVE.finditer(text):
        sizes = [
            int(np.prod([int(n) for n in dims.split(",") if n]))
            for dims in re.findall(r"\[([\d,]*)\]", match["shape"])
        ]
        out.append((match["name"], max(sizes, default=0)))
    return out


def assert_stays(text):
    """No collective of a shard's size, and none but all-reduce of a histogram's."""
    for name, size in moved(text):
        histogram = name == "all-reduce" and size <= 4 * rate.TRACED_LEVELS
        assert size < SHARD or histogram, f"{name} of {size} elements"


@functools.cache
def compiled(name, mesh):
    return jax.jit(FUNCTIONS[name]).lower(placed(mesh, tree())).compile()


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_scalars_and_histograms_travel(name, mesh):
    text = compiled(name, mesh).as_text()
    assert_stays(text)
    if name != "rf8_by_column":
        assert any(n == "all-reduce" for n, _ in moved(text)), "the shards do not share their statistics"


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_result_is_that_of_whole_weights(name, mesh):
    params = tree()
    got, want = compiled(name, mesh)(placed(mesh, params)), jax.jit(FUNCTIONS[name])(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if name in EXACT:
            np.testing.assert_array_equal(a, b)
        elif name == "deepshape":  # float sums decide the target: a weight on an edge may take the next level
            assert np.mean(np.abs(a - b) > 1e-6) < 1e-3 and np.abs(a - b).max() < 1.01 * STEP
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    "name",
    [
        "backslash",
        "backslash_per_leaf",
        "backslash_masked",
        "to_rate",
        "to_rate_rows",
        "deepshape",
        "rf8_by_column",
    ],
)
def test_leaves_keep_their_sharding(name, mesh):
    params = placed(mesh, tree())
    out = compiled(name, mesh)(params)
    new = out if name == "rf8_by_column" else out[0]
    for k, v in params.items():
        assert new[k].sharding.is_equivalent_to(v.sharding, v.ndim), k


@pytest.mark.parametrize("mesh", MESHES)
def test_drawn_weights_are_the_same_sharded(mesh):
    init = ggjax.gg_init(0.8)
    sharding = NamedSharding(MESHES[mesh], P("x", "y"))
    text = (
        jax.jit(
            lambda k: init(k, (256, 512), out_sharding=sharding if mesh == "explicit" else None),
            out_shardings=sharding,
        )
        .lower(jax.random.key(0))
        .compile()
        .as_text()
    )
    assert_stays(text)


@pytest.mark.parametrize("gathers", [
    lambda p: jnp.sort(p["both"].reshape(-1))[::2],
    lambda p: p["rows"][::-1],
    lambda p: {"both": jnp.cumsum(p["both"].reshape(-1))},
], ids=["sort", "flip", "cumsum"])  # fmt: skip
def test_a_version_that_gathers_is_caught(gathers):
    """The test of the test."""
    text = jax.jit(gathers).lower(placed("auto", tree())).compile().as_text()
    with pytest.raises(AssertionError, match="elements"):
        assert_stays(text)


# Without the device: what a TPU or a GPU would get.


LOWERED = {
    **FUNCTIONS,
    "backslash_bfloat16": lambda p: backslash_step({}, jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)),
    "deepshape_rank": lambda p: ggjax.deepshape(p, step=STEP, method="rank"),
    "rf8_round": lambda p: rf8.round(p["both"], rounding="nearest"),
    "gg_init": lambda p: ggjax.gg_init(0.8)(jax.random.key(0), p["both"].shape),
    "gg_reinit": lambda p: ggjax.gg_reinit(jax.random.key(0), p, 0.8),
    "stochastic": lambda p: ggjax.apply_updates_stochastic(
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), p), p, jax.random.key(0)
    ),
    "laws": lambda p: [
        f(jnp.abs(p["replicated"]) / 10 + 0.1, 0.8) for f in (gennorm.logpdf, gennorm.cdf, gennorm.ppf)
    ],
    "rho": lambda p: (gennorm.rho(1 + p["replicated"] ** 2), gennorm.entropy(0.8), gennorm.std(0.8)),
    "exp_golomb_rank": lambda p: rate.bits(p, STEP, code="exp_golomb_rank"),
}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", LOWERED)
def test_lowers_for_devices_that_are_not_here(name, platform):
    abstract = jax.eval_shape(tree)
    text = jax.jit(LOWERED[name]).trace(abstract).lower(lowering_platforms=(platform,)).as_text()
    assert "func.func public @main" in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_codec_lowers_for_devices_that_are_not_here(platform):
    small = ggjax.compress({"w": tree()["rows"], "h": tree()["cube"].astype(jnp.bfloat16)}, step=2**-16)
    text = jax.jit(ggjax.decompress).trace(small).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text
    from ggjax.codec.entropy import _rans

    shapes = [((8192, 64), "uint8"), ((64,), "int32"), ((64,), "int32"), ((2, 256), "uint32"), ((), "int32")]
    args = [jax.ShapeDtypeStruct(s, d) for s, d in shapes]
    assert "stablehlo.while" in _rans.encode.trace(*args).lower(lowering_platforms=(platform,)).as_text()


# More weights than 2^31.


def test_counts_of_more_than_2_31_weights():
    """n is a Python number: a tree of 2^32 weights is traced without an overflow, and n has its true value."""
    params = {"w": jax.ShapeDtypeStruct((1 << 16, 1 << 15), jnp.bfloat16)} | {
        f"v{i}": jax.ShapeDtypeStruct((1 << 16, 1 << 14), jnp.bfloat16) for i in range(2)
    }
    text = jax.jit(functools.partial(backslash_step, {})).trace(params).lower().as_text()
    assert re.search(r"4\.29496730?E\+?0?9|0x4F800000", text, re.IGNORECASE), "2^32 is not in the program"
    for f in (FUNCTIONS["deepshape"], FUNCTIONS["entropy"], FUNCTIONS["fit"]):
        jax.eval_shape(f, params)


def test_int32_sums_of_shards_do_not_overflow():
    """Counts of 2^31 and more, as 2^32 equal weights give them: the words carry."""
    words = jnp.array([[2**32 - 3, 5], [1, 0]], jnp.uint32)
    x = jnp.full((1024,), 0.5)
    x = jax.device_put(x, NamedSharding(MESHES["auto"], P("x")))
    total = _histogram.whole(np.asarray(_histogram.count(x, 1.0, 0, words)))
    assert total.tolist() == [2**33 - 3 + 1024, 5]
