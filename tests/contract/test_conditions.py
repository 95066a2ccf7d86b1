"""Every public transform under the conditions that users' programs bring: closed-over weights, foreign leaves,
unusual dtypes, float64 switched on, and JAX's debugging switches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax import gennorm, rate, rf8
from tests.contract.registry import CASES, JITTED, NAMES, TRANSFORMATIONS, assert_close, leaves_of, signature

WEIGHTS = {"w": 0.3 * jax.random.normal(jax.random.key(5), (8, 8))}
CODES = rf8.tree_encode(WEIGHTS)
SMALL = ggjax.compress({"w": jnp.ones((2, 4))}, step=0.5)

CLOSED = {
    **{name: (lambda f=case.function: f(WEIGHTS)) for name, case in CASES.items()},
    "rf8.encode": lambda: rf8.encode(WEIGHTS["w"]),
    "rf8.round": lambda: rf8.round(WEIGHTS["w"]),
    "rf8.tree_decode": lambda: rf8.tree_decode(CODES),
    "rf8.validate": lambda: rf8.validate(CODES["w"]),
    "rate.report": lambda: rate.report(WEIGHTS, 0.01, codes=("entropy", "huffman")).total.bits["huffman"],
    "logpdf": lambda: gennorm.logpdf(WEIGHTS["w"], 0.7),
    "sample": lambda: gennorm.sample(jax.random.key(0), 0.7, (4,)),
    "decompress": lambda: ggjax.decompress(SMALL),
}
WAYS = {
    "jit": lambda f: jax.jit(f)(),
    "scan": lambda f: jax.lax.scan(lambda c, _: (c, f()), 0, None, length=2),
    "vmap": lambda f: jax.vmap(lambda x: (f(), x)[1])(jnp.arange(2.0)),
    "grad": lambda f: jax.grad(lambda x: (f(), x)[1])(1.0),
    "eval_shape": lambda f: jax.eval_shape(f),
}


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_weights_closed_over_by_a_traced_function(name):
    for call in WAYS.values():
        call(CLOSED[name])


@pytest.mark.parametrize("name", NAMES)
def test_leaves_that_are_not_weights_pass(name):
    case = CASES[name]
    foreign = {
        "activation": jax.nn.relu,
        "name": "layer",
        "key": jax.random.key(1),
        "complex": jnp.ones(2, jnp.complex64),
        "scales": jnp.ones(3, jnp.float8_e8m0fnu),
        "fp4": jnp.ones(4, jnp.float4_e2m1fn),
    }
    params = {**WEIGHTS, **foreign}
    if name in (*TRANSFORMATIONS, "apply_updates_stochastic"):  # the updates have None in these places
        updates = {**jax.tree.map(jnp.ones_like, WEIGHTS), **dict.fromkeys(foreign)}
        if name in TRANSFORMATIONS:
            tx = TRANSFORMATIONS[name]
            new, _ = tx.update(updates, tx.init({**WEIGHTS, **dict.fromkeys(foreign)}), params)
            assert all(new[k] is None for k in foreign)
        else:
            new = ggjax.apply_updates_stochastic(params, updates, jax.random.key(0))
            assert all(new[k] is v for k, v in foreign.items())
        assert np.isfinite(np.asarray(new["w"])).all()
        return
    out = case.function(params)
    if case.keeps_tree:
        assert all(out[k] is v for k, v in foreign.items())
        out = {"w": out["w"]}
    if name == "gg_reinit":  # which draws a leaf gets depends on its place in the tree
        assert signature(out) == signature(WEIGHTS) and (out["w"] != WEIGHTS["w"]).all()
    else:
        assert_close(case, out, case.function(WEIGHTS))


@pytest.mark.parametrize("name", NAMES)
def test_modules_of_nnx_with_their_random_state(name):
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    state = nnx.state(model)
    if name in (*TRANSFORMATIONS, "apply_updates_stochastic"):
        pytest.skip("takes updates, which exist for nnx.Param only")
    assert all(np.isfinite(v).all() for v in leaves_of(jax.tree.leaves(CASES[name].function(state))[:1]))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("gg_reinit",)])
def test_float32_stays_float32_where_float64_is_on(name):
    with jax.enable_x64(True):
        out = jax.jit(CASES[name].function)(WEIGHTS)
        wide = {str(v.dtype) for v in jax.tree.leaves(out)} & {"float64", "int64"}
        assert not wide
    assert_close(CASES[name], out, JITTED[name](WEIGHTS))


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_taken_and_kept(name):
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(np.asarray(WEIGHTS["w"]), jnp.float64)}
        out = jax.jit(CASES[name].function)(params)
        if CASES[name].keeps_tree:
            assert signature(out) == signature(params)
        assert all(np.isfinite(v).all() for v in leaves_of(out))


@pytest.mark.parametrize("name", NAMES)
def test_debugging_switches_of_jax(name):
    case = CASES[name]
    with jax.debug_nans(True):
        assert_close(case, case.function(WEIGHTS), JITTED[name](WEIGHTS))
    with jax.disable_jit():
        assert_close(case, case.function(WEIGHTS), JITTED[name](WEIGHTS))


@pytest.mark.parametrize("name", NAMES)
def test_inside_shard_map(name):
    """Replicated weights, as in data parallel training: every device computes the same."""
    case, mesh = CASES[name], jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    out = jax.jit(jax.shard_map(case.function, mesh=mesh, in_specs=P(), out_specs=P()))(WEIGHTS)
    assert_close(case, out, JITTED[name](WEIGHTS))


class _CallableMask(dict[str, Any]):
    """A tree of bools that can be called, as an Equinox module can."""

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a mask that is a tree was called")


jax.tree_util.register_pytree_with_keys(
    _CallableMask,
    lambda m: ([(jax.tree_util.DictKey(k), m[k]) for k in sorted(m)], tuple(sorted(m))),
    lambda keys, values: _CallableMask(zip(keys, values, strict=True)),
)


def test_a_mask_may_be_a_tree_that_can_be_called():
    params = _CallableMask(a=jnp.ones((4, 4)), b=jnp.full((4, 4), 0.3))
    mask = _CallableMask(a=False, b=True)
    assert gennorm.fit(params, mask=mask).scale == gennorm.fit({"b": params["b"]}).scale
    out = rf8.tree_encode(params, mask=mask)
    assert isinstance(out["b"], rf8.RF8Array) and out["a"] is params["a"]
    assert ggjax.deepshape(params, mask=mask)[0]["a"] is params["a"]
    tx = ggjax.backslash(0.5, mask=mask)
    updates = jax.tree.map(jnp.ones_like, params)
    new, _ = tx.update(updates, tx.init(params), params)
    assert (new["a"] == 1).all() and (new["b"] < 1).all()


def test_linen_modules_keep_frozen_collections():
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])
    variables = model.init(jax.random.key(0), jnp.ones((2, 3)))
    assert jax.tree.structure(ggjax.deepshape(variables)[0]) == jax.tree.structure(variables)
