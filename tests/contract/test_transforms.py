"""What every public transform owes its users: a new transform is tested by one more line in the registry."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.contract.registry import (
    CASES,
    JITTED,
    KEY,
    NAMES,
    TRANSFORMATIONS,
    assert_close,
    leaves_of,
    signature,
    tree,
)


@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_eager_and_odd_leaves_pass(name):
    case, params = CASES[name], tree()
    eager, jitted = case.function(params), JITTED[name](params)
    assert_close(case, jitted, eager)
    assert all(np.isfinite(v).all() for v in leaves_of(eager))
    if case.keeps_tree:
        assert signature(eager) == signature(params)
        if name not in TRANSFORMATIONS:  # updates of integer leaves are zeros here
            np.testing.assert_array_equal(eager["counts"], params["counts"])


@pytest.mark.parametrize("name", NAMES)
def test_second_call_does_not_recompile(name):
    function = JITTED[name]
    function(tree(0))
    before = function._cache_size()
    function(tree(1))
    function(jax.tree.map(lambda x: x, tree(2)))
    assert function._cache_size() == before


@pytest.mark.parametrize("name", NAMES)
def test_abstract_input_gives_the_abstract_output(name):
    params = tree()
    abstract = jax.eval_shape(CASES[name].function, jax.eval_shape(lambda: params))
    assert jax.tree.map(lambda s: (s.shape, s.dtype), abstract) == signature(JITTED[name](params))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_trees_of_flax(name, kind):
    if kind == "linen":
        params: Any = nn.Dense(4).init(KEY, jnp.ones((1, 6)))
    else:
        params = nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param)
    case = CASES[name]
    out = case.function(params)
    assert all(np.isfinite(v).all() for v in leaves_of(out))
    if case.keeps_tree:
        assert jax.tree.structure(out) == jax.tree.structure(params) and type(out) is type(params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_sharded_leaves_give_the_same_and_stay_sharded(name, axis_type):
    case = CASES[name]
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    params = {k: v for k, v in tree().items() if k not in ("masked", "flags")}
    specs = {"kernel": P("x", "y"), "brain": P(None, "x"), "half": P(("x", "y"), None)}
    placed = {
        k: v if v is None else jax.device_put(v, NamedSharding(mesh, specs.get(k, P())))
        for k, v in params.items()
    }
    for way, out in {"jit": JITTED[name](placed), "eager": case.function(placed)}.items():
        assert_close(case, out, JITTED[name](params))
        if case.keeps_tree and (name, way) != ("gg_reinit", "jit"):  # new values follow no old ones there
            for k, v in placed.items():
                same = v is None or out[k].sharding.is_equivalent_to(v.sharding, v.ndim)
                assert same, f"{k}: {out[k].sharding} is not {v.sharding}"


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("gg_reinit", *TRANSFORMATIONS)])
def test_bad_trees_are_refused_by_name(name):
    if name == "apply_updates_stochastic":
        pytest.skip("adds whatever it is given, as optax.apply_updates does")
    function = CASES[name].function
    with pytest.raises(ValueError, match=r"leaf 'a/b/0': expected finite weights, got nan at index \(1,\)"):
        function({"a": {"b": [jnp.array([1.0, jnp.nan])]}})
    with pytest.raises(ValueError, match=r"leaf 'w': expected finite weights, got -inf at index \(\)"):
        function({"w": jnp.float32(-np.inf)})
    with pytest.raises(ValueError, match="no floating-point array to work on.*'ids', is int32"):
        function({"ids": jnp.arange(3)})
