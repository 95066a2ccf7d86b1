"""GG init: variances and laws of drawn kernels, shapes, dtypes, numbers that are traced, and bad arguments."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ggjax
from ggjax.init import _fans

KEY = jax.random.key(3)
MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")

ARRAYS = {  # a shape, axes, and the fans by hand: of inputs and of outputs
    "dense": ((800, 1250), {}, (800, 1250)),
    "conv": ((3, 3, 240, 460), {}, (9 * 240, 9 * 460)),
    "stacked": ((10, 250, 400), {"batch_axis": 0}, (250, 400)),
    "query": ((500, 8, 250), {"in_axis": 0, "out_axis": (1, 2)}, (500, 2000)),
    "out": ((8, 250, 500), {"in_axis": (0, 1), "out_axis": 2}, (2000, 500)),
    "stack_of_convs": ((4, 3, 250, 350), {"batch_axis": [0]}, (3 * 250, 3 * 350)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_variance_is_xi_over_the_fan(name):
    shape, axes, (fan_in, fan_out) = ARRAYS[name]
    fans = dict(zip(MODES, (fan_in, fan_out, (fan_in + fan_out) / 2, np.sqrt(fan_in * fan_out)), strict=True))
    for mode, fan in fans.items():
        w = np.asarray(ggjax.gg_init(1.2, 1.5, mode, **axes)(KEY, shape), np.float64)
        np.testing.assert_allclose(w.var(), 1.5 / fan, rtol=0.01)
    alpha = np.sqrt(1.5 / fan / st.gennorm(1.2).var())
    assert st.kstest(w.ravel()[:100_000], st.gennorm(1.2, scale=alpha).cdf).pvalue > 1e-3


FANS = [  # a shape, axes, and the fans by hand
    ((6, 4), {}, (6, 4)),
    ((5, 6, 4), {}, (30, 20)),
    ((5, 6, 4), {"batch_axis": 0}, (6, 4)),
    ((5, 6, 4), {"in_axis": 0, "out_axis": (1, 2)}, (5, 24)),
    ((5, 6, 4), {"in_axis": (0, -2), "out_axis": 2}, (30, 4)),
    ((5, 6, 4), {"in_axis": 1, "out_axis": 0, "batch_axis": (-1,)}, (6, 5)),
    ((2, 3, 6, 4), {"in_axis": 0, "out_axis": (2, 3), "batch_axis": 1}, (2, 24)),
    ((5,), {"in_axis": 0, "out_axis": ()}, (5, 1)),
    ((5,), {"in_axis": (), "out_axis": [0]}, (1, 5)),
    ((5,), {"in_axis": (), "out_axis": ()}, (5, 5)),
    ((), {"in_axis": (), "out_axis": ()}, (1, 1)),
]


@pytest.mark.parametrize(("shape", "axes", "fans"), FANS)
def test_fans(shape, axes, fans):
    axes = {"in_axis": -2, "out_axis": -1, "batch_axis": (), **axes}
    got = [_fans.fan(shape, mode, **axes) for mode in MODES]
    np.testing.assert_allclose(got, [*fans, np.mean(fans), np.sqrt(np.prod(fans))])


def test_fans_are_those_of_jax():
    shape, axes = (5, 6, 4), {"in_axis": (0, -2), "out_axis": 2}
    unit = jax.random.uniform(KEY, shape, jnp.float32, -1)
    for mode in MODES:
        peer = jax.nn.initializers.variance_scaling(1.0, mode, "uniform", **axes)(KEY, shape, jnp.float32)
        fan = _fans.fan(shape, mode, batch_axis=(), **axes)
        np.testing.assert_allclose(peer, unit * np.sqrt(3 / fan), rtol=1e-5)


def test_vectors_and_scalars_where_the_axes_say_what_they_are():
    vectors = ggjax.gg_init(1.0, 1.0, in_axis=(), out_axis=0)(KEY, (4096,))
    np.testing.assert_allclose(jnp.std(vectors), 4096**-0.5, rtol=0.1)
    assert ggjax.gg_init(in_axis=(), out_axis=())(KEY, ()).shape == ()


def test_arrays_without_elements_need_no_fan():
    for shape in [(0,), (3, 0), (0, 4), (3, 0, 2)]:
        assert ggjax.gg_init()(KEY, shape, jnp.bfloat16).shape == shape


def test_it_is_an_initializer_of_flax_and_follows_the_dtype():
    params = nn.Dense(64, kernel_init=ggjax.gg_init(1.0)).init(KEY, jnp.ones((1, 32)))
    assert params["params"]["kernel"].shape == (32, 64)
    layer = nnx.Linear(32, 64, kernel_init=ggjax.gg_init(1.0), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jnp.std(layer.kernel[...]), np.sqrt(2 / 64), rtol=0.1)
    brain = ggjax.gg_init(1.0, dtype=jnp.bfloat16)
    assert brain(KEY, (4, 4)).dtype == jnp.bfloat16
    assert brain(KEY, (4, 4), jnp.float16).dtype == jnp.float16
    assert brain(KEY, (4, 4), None).dtype == jnp.float32  # as the initializers of jax.nn
    assert ggjax.gg_init()(KEY, [4, 4], "float8_e4m3fn").dtype == jnp.float8_e4m3fn


def test_dtypes_under_x64_are_those_of_jax():
    def dtypes(init):
        given = (None, jnp.float32, jnp.float64, jnp.bfloat16)
        return [init(KEY, (4, 4), d).dtype for d in given] + [init(KEY, (4, 4)).dtype]

    with jax.enable_x64(True):
        want = dtypes(jax.nn.initializers.he_normal())
        assert dtypes(ggjax.gg_init(1.0)) == want
        assert jax.jit(lambda nu, xi: dtypes(ggjax.gg_init(nu, xi)) == want)(1.0, np.float64(2.0))


@pytest.mark.parametrize(
    "dtype", ["float8_e8m0fnu", "float4_e2m1fn", "float6_e2m3fn", "int8", "complex64", "bool"]
)
def test_dtypes_that_hold_no_weights_are_refused(dtype):
    if not hasattr(jnp, dtype):
        pytest.skip("not in this version of jax")
    with pytest.raises(TypeError, match=f"a sign, a zero and at least 8 bits, got {dtype}"):
        ggjax.gg_init()(KEY, (4, 4), dtype)


def test_shape_and_gain_may_be_arrays_and_traced():
    def draw(nu, xi):
        return ggjax.gg_init(nu, xi)(KEY, (64, 48))

    want = draw(0.8, 1.5)
    np.testing.assert_allclose(draw(jnp.float32(0.8), np.float32(1.5)), want, rtol=1e-5)
    nu, xi = jnp.float32(0.8), jnp.float32(1.5)
    np.testing.assert_allclose(jax.jit(lambda: draw(nu, xi))(), want, rtol=1e-5)  # closed over
    np.testing.assert_allclose(jnp.std(jax.jit(draw)(nu, xi)), np.sqrt(1.5 / 48), rtol=0.1)
    traced_xi = jax.jit(functools.partial(draw, 0.8))(jnp.bfloat16(1.5))
    np.testing.assert_allclose(traced_xi, want, rtol=1e-5)
    both = jax.vmap(draw)(jnp.array([0.8, 2.0]), jnp.array([1.5, 0.5]))
    np.testing.assert_allclose(jnp.std(both, (1, 2)), np.sqrt([1.5 / 48, 0.5 / 48]), rtol=0.1)
    gain = jax.grad(lambda xi: jnp.sum(draw(0.8, xi) ** 2))(1.5)
    np.testing.assert_allclose(gain, jnp.sum(want**2) / 1.5, rtol=1e-4)


def test_keys_of_both_kinds_vmap_and_no_jit():
    init = ggjax.gg_init(0.8)
    keys = jax.random.split(KEY, 3)
    stacked = jax.vmap(lambda k: init(k, (8, 4)))(keys)
    np.testing.assert_allclose(stacked[1], init(keys[1], (8, 4)), rtol=1e-6)
    old = jax.random.PRNGKey(7)
    np.testing.assert_array_equal(init(old, (8, 4)), init(jax.random.wrap_key_data(old), (8, 4)))
    with jax.disable_jit():
        np.testing.assert_allclose(init(keys[1], (8, 4)), stacked[1], rtol=1e-6)
    with jax.debug_nans(True):
        assert np.isfinite(ggjax.gg_init(0.1)(KEY, (8, 4))).all()


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


def test_calls_that_forget_the_key_or_the_parentheses_are_told_what_to_write():
    for key in (KEY, jax.random.PRNGKey(0), jax.random.split(KEY, 2)):
        with pytest.raises(TypeError, match="did you forget the parentheses.*For Haiku, write w_init=lambda"):
            ggjax.gg_init(key, (3, 4))
    with pytest.raises(TypeError, match="did you forget the parentheses"):
        nn.Dense(4, kernel_init=ggjax.gg_init).init(jax.random.PRNGKey(0), jnp.ones((1, 3)))
    with pytest.raises(
        TypeError, match="did you forget the parentheses.*For Haiku"
    ):  # hk.Linear(w_init=gg_init)
        ggjax.gg_init((3, 4), jnp.float32)
    with pytest.raises(TypeError, match=r"takes \(key, shape, dtype\), and its first.*For Haiku, write w_init"):
        ggjax.gg_init()((3, 4), jnp.float32)


def test_the_adapter_for_haiku_is_one():
    hk = pytest.importorskip("haiku")

    def w_init(shape, dtype):
        return ggjax.gg_init()(hk.next_rng_key(), shape, dtype)

    params = hk.transform(lambda x: hk.Linear(64, w_init=w_init)(x)).init(KEY, jnp.ones((1, 32)))
    np.testing.assert_allclose(jnp.std(params["linear"]["w"]), np.sqrt(2 / 64), rtol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fan"}, "mode must be one of fan_in, .*, got 'fan'"),
        ({"xi": 0}, "xi must be positive and finite, got 0"),
        ({"xi": np.nan}, "xi must be positive and finite, got nan"),
        ({"shape": -1.0}, "shape must be positive and finite, got -1.0"),
        ({"shape": 0.05}, "shape must be at least 0.1, got 0.05"),
    ],
)
def test_bad_numbers_are_named_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        ggjax.gg_init(**arguments)


def test_arrays_for_numbers_and_axes_that_do_not_fit_are_named():
    with pytest.raises(TypeError, match=r"shape must be one number, got an array of shape \(2,\)"):
        ggjax.gg_init(np.array([1.0, 2.0]))
    with pytest.raises(TypeError, match=r"xi must be one number, got an array of shape \(1,\)"):
        ggjax.gg_init(1.0, jnp.ones(1))
    with pytest.raises(TypeError, match="shape must be a number, got 'wide'"):
        ggjax.gg_init("wide")
    for shape in [(3,), ()]:
        with pytest.raises(ValueError, match="Must be at least 2D or specify in_axis explicitly"):
            ggjax.gg_init()(KEY, shape)
    with pytest.raises(ValueError, match=r"out_axis=\(2,\) does not exist in an array of 2 axes"):
        ggjax.gg_init(out_axis=2)(KEY, (3, 4))
    with pytest.raises(ValueError, match=r"an axis of shape \(3, 4\) is named twice: .*batch_axis=0"):
        ggjax.gg_init(batch_axis=0)(KEY, (3, 4))


def test_weights_under_x64_are_those_without():
    key, shape = jax.random.key(0), (30, 20)
    want = ggjax.gg_init(0.8)(key, shape)
    with jax.enable_x64(True):
        got = ggjax.gg_init(0.8)(key, shape, np.float32)
        whole = ggjax.gg_reinit(key, {"kernel": np.ones(shape, np.float32)}, 0.8)["kernel"]
        assert 0.1 < float(whole.std()) / float(want.std()) < 10
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_numpy_integers_are_axes_and_numbers_beyond_float32_are_refused():
    key = jax.random.key(0)
    want = ggjax.gg_init(batch_axis=0)(key, (2, 3, 4))
    np.testing.assert_array_equal(ggjax.gg_init(batch_axis=np.int64(0))(key, (2, 3, 4)), want)
    for xi in (1e300, 1e-320):
        with pytest.raises(ValueError, match="xi must be in the range of float32"):
            ggjax.gg_init(1.0, xi)
