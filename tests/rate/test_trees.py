"""What trees may hold: degenerate leaves, masks, containers, odd dtypes, shardings; and the errors."""

import functools

import equinox as eqx
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import rate
from ggjax.rate import _count
from tests.rate.reference import DEVICE_CODES, TRACED, tree_of


def test_degenerate_trees():
    nothing = ({}, {"w": None}, {"w": jnp.zeros((0, 3))}, {"m": optax.MaskedNode()})
    for tree in nothing:
        for code in rate.CODES:
            assert float(rate.bits(tree, 0.1, code=code)) == 0
        for code in DEVICE_CODES:
            assert float(TRACED[code](tree, 0.1)) == 0
        assert float(rate.penalty(tree)) == 0
    for tree in (jnp.zeros(7), jnp.zeros(())):
        rates = {c: float(rate.bits(tree, 0.1, code=c)) for c in rate.CODES}
        n = 7 if np.ndim(tree) else 1
        one = {"exp_golomb": 1.0, "exp_golomb_rank": 1 + (3 + 1) / n, "gg_closed_form": -np.inf}
        assert rates == pytest.approx(dict.fromkeys(rate.CODES, 0.0) | one)
    assert float(rate.bits(jnp.full((4, 4), 0.7), 0.1)) == 0
    assert float(rate.bits(jnp.full((4, 4), 0.7), 0.1, code="huffman")) == 0
    assert float(rate.bits(jnp.full((4, 4), 0.7), 0.1, code="exp_golomb")) == 7  # 7 is number 13, three zeros
    mixed = {"a": jnp.zeros((0, 3)), "b": jnp.array([0.0, 1.0])}
    assert float(rate.bits(mixed, 1.0)) == float(jax.jit(rate.bits)(mixed, 1.0)) == 1


def test_masks_integers_and_containers():
    tree = tree_of()
    want = rate.bits({"a": tree["a"]}, 0.003)
    assert rate.bits(tree, 0.003, mask={"a": True, "b": False}) == want
    assert rate.bits(tree | {"ids": jnp.arange(9)}, 0.003, mask=lambda t: {k: k != "b" for k in t}) == want
    assert rate.bits(nnx.State({"a": nnx.Param(tree["a"])}), 0.003) == want
    r = rate.report(tree, 0.003, mask={"a": False, "b": True})
    assert [row.name for row in r.rows] == ["b/w"]
    assert float(rate.bits(tree, 0.003, mask=False)) == 0
    np.testing.assert_allclose(
        rate.penalty(tree, mask={"a": True, "b": False}), rate.penalty({"a": tree["a"]}), rtol=1e-6
    )


def test_what_is_not_a_weight_is_passed_over():
    w = tree_of()["a"]
    want = rate.bits({"w": w}, 0.003)
    others = {
        "scales": jnp.ones(4, jnp.float8_e8m0fnu),
        "codes4": jnp.ones(4, jnp.float4_e2m1fn),
        "codes6": np.ones(4, jnp.float8_e4m3fn).astype(np.float32).astype(jnp.float6_e2m3fn),
        "key": jax.random.key(0),
        "function": jax.nn.relu,
        "name": "layer",
        "complex": jnp.ones(3, jnp.complex64),
    }
    for name, other in others.items():
        tree = {"w": w, name: other}
        assert rate.bits(tree, 0.003) == want, name
        assert [r.name for r in rate.report(tree, 0.003, codes=["fixed"]).rows] == ["w"], name


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_floats_of_eight_bits_are_weights(dtype):
    x = (tree_of()["a"] * 50).astype(dtype)
    assert rate.report(x, 0.05) == rate.report(x.astype(jnp.float32), 0.05)
    np.testing.assert_allclose(TRACED["entropy"](x, 0.05), rate.bits(x, 0.05), rtol=2e-6)


def test_whole_models_of_equinox_and_nnx():
    model = eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_inexact_array)
    assert rate.bits(model, 0.01) == rate.bits(arrays, 0.01)
    mask = jax.tree.map(lambda v: eqx.is_array(v) and v.ndim > 1, model)  # a module, which can be called
    assert [r.size for r in rate.report(model, 0.01, mask=mask).rows] == [32, 32]

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.dropout = nnx.Linear(4, 8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)))
    kernel = state["linear"]["kernel"][...]
    assert rate.report(state, 0.01).total.size == 4 * 8 + 8
    assert rate.bits(state, 0.01) == rate.bits([kernel, jnp.zeros(8)], 0.01)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("x", "y")])
@pytest.mark.parametrize("counted", ["host", "device"])
def test_sharded_as_unsharded(kind, spec, counted, monkeypatch):
    if counted == "device":
        monkeypatch.setattr(_count, "_SMALL", 0)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    w = np.asarray(jax.random.normal(jax.random.key(0), (512, 64))) * 0.02
    tree = {"w": jax.device_put(w, NamedSharding(mesh, spec)), "b": jnp.ones(8)}
    plain = {"w": jnp.asarray(w), "b": jnp.ones(8)}
    want, got = rate.report(plain, 0.003), rate.report(tree, 0.003)
    for a, b in zip((*want.rows, want.total), (*got.rows, got.total), strict=True):
        assert a[:2] == b[:2] and a.levels == b.levels
        np.testing.assert_allclose(list(a.bits.values()), list(b.bits.values()), rtol=2e-6)
    for code in ("fixed", "exp_golomb_rank", "gg"):
        traced = TRACED[code]({"w": tree["w"]}, 0.003)
        np.testing.assert_allclose(traced, rate.bits({"w": plain["w"]}, 0.003, code=code), rtol=2e-6)
    value, grad = jax.jit(jax.value_and_grad(rate.penalty))({"w": tree["w"]})
    np.testing.assert_allclose(value, rate.penalty({"w": plain["w"]}), rtol=1e-6)
    assert grad["w"].sharding.is_equivalent_to(tree["w"].sharding, 2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x")])
def test_no_parameters_travel(kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    w = jax.ShapeDtypeStruct((4096, 1024), jnp.float32, sharding=NamedSharding(mesh, spec))
    for code in ("exp_golomb_rank", "gg"):
        program = TRACED[code].lower(w, 0.003).compile()
        text = program.as_text()
        assert "all-reduce" in text
        assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))
        table = 4 * rate.TRACED_LEVELS
        assert program.memory_analysis().temp_size_in_bytes < 4096 * 1024 * 4 / 8 / 4 + 20 * table


def test_errors_name_what_is_wrong():
    x = jnp.ones(3)
    for step in (0.0, -1.0, np.nan, np.inf):
        for f in (rate.bits, rate.report):
            with pytest.raises(ValueError, match=f"step must be positive and finite, got {step}"):
                f(x, step)
    with pytest.raises(ValueError, match=r"step must be one number, got an array of shape \(2,\)"):
        rate.bits(x, jnp.ones(2))
    for f in (lambda c: rate.bits(x, 1.0, code=c), lambda c: rate.report(x, 1.0, codes=["gg", c])):
        with pytest.raises(ValueError, match="code must be one of entropy, fixed, .*; got 'zip'"):
            f("zip")
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got nan at index \(1,\)"):
        rate.bits({"a": {"w": jnp.array([1.0, np.nan])}}, 0.1)
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got -inf"):
        rate.report({"w": jnp.array([1.0, -np.inf])}, 0.1)
    with pytest.raises(
        ValueError, match="leaf 'w': levels run from -1e.10 to 2e.10 at step 1e-10, expected levels"
    ):
        rate.bits({"w": jnp.array([-1.0, 2.0])}, 1e-10)
    with pytest.raises(ValueError, match="leaf 'w': levels run from -inf to 0 at step 2e-38"):
        rate.bits({"w": jnp.array([-1e30, 0.0])}, 2e-38)
    with pytest.raises(ValueError, match="no floating-point array to work on.*'ids', is int32"):
        rate.bits({"ids": jnp.arange(3)}, 0.1)
    with pytest.raises(ValueError, match='"huffman" is built on the host and cannot run under jit'):
        jax.jit(functools.partial(rate.bits, code="huffman"))(x, 0.1)
    with pytest.raises(ValueError, match="rate.report needs concrete weights"):
        jax.jit(lambda t: rate.report(t, 0.1))(x)
