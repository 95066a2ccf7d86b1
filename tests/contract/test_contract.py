"""What every public transform owes its users, in one registry: a new transform is tested by one more line."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax import rf8

KEY = jax.random.key(0)
STEP = 2.0**-6


def backslash_once(tree: Any) -> Any:
    """The updates that BackSlash makes of small ones."""
    tx = ggjax.backslash(0.5, eps=0.1, mask=None)
    small = jax.tree.map(
        lambda x: jnp.full_like(x, 2**-10 if jnp.issubdtype(x.dtype, np.floating) else 0), tree
    )
    return tx.update(small, tx.init(tree), tree)[0]


class Case(NamedTuple):
    """A public function of a parameter tree, and what may be claimed of it."""

    function: Callable[[Any], Any]
    keeps_tree: bool  # gives a tree of the same structure, shapes, dtypes and shardings
    exact: bool  # integers decide the result: bit-equal under jit and sharding


CASES = {
    "fit": Case(ggjax.gennorm.fit, False, False),
    "fit_interp": Case(lambda t: ggjax.gennorm.fit(t, center=True, method="interp"), False, False),
    "gg_reinit": Case(lambda t: ggjax.gg_reinit(KEY, t, 0.8), True, False),
    "backslash": Case(backslash_once, True, False),
    "apply_updates_stochastic": Case(
        lambda t: ggjax.apply_updates_stochastic(t, jax.tree.map(jnp.zeros_like, t), KEY), True, True
    ),
    "deepshape": Case(lambda t: ggjax.deepshape(t, step=STEP, min_count=3)[0], True, False),
    "rf8": Case(lambda t: rf8.tree_decode(rf8.tree_encode(t)), True, True),
    "rf8_nearest": Case(lambda t: rf8.tree_decode(rf8.tree_encode(t, axis=-1, rounding="nearest")), True, True),
    "entropy": Case(lambda t: ggjax.rate.bits(t, STEP), False, False),
    "exp_golomb": Case(lambda t: ggjax.rate.bits(t, STEP, code="exp_golomb"), False, False),
    "gg": Case(lambda t: ggjax.rate.bits(t, STEP, code="gg"), False, False),
    "penalty": Case(lambda t: ggjax.rate.penalty(t, eps=0.1), False, False),
}
NAMES = sorted(CASES)
JITTED = {name: jax.jit(case.function) for name, case in CASES.items()}


def tree(seed: int = 0) -> dict[str, Any]:
    """Leaves of every kind that a parameter tree may hold."""
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "kernel": jax.random.normal(keys[0], (16, 8)) * 0.3,
        "brain": jax.random.normal(keys[1], (8, 8), jnp.bfloat16),
        "half": jax.random.normal(keys[2], (8, 4), jnp.float16),
        "scale": jax.random.normal(keys[3], ()),
        "zeros": jnp.zeros((4, 4)),
        "empty": jnp.zeros((0, 4)),
        "counts": jnp.arange(3),
        "flags": jnp.array([True, False]),
        "none": None,
        "masked": optax.MaskedNode(),
    }


def leaves_of(x: Any) -> list[Any]:
    return [np.asarray(v, np.float64) for v in jax.tree.leaves(x)]


def assert_close(case: Case, got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(leaves_of(got), leaves_of(want), strict=True):
        if case.exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-6)


def signature(x: Any) -> Any:
    return jax.tree.map(lambda v: (jnp.shape(v), jnp.result_type(v)), x)


@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_eager_and_odd_leaves_pass(name):
    case, params = CASES[name], tree()
    eager, jitted = case.function(params), JITTED[name](params)
    assert_close(case, jitted, eager)
    assert all(np.isfinite(v).all() for v in leaves_of(eager))
    if case.keeps_tree:
        assert signature(eager) == signature(params)
        if name != "backslash":  # updates of integer leaves are zeros here
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


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("gg_reinit", "backslash")])
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


# BackSlash inside the wrappers of optax and the trainers of Flax.


def chain() -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.sgd(0.1), ggjax.backslash(0.5, clamp=True))


def train(tx: optax.GradientTransformation, steps: int = 4) -> tuple[Any, Any, Any]:
    """Parameters, state and the first state after some jitted steps with gradients of ones."""
    params = {k: v for k, v in tree().items() if k in ("kernel", "zeros", "half")}
    state, first = tx.init(params), tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1, "a second call compiled again"
    assert all(np.isfinite(v).all() for v in leaves_of(params))
    return params, state, first


def relaxed() -> Any:
    """Optax's own transformations mix dtypes."""
    return jax.numpy_dtype_promotion("standard")


def labels(params: Any) -> Any:
    return {k: "shrunk" if k == "kernel" else "plain" for k in params}


WRAPPERS = {
    "chain": lambda: chain(),
    "per_leaf": lambda: ggjax.backslash(0.5, per_leaf=True),
    "estimate_every": lambda: ggjax.backslash(0.5, estimate_every=2, per_leaf=True),
    "adam": lambda: optax.chain(optax.adam(1e-2), ggjax.backslash(0.5)),
    "masked": lambda: optax.masked(chain(), lambda p: {k: k != "zeros" for k in p}),
    "masked_everything": lambda: optax.masked(chain(), lambda p: dict.fromkeys(p, False)),
    "multi_transform": lambda: optax.multi_transform({"shrunk": chain(), "plain": optax.sgd(0.1)}, labels),
    "MultiSteps": lambda: optax.MultiSteps(chain(), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(chain(), 3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        ggjax.backslash,
        static_args="mask",
        hyperparam_dtype=jnp.float32,
    )(rate_weight=0.5, gg_shape=0.9),
    "inject_schedule": lambda: optax.inject_hyperparams(
        ggjax.backslash,
        static_args="mask",
        hyperparam_dtype=jnp.float32,
    )(rate_weight=lambda count: 1.0 / (1 + count)),
}


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_backslash_trains_inside(name):
    with relaxed():
        tx = WRAPPERS[name]()
        params, state, first = train(tx)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, first), "types of the state changed"
        abstract = jax.eval_shape(lambda: params)
        from_abstract = jax.eval_shape(tx.init, abstract)
        assert jax.tree.map(jax.typeof, from_abstract) == jax.tree.map(jax.typeof, first)


def test_init_takes_shape_dtype_structs_outside_jit():
    tx = ggjax.backslash(lambda count: 1.0 + count.astype(jnp.float32), per_leaf=True)
    params = {"w": jnp.ones((3, 2)), "n": jnp.arange(2)}
    state = tx.init(jax.eval_shape(lambda: params))
    assert signature(state) == signature(tx.init(params))


def test_state_can_stand_in_a_branch_of_cond():
    tx, params = ggjax.backslash(0.5, per_leaf=True), {"w": jnp.ones((3, 2))}
    state = tx.init(params)

    @jax.jit
    def maybe(flag, state):
        return jax.lax.cond(flag, lambda: tx.update(params, state, params), lambda: (params, state))

    for flag in (True, False):
        assert jax.tree.map(jax.typeof, maybe(flag, state)[1]) == jax.tree.map(jax.typeof, state)


def test_unknown_extra_arguments_are_ignored_and_telemetry_is_readable():
    tx = optax.chain(optax.scale(0.1), ggjax.backslash(0.5))
    params = {"w": jnp.ones((3, 2))}
    _, state = tx.update(params, tx.init(params), params, value=1.0, anything=None)
    assert optax.tree.get(state, "shape_in_use") == 3.0 and optax.tree.get(state, "rate_weight_in_use") == 0.5
    with relaxed():
        both = optax.chain(optax.adam(1e-3), ggjax.backslash(0.5)).init(params)
    assert optax.tree.get(both, "mu") is not None and optax.tree.get(both, "bits") == 0


def test_multisteps_takes_one_step_a_round_inside_and_outside():
    params = {"w": jnp.ones(10)}
    tiny = {"w": jnp.full(10, 1e-30)}  # a leaf without any update is not moved
    with relaxed():
        for tx in (
            optax.MultiSteps(optax.chain(optax.sgd(1.0), ggjax.backslash(1.0, gg_shape=1)), 4),
            optax.chain(
                optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation(), ggjax.backslash(1.0, gg_shape=1)
            ),
        ):
            new, state = params, tx.init(params)
            for _ in range(4):
                updates, state = tx.update(tiny, state, new)
                new = optax.apply_updates(new, updates)
            np.testing.assert_allclose(new["w"], 0.9, rtol=1e-6)


def test_trainers_of_flax_pass_the_parameters():
    x, y = jnp.ones((5, 6)), jnp.zeros((5, 4))
    dense = nn.Dense(4)
    with relaxed():
        state = TrainState.create(apply_fn=dense.apply, params=dense.init(KEY, x), tx=chain())
        grads = jax.grad(lambda p: jnp.mean((state.apply_fn(p, x) - y) ** 2))(state.params)
        state = state.apply_gradients(grads=grads)
        assert optax.tree.get(state.opt_state, "shape_in_use") > 0

        model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, chain(), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
            optimizer.update(model, grads)

        before = np.asarray(model.kernel[...])
        step(model, optimizer)
        assert (np.asarray(model.kernel[...]) != before).any()
        assert optax.tree.get(nnx.to_pure_dict(nnx.state(optimizer.opt_state)), "count") is not None
