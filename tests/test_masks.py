"""Masks: which leaves of the trees of each library are kernels, and how optax takes them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ggjax
from ggjax import baselines, codec, masks, rate, rf8, sensitivity, train
from ggjax._internal import trees

KEY = jax.random.key(0)


def chosen(mask):
    return sorted(trees.leaf_name(p) for p, c in jax.tree_util.tree_leaves_with_path(mask) if c)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4)(nn.LayerNorm()(x)), None


class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(5, 4)(tokens)
        x = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)[0]
        return nn.BatchNorm(use_running_average=True)(x)


def test_linen_with_layers_stacked_by_scan():
    params = jax.eval_shape(Model().init, KEY, jnp.zeros((2,), int))
    assert chosen(masks.kernels(params)) == [
        "params/Embed_0/embedding",
        "params/ScanBlock_0/Dense_0/kernel",
    ]
    assert all(jax.tree.leaves(masks.floating(params)))


def test_nnx_states_raw_and_pure():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.vmap(lambda rngs: nnx.LayerNorm(4, rngs=rngs))(rngs.split(2))
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.mask = nnx.Variable(jnp.tril(jnp.ones((4, 4))))

    state = nnx.state(Net(nnx.Rngs(0)))
    for tree in (state, nnx.to_pure_dict(state)):
        assert [n.removesuffix("/value") for n in chosen(masks.kernels(tree))] == ["linear/kernel"]
    assert type(masks.kernels(state)) is type(state)


def test_haiku():
    hk = pytest.importorskip("haiku")

    def f(x):
        layer = hk.experimental.layer_stack(3)(lambda x: hk.Linear(4)(hk.LayerNorm(-1, True, True)(x)))
        return hk.BatchNorm(True, True, 0.9)(layer(x), True)

    with jax.numpy_dtype_promotion("standard"):  # Haiku's own code needs it
        params, state = jax.eval_shape(hk.transform_with_state(f).init, KEY, jnp.ones((2, 4)))
    assert chosen(masks.kernels(params)) == ["__layer_stack_no_per_layer/linear/w"]
    assert not any(jax.tree.leaves(masks.kernels(state)))  # averages are no weights, and no fallback for them


def test_equinox_with_functions_among_the_leaves_and_ensembles():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(2, 2, 4, 1, key=KEY)
    assert chosen(masks.kernels(net)) == ["layers/0/weight", "layers/1/weight"]
    assert chosen(masks.floating(net)) == [f"layers/{i}/{n}" for i in (0, 1) for n in ("bias", "weight")]
    norms = eqx.filter_vmap(lambda _: {"norm": eqx.nn.LayerNorm(4), "linear": net})(jnp.arange(3))
    assert chosen(masks.kernels(norms)) == ["linear/layers/0/weight", "linear/layers/1/weight"]


def test_buffers_and_odd_leaves_are_never_chosen():
    params = {
        "w": jnp.ones((2, 2)),
        "causal_mask": jnp.ones((2, 2)),
        "rotary_emb": {"inv_freq": jnp.ones((2, 2))},
        "ids": jnp.ones((2, 2), int),
        "z": jnp.ones((2, 2), jnp.complex64),
        "codes": jnp.ones((2, 2), jnp.float8_e8m0fnu),
        "name": "net",
        "none": None,
        "rest": optax.MaskedNode(),
    }
    assert chosen(masks.kernels(params)) == ["w"]
    assert chosen(masks.kernels({**params, "w": jnp.ones(2), "bias": jnp.ones(())})) == ["w"]  # no kernel
    assert chosen(masks.floating(params)) == ["causal_mask", "rotary_emb/inv_freq", "w"]
    assert masks.kernels({}) == {} and masks.kernels({"steps": jnp.array(3)}) == {"steps": False}
    assert masks.kernels(jnp.ones((2, 2))) is True and masks.kernels(2.0) is False


@pytest.mark.parametrize("kind", ["dict", "nnx"])
def test_in_optax_masked_only_kernels_decay(kind):
    if kind == "dict":
        params = {"kernel": jnp.ones((2, 3)), "norm": {"scale": jnp.ones((4, 3))}, "bias": jnp.ones(3)}
    else:
        params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    tx = optax.masked(optax.add_decayed_weights(0.1), masks.kernels)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    paths = jax.tree_util.tree_leaves_with_path(updates)
    for (path, u), p in zip(paths, jax.tree.leaves(params), strict=True):
        want = 0.1 * p if "kernel" in trees.leaf_name(path) else 0 * p
        np.testing.assert_allclose(u, want, rtol=1e-6)


BY_NAME = {
    "rate.bits": lambda p, m: rate.bits(p, step=0.1, mask=m),
    "penalty": lambda p, m: train.penalty(p, mask=m),
    "rf8": lambda p, m: rf8.tree_encode(p, mask=m),
    "deepshape": lambda p, m: ggjax.deepshape(p, mask=m)[0],
    "sensitivity": lambda p, m: sensitivity.init(p, mask=m),
    "entquant": lambda p, m: baselines.entquant(p, 0.1, mask=m),
    "resident": lambda p, m: codec.resident(p, bits=8, mask=m),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_kernels_are_selected_by_name_too_and_other_names_are_refused(name):
    params = {"kernel": jax.random.normal(KEY, (16, 16)), "bias": jnp.ones(16)}
    expected = BY_NAME[name](params, masks.kernels)
    jax.tree.map(np.testing.assert_array_equal, BY_NAME[name](params, "kernels"), expected)
    with pytest.raises(ValueError, match="'kernles'"):
        BY_NAME[name](params, "kernles")


@pytest.mark.parametrize("mask", [{"kernel": True, "bias": False}, "kernels", masks.kernels])
def test_states_with_any_mask_are_mapped_by_optax(mask):
    """optax.tree_map_params makes a state of no parameters, which fits no tree of bools."""
    tx = optax.chain(optax.adam(1e-3), ggjax.backslash(100.0, mask=mask))
    state = tx.init({"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)})
    mapped = optax.tree_map_params(tx, lambda x: x + 1, state)
    np.testing.assert_array_equal(optax.tree.get(mapped, "mu")["kernel"], 1)
    assert int(mapped[1].count) == 0
