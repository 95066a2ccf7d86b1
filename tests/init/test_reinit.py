"""gg_reinit: which leaf of a model gets what, by library; stacked, sharded, tied and abstract leaves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax._internal import trees

KEY = jax.random.key(3)


def by_name(params):
    return {
        trees.leaf_name(p).removesuffix("/value"): x for p, x in jax.tree_util.tree_leaves_with_path(params)
    }


def assert_std(x, want, rtol=0.1):
    np.testing.assert_allclose(jnp.std(x.astype(jnp.float32)), want, rtol=rtol)


def tree():
    tied = jnp.full((20, 30), 9.0)
    return {
        "embed": {"embedding": jnp.full((100, 16), 9.0)},
        "conv": {"kernel": jnp.full((3, 3, 8, 32), 9.0, jnp.bfloat16), "bias": jnp.full((32,), 9.0)},
        "attention": {"bias": jnp.full((4, 8), 9.0)},
        "norm": {"scale": jnp.full((7,), 9.0), "bias": jnp.full((7,), 9.0)},
        "batch_stats": {"mean": jnp.full((7,), 9.0)},
        "head": tied,
        "tied": tied,
        "token": jnp.full((5,), 9.0),
        "steps": jnp.arange(3),
        "none": None,
        "empty": jnp.zeros((0, 4)),
    }


def test_every_leaf_of_a_model_gets_what_it_should():
    old = tree()
    new = ggjax.gg_reinit(KEY, old, 1.0, 2.0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), old)
    for kept in ("embed", "batch_stats", "token", "steps", "empty"):
        np.testing.assert_array_equal(jax.tree.leaves(new[kept])[0], jax.tree.leaves(old[kept])[0])
    assert (new["norm"]["scale"] == 1).all() and (new["norm"]["bias"] == 0).all()
    assert (new["attention"]["bias"] == 0).all() and (new["conv"]["bias"] == 0).all()
    std = jnp.std(new["conv"]["kernel"].astype(jnp.float32))
    np.testing.assert_allclose(std, np.sqrt(2 / (9 * 32)), rtol=0.1)
    assert new["head"] is new["tied"]
    np.testing.assert_allclose(jnp.std(new["head"]), np.sqrt(2 / 30), rtol=0.15)


def test_embeddings_rules_and_masks():
    old = tree()
    asked = ggjax.gg_reinit(KEY, old, 1.0, 2.0, embeddings=True)
    np.testing.assert_allclose(jnp.std(asked["embed"]["embedding"]), np.sqrt(2 / 16), rtol=0.1)

    def rule(name, leaf):
        return jax.nn.initializers.constant(5.0) if name == "token" else None

    ruled = ggjax.gg_reinit(KEY, old, rule=rule)
    assert (ruled["token"] == 5).all() and (ruled["norm"]["scale"] == 1).all()
    masked = ggjax.gg_reinit(KEY, old, mask=lambda t: {k: k == "norm" for k in t})
    assert (masked["norm"]["scale"] == 1).all() and (masked["head"] == 9).all()
    with pytest.raises(ValueError, match="no floating-point array"):
        ggjax.gg_reinit(KEY, {"n": jnp.arange(2)})


def test_reinit_works_on_flax_trees_abstract_ones_and_under_jit():
    linen = nn.Sequential([nn.Conv(8, (3, 3)), nn.BatchNorm(use_running_average=True), nn.Dense(4)])
    params = jax.jit(linen.init)(KEY, jnp.ones((1, 8, 8, 3)))
    new = ggjax.gg_reinit(KEY, params)
    assert (new["batch_stats"]["layers_1"]["var"] == 1).all()
    assert (new["params"]["layers_0"]["kernel"] != params["params"]["layers_0"]["kernel"]).all()
    jitted = jax.jit(ggjax.gg_reinit)(KEY, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, jitted)
    abstract = ggjax.gg_reinit(KEY, jax.eval_shape(lambda: params))
    np.testing.assert_array_equal(abstract["params"]["layers_2"]["kernel"], new["params"]["layers_2"]["kernel"])
    state = nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)))
    again = ggjax.gg_reinit(KEY, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    leaves = {trees.leaf_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(again)}
    assert (leaves["bias/value"] == 0).all() and (leaves["kernel/value"] != 0).all()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_reinit_keeps_sharding_and_values(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    plain = {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(8)}
    sharding = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P())}
    sharded = jax.device_put(plain, sharding)
    new = ggjax.gg_reinit(KEY, sharded, 1.0)
    want = ggjax.gg_reinit(KEY, plain, 1.0)
    for name in plain:
        assert new[name].sharding.is_equivalent_to(sharded[name].sharding, new[name].ndim)
        np.testing.assert_array_equal(new[name], want[name])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(32)(nn.LayerNorm()(x)), None


class Scanned(nn.Module):
    head: bool
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        axes = {"params": self.axis}
        x = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=8)()(x, None)[0]
        return nn.Dense(64)(x) if self.head else x


@pytest.mark.parametrize("axis", [0, 1])
def test_layers_stacked_by_scan(axis):
    params = jax.eval_shape(Scanned(head=False, axis=axis).init, KEY, jnp.ones((2, 32)))
    new = by_name(ggjax.gg_reinit(KEY, params, 2.0, 2.0, mode="fan_in", batch_axis=axis))
    assert (new["params/ScanBlock_0/LayerNorm_0/scale"] == 1).all()
    for name in ("LayerNorm_0", "Dense_0"):
        assert (new[f"params/ScanBlock_0/{name}/bias"] == 0).all()
    assert_std(new["params/ScanBlock_0/Dense_0/kernel"], (2 / 32) ** 0.5, 0.05)


def test_part_of_the_layers_stacked():
    params = jax.eval_shape(Scanned(head=True).init, KEY, jnp.ones((2, 32)))

    def stacked(name, leaf):
        return 0 if "ScanBlock" in name else ()

    new = by_name(ggjax.gg_reinit(KEY, params, 2.0, 2.0, mode="fan_in", batch_axis=stacked))
    assert_std(new["params/ScanBlock_0/Dense_0/kernel"], (2 / 32) ** 0.5, 0.05)
    assert_std(new["params/Dense_0/kernel"], (2 / 32) ** 0.5)
    with pytest.raises(
        ValueError, match=r"leaf 'params/Dense_0/kernel' of shape \(32, 64\): only 1 of its axes.*"
    ):
        ggjax.gg_reinit(KEY, params, batch_axis=0)
    with pytest.raises(ValueError, match=r"leaf 'k' of shape \(2, 3\): batch_axis=\(4,\) does not exist"):
        ggjax.gg_reinit(KEY, {"k": jnp.ones((2, 3))}, batch_axis=lambda name, leaf: 4)


def test_vectors_that_are_stacked_are_no_kernels():
    params = {"n1": {"weight": jnp.full((8, 32), 9.0)}, "slope": jnp.full((8, 32), 9.0)}
    new = ggjax.gg_reinit(KEY, params, batch_axis=lambda name, leaf: 0)
    assert (new["n1"]["weight"] == 1).all() and (new["slope"] == 9).all()


def test_layers_stacked_by_nnx_vmap():
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs):
        return nnx.List([nnx.LayerNorm(32, rngs=rngs), nnx.Linear(32, 64, rngs=rngs)])

    state = nnx.state(stack(nnx.Rngs(0).split(8)))
    new = by_name(ggjax.gg_reinit(KEY, state, batch_axis=0))
    assert (new["0/scale"] == 1).all() and (new["0/bias"] == 0).all() and (new["1/bias"] == 0).all()
    assert_std(new["1/kernel"], (2 / 64) ** 0.5, 0.05)


def attention(library):
    if library == "linen":
        x = jnp.ones((1, 3, 24))
        return jax.eval_shape(nn.MultiHeadDotProductAttention(4, qkv_features=48).init, KEY, x, x)["params"]
    return nnx.eval_shape(lambda: nnx.state(nnx.MultiHeadAttention(4, 24, 48, decode=False, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_attention_of_flax_has_the_fans_of_its_matrices(library):
    params = attention(library)
    new = by_name(ggjax.gg_reinit(KEY, params, 2.0, 1.0, mode="fan_in"))
    for name, fan_in in {"query": 24, "key": 24, "value": 24, "out": 48}.items():  # one shape but for out
        assert_std(new[f"{name}/kernel"], fan_in**-0.5)
        assert (new[f"{name}/bias"] == 0).all()


def test_stacked_attention_has_the_fans_of_one_layer():
    shapes = {"query": (24, 3, 4, 12), "out": (4, 3, 12, 24)}  # three layers along axis 1
    params = {k: {"kernel": jax.ShapeDtypeStruct(s, jnp.float32)} for k, s in shapes.items()}
    new = by_name(ggjax.gg_reinit(KEY, params, 2.0, 1.0, batch_axis=1))
    assert_std(new["query/kernel"], 48**-0.5)
    assert_std(new["out/kernel"], 24**-0.5)


def test_convolutions_of_the_same_names_remain_convolutions_and_a_rule_goes_first():
    params = {"query": {"kernel": jnp.ones((1, 64, 8))}, "out": {"kernel": jnp.ones((1, 8, 64))}}
    new = ggjax.gg_reinit(KEY, params, 2.0, 1.0, mode="fan_in")
    assert_std(new["query"]["kernel"], 64**-0.5)
    dense = ggjax.gg_init(2.0, 1.0, "fan_in", in_axis=0, out_axis=(1, 2))
    new = ggjax.gg_reinit(KEY, params, mode="fan_in", rule=lambda n, x: dense if "query" in n else None)
    assert_std(new["query"]["kernel"], 1.0)


def test_what_starts_at_a_value_of_its_own_stays():
    stays = {
        "cls": jnp.zeros((1, 1, 8)),
        "mask_token": jnp.zeros((1, 8)),
        "pos_embed": jnp.ones((1, 5, 8)),
        "causal_mask": jnp.tril(jnp.ones((8, 8))),
        "rotary_emb": {"inv_freq": jnp.ones((2, 4))},
        "h": [{"attn": {"bias": jnp.ones((1, 1, 8, 8))}}],
        "q_proj": {"lora_a": jnp.ones((8, 2)), "lora_b": jnp.zeros((2, 8))},
        "logit_scale": jnp.float32(2.66),
        "layer_scale": jnp.full((4, 8), 1e-5),
        "mixer": {"A_log": jnp.ones((8, 4))},
    }
    new = ggjax.gg_reinit(KEY, {"stays": stays, "kernel": jnp.ones((8, 8))})
    jax.tree.map(np.testing.assert_array_equal, new["stays"], stays)
    assert (new["kernel"] != 1).all()


def test_tied_arrays_are_one_and_abstract_ones_of_equal_shape_are_not():
    table = jnp.full((20, 8), 9.0)
    kept = ggjax.gg_reinit(KEY, {"decoder": table, "embed": table, "other": jnp.ones((20, 8))})
    assert kept["decoder"] is table and kept["embed"] is table and (kept["other"] != 1).all()
    abstract = jax.ShapeDtypeStruct((20, 8), jnp.float32)
    new = ggjax.gg_reinit(KEY, {"a": abstract, "b": abstract, "embed": abstract})
    assert (new["a"] != new["b"]).all() and new["embed"] is abstract
    new = ggjax.gg_reinit(KEY, {"a": {"w": abstract}, "a/w": abstract})  # two leaves of one name
    assert (new["a"]["w"] != new["a/w"]).all()


def test_leaves_that_are_no_weights_pass():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.dropout = nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    new = ggjax.gg_reinit(KEY, state)
    assert by_name(new)["dropout/rngs/key"] is by_name(state)["dropout/rngs/key"]
    odd = {"w": jnp.ones((4, 4)), "f": jnp.tanh, "s": "text", "codes": jnp.ones((4, 4), jnp.float8_e8m0fnu)}
    new = ggjax.gg_reinit(KEY, odd)
    assert new["f"] is jnp.tanh and new["s"] == "text" and new["codes"] is odd["codes"]


def test_equinox_and_its_ensembles():
    eqx = pytest.importorskip("equinox")

    def net(key):
        return eqx.nn.MLP(32, 64, 64, 1, activation=jax.nn.gelu, key=key)

    layout = {"mode": "fan_in", "in_axis": 1, "out_axis": 0}  # Equinox keeps (out, in, ...)
    new = ggjax.gg_reinit(KEY, net(KEY), **layout)
    assert_std(new.layers[0].weight, (2 / 32) ** 0.5)
    assert (new.layers[0].bias == 0).all() and new(jnp.ones(32)).shape == (64,)
    ensemble = eqx.filter_eval_shape(eqx.filter_vmap(net), jax.random.split(KEY, 3))
    new = ggjax.gg_reinit(KEY, ensemble, **layout, batch_axis=0)
    assert_std(new.layers[0].weight, (2 / 32) ** 0.5)
    assert (new.layers[1].bias == 0).all() and new.layers[1].bias.shape == (3, 64)


def test_haiku_with_stacked_layers():
    hk = pytest.importorskip("haiku")

    def f(x):
        layer = hk.experimental.layer_stack(4)(lambda x: hk.Linear(32)(hk.LayerNorm(-1, True, True)(x)))
        return hk.Linear(64)(layer(x))

    params = jax.eval_shape(hk.transform(f).init, KEY, jnp.ones((2, 32)))
    new = by_name(
        ggjax.gg_reinit(KEY, params, batch_axis=lambda name, leaf: 0 if "layer_stack" in name else ())
    )
    assert (new["__layer_stack_no_per_layer/layer_norm/scale"] == 1).all()
    assert_std(new["__layer_stack_no_per_layer/linear/w"], (2 / 32) ** 0.5)
    assert_std(new["linear/w"], (2 / 64) ** 0.5)


PLAIN = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4), "norm": {"scale": jnp.full(4, 3.0)}}


@pytest.mark.parametrize("way", ["jit", "scan", "vmap", "grad", "eval_shape", "disable_jit", "debug_nans"])
def test_parameters_that_are_closed_over(way):
    def draw():
        return ggjax.gg_reinit(KEY, PLAIN, 1.0)

    want = draw()
    if way == "jit":
        got = jax.jit(draw)()
    elif way == "scan":
        got = jax.tree.map(lambda x: x[1], jax.lax.scan(lambda c, _: (c, draw()), 0, None, length=2)[1])
    elif way == "vmap":
        got = jax.tree.map(
            lambda x: x[1], jax.vmap(lambda x: jax.tree.map(lambda v: v + 0 * x, draw()))(jnp.ones(2))
        )
    elif way == "grad":
        got = jax.grad(lambda x: x * sum(map(jnp.sum, jax.tree.leaves(draw()))))(1.0)
        want = sum(map(jnp.sum, jax.tree.leaves(want)))
    elif way == "eval_shape":
        got, want = (
            jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), t) for t in (jax.eval_shape(draw), want)
        )
    else:
        with jax.disable_jit() if way == "disable_jit" else jax.debug_nans(True):
            got = draw()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_shardings_that_were_stated_are_kept():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, P("x", "y"))
    w = jax.device_put(jnp.ones((16, 8)), sharding)
    with jax.set_mesh(mesh):  # the types of Explicit axes are known under jit
        traced = jax.jit(ggjax.gg_reinit)(KEY, {"w": w})["w"]
    assert traced.sharding.is_equivalent_to(sharding, 2)
    assert jax.jit(ggjax.gg_reinit)(KEY, {"w": w})["w"].shape == (16, 8)
    abstract = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=sharding)
    new = ggjax.gg_reinit(KEY, {"w": abstract})["w"]
    assert new.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(new, ggjax.gg_reinit(KEY, {"w": jnp.ones((16, 8))})["w"])
    seen = jax.eval_shape(lambda x: x, w)
    assert ggjax.gg_reinit(KEY, {"w": seen})["w"].shape == (16, 8)
    other = jax.devices()[3]
    moved = ggjax.gg_reinit(KEY, {"w": jax.device_put(jnp.ones((16, 8)), other), "free": jnp.ones((16, 8))})
    assert moved["w"].devices() == {other} and not moved["free"].committed


def test_float64_numpy_leaves_take_the_dtype_that_jax_has():
    new = ggjax.gg_reinit(KEY, {"w": np.ones((8, 4)), "bias": np.ones(4), "norm": {"scale": np.ones(4)}})
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype("float32")}
