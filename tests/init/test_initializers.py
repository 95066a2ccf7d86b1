"""GG init: variances and laws of drawn kernels, and which leaf of a model gets what."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax._internal import trees

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("mode", "fan"), [("fan_in", 3 * 3 * 40), ("fan_out", 3 * 3 * 90), ("fan_avg", 585), ("fan_geo_avg", 540)]
)
def test_variance_is_xi_over_the_fan_with_the_receptive_field(mode, fan):
    w = np.asarray(ggjax.gg_init(1.2, xi=1.5, mode=mode)(KEY, (3, 3, 40, 90)), np.float64)
    law = st.gennorm(1.2)
    alpha = np.sqrt(1.5 / fan / law.var())
    assert st.kstest(w.ravel(), st.gennorm(1.2, scale=alpha).cdf).pvalue > 1e-3


def test_axes_can_be_named_and_he_init_is_a_special_case():
    w = ggjax.gg_init(2.0, in_axis=0, out_axis=(1, 2), mode="fan_out", xi=1.0)(KEY, (50, 8, 40))
    np.testing.assert_allclose(jnp.std(w), np.sqrt(1 / 320), rtol=0.03)
    stacked = ggjax.gg_init(2.0, batch_axis=0, mode="fan_in")(KEY, (10, 30, 40))
    he = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal", batch_axis=0)(KEY, (10, 30, 40))
    np.testing.assert_allclose(jnp.std(stacked), jnp.std(he), rtol=0.05)


def test_it_is_a_flax_initializer():
    params = nn.Dense(64, kernel_init=ggjax.gg_init(1.0)).init(KEY, jnp.ones((1, 32)))
    assert params["params"]["kernel"].shape == (32, 64)
    layer = nnx.Linear(32, 64, kernel_init=ggjax.gg_init(1.0), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jnp.std(layer.kernel[...]), np.sqrt(2 / 64), rtol=0.1)
    w = ggjax.gg_init(1.0, dtype=jnp.bfloat16)(KEY, (4, 4))
    assert w.dtype == jnp.bfloat16
    assert ggjax.gg_init(1.0, dtype=jnp.bfloat16)(KEY, (4, 4), jnp.float16).dtype == jnp.float16
    assert ggjax.gg_init()(KEY, (4, 4)).dtype == jnp.float32


def test_sharded_draws_equal_unsharded_ones():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    init = ggjax.gg_init(0.7)
    want = init(KEY, (16, 8))
    with jax.set_mesh(mesh):
        got = init(KEY, (16, 8), out_sharding=P("x", "y"))
        traced = jax.jit(lambda k: init(k, (16, 8), out_sharding=P("x", None)))(KEY)
    assert got.sharding.spec == P("x", "y") and traced.sharding.spec[0] == "x"
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(traced, want)


def test_bad_arguments_are_named_at_construction():
    with pytest.raises(TypeError, match="did you forget the parentheses"):
        ggjax.gg_init(KEY, (3, 4))
    with pytest.raises(TypeError, match="did you forget the parentheses"):
        nn.Dense(4, kernel_init=ggjax.gg_init).init(jax.random.PRNGKey(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="mode must be one of fan_in, .*, got 'fan'"):
        ggjax.gg_init(mode="fan")
    with pytest.raises(ValueError, match="xi must be positive and finite, got 0"):
        ggjax.gg_init(xi=0)
    with pytest.raises(ValueError, match="shape must be positive and finite, got -1.0"):
        ggjax.gg_init(-1.0)
    with pytest.raises(ValueError, match="shape must be at least 0.1, got 0.05"):
        ggjax.gg_init(0.05)
    with pytest.raises(ValueError, match=r"without a zero for its fan, got \(3, 0\)"):
        ggjax.gg_init()(KEY, (3, 0))
    with pytest.raises(ValueError, match=r"at least two axes for its fan, got \(3,\)"):
        ggjax.gg_init()(KEY, (3,))


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
    params = linen.init(KEY, jnp.ones((1, 8, 8, 3)))
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
