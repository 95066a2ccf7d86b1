"""Learned bit lengths: whole lengths are plain rounding, and gradients are the papers' finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import baselines

W = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
G = np.random.default_rng(1).normal(size=W.shape).astype(np.float32)


def truncated(w, n):
    """The float32 with all but its n leading mantissa bits set to zero."""
    mask = np.uint32(0xFFFFFFFF << (23 - n) & 0xFFFFFFFF)
    return (w.view(np.uint32) & mask).view(np.float32)


def limited(w, n, e):
    """Truncated, without the values below the 2^e - 1 highest exponents in use."""
    cut, exponents = truncated(w, n), np.floor(np.log2(np.abs(w)))
    return np.where(exponents < exponents.max() - (2**e - 2), 0, cut)


def uniform(w, n):
    """The nearest of 2^n values from the smallest weight to the largest."""
    low, step = w.min(), (w.max() - w.min()) / np.float32(2**n - 1)
    return low + step * np.round((w - low) / step)


def made(method, lengths, w=W):
    latent = method.init({"w": jnp.asarray(w)})
    return latent._replace(lengths={"w": jnp.asarray(lengths, jnp.float32)})


MANTISSA, FLOAT, UNIFORM = (baselines.learned_bits(f) for f in ("mantissa", "float", "uniform"))


@pytest.mark.parametrize("n", [0, 1, 3, 7, 23])
@pytest.mark.parametrize("e", [1, 2, 4, 8])
def test_whole_lengths_are_plain_truncation(n, e):
    latent = made(FLOAT, [n, e])
    want = limited(W, n, e)
    for key in (None, jax.random.key(3)):
        np.testing.assert_array_equal(FLOAT.apply(latent, key)["w"], want)
    frozen = FLOAT.freeze(latent)
    np.testing.assert_array_equal(frozen.weights["w"], want)
    np.testing.assert_array_equal(baselines.round_floats({"w": jnp.asarray(W)}, n, e)["w"], want)
    assert float(FLOAT.rate(latent)) == 1 + n + e
    if e == 8:
        np.testing.assert_array_equal(MANTISSA.apply(made(MANTISSA, [n]))["w"], want)
    # The levels are the same order of the same values, and fit in so many bits.
    levels = np.asarray(frozen.levels["w"]).ravel()
    assert levels.dtype == np.int32 and np.abs(levels).max() < 2 ** (n + e)
    np.testing.assert_array_equal(*(np.unique(x, return_inverse=True)[1] for x in (levels, want.ravel())))


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_whole_lengths_are_a_uniform_grid(n):
    latent = made(UNIFORM, [n])
    np.testing.assert_allclose(UNIFORM.apply(latent)["w"], uniform(W, n), rtol=1e-6, atol=1e-6)
    frozen = UNIFORM.freeze(latent)
    np.testing.assert_allclose(frozen.weights["w"], uniform(W, n), rtol=1e-6, atol=1e-6)
    levels = np.asarray(frozen.levels["w"])
    assert levels.min() == 0 and levels.max() == 2**n - 1


def test_interpolation_and_its_gradient():
    latent = made(UNIFORM, [3.25])
    low, high = uniform(W, 3), uniform(W, 4)
    np.testing.assert_allclose(UNIFORM.apply(latent)["w"], 0.75 * low + 0.25 * high, atol=1e-6)
    g = jax.grad(lambda z: jnp.sum(G * UNIFORM.apply(z)["w"]))(latent)
    np.testing.assert_allclose(g.lengths["w"], [np.sum(G * (high - low))], rtol=1e-4)
    np.testing.assert_array_equal(g.weights["w"], G)


def test_random_lengths_and_their_gradient():
    latent = made(FLOAT, [1.25, 2.5])
    keys = jax.random.split(jax.random.key(0), 400)
    values, grads = jax.vmap(
        lambda k: jax.value_and_grad(
            lambda z: (lambda y: (jnp.sum(G * y), y))(FLOAT.apply(z, k)["w"]), has_aux=True
        )(latent)
    )(keys)
    corners = {(n, e): limited(W, n, e) for n in (1, 2) for e in (2, 3)}
    seen = {c: np.all(np.asarray(values[1]) == q, axis=(1, 2)) for c, q in corners.items()}
    assert sum(seen.values()).tolist() == [1] * len(keys)  # always one of the four
    assert 0.15 < np.mean(seen[2, 2] | seen[2, 3]) < 0.35 and 0.4 < np.mean(seen[1, 3] | seen[2, 3]) < 0.6
    for (n, e), where in seen.items():
        by_n = np.sum(G * (corners[2, e] - corners[1, e]))
        by_e = np.sum(G * (corners[n, 3] - corners[n, 2]))
        np.testing.assert_allclose(
            grads.lengths["w"][where], [[by_n, by_e]] * where.sum(), rtol=1e-3, atol=1e-4
        )
    np.testing.assert_array_equal(grads.weights["w"][0], G)


def test_without_a_key_random_lengths_are_rounded_up():
    np.testing.assert_array_equal(MANTISSA.apply(made(MANTISSA, [2.1]))["w"], truncated(W, 3))
    np.testing.assert_array_equal(baselines.round_up(made(MANTISSA, [2.1])).lengths["w"], [3])


def test_no_gradient_leads_out_of_the_range():
    def descent(n, slope):
        latent = made(UNIFORM, [n])
        return float(jax.grad(lambda z: slope * UNIFORM.rate(z))(latent).lengths["w"][0])

    assert descent(1, 1.0) == 0 and descent(1, -1.0) == -1
    assert descent(16, -1.0) == 0 and descent(17, 1.0) == 1
    assert float(UNIFORM.rate(made(UNIFORM, [30.0]))) == 16


def test_rate_by_elements_and_by_tensors():
    params = {"a": jnp.ones((2, 3)), "c": jnp.ones((3, 6)), "bias": jnp.ones(3)}
    lengths = {"a": jnp.array([2.0]), "c": jnp.array([4.0]), "bias": None}
    for share, want in (("elements", (6 * 2 + 18 * 4) / 24), ("tensors", 3.0)):
        method = baselines.learned_bits("uniform", share=share)
        latent = method.init(params)
        assert latent.lengths["bias"] is None and latent.lengths["a"].tolist() == [8]
        assert float(method.rate(latent._replace(lengths=lengths))) == want
    frozen = method.freeze(latent)
    assert frozen.levels["bias"] is None and frozen.side_bits == 2 * 72
    np.testing.assert_array_equal(frozen.weights["bias"], params["bias"])


def test_rounding_to_nearest():
    x = {"w": jnp.array([[1.25, 1.2, -1.75, 1.99, 0.3]])}
    got = baselines.round_floats(x, 1, 8, nearest=True)["w"]
    assert got.tolist() == [[1.5, 1.0, -1.5, 1.5, 0.25 if 0.3 < 0.3125 else 0.375]]  # 2 is above the range
    g = jax.grad(lambda p: baselines.round_floats(p, 1, 2)["w"].sum())(x)["w"]
    assert g.tolist() == [[1.0] * 5]


@pytest.mark.parametrize("method", [MANTISSA, FLOAT, UNIFORM], ids=["mantissa", "float", "uniform"])
def test_leaves_of_every_kind(method):
    params = {
        "brain": jnp.asarray(W, jnp.bfloat16),
        "half": jnp.asarray(W, jnp.float16),
        "zeros": jnp.zeros((3, 4)),
        "empty": jnp.zeros((0, 4)),
        "scalar": jnp.asarray(0.3),
        "count": jnp.arange(3),
    }
    method = baselines.learned_bits(
        {MANTISSA: "mantissa", FLOAT: "float", UNIFORM: "uniform"}[method], mask=None
    )
    latent = method.init(params)
    for got in (jax.jit(method.apply)(latent, jax.random.key(0)), jax.jit(method.freeze)(latent).weights):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
            lambda x: (x.shape, x.dtype), params
        )
        assert not np.any(np.asarray(got["zeros"]))
        np.testing.assert_array_equal(got["count"], params["count"])
        np.testing.assert_allclose(got["scalar"], 0.3, rtol=1e-6)
        np.testing.assert_allclose(
            np.asarray(got["brain"], np.float32), np.asarray(params["brain"], np.float32), atol=0.02
        )
    rate, grads = jax.value_and_grad(method.rate, allow_int=True)(latent)
    assert np.isfinite(rate) and all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads.lengths))


def test_wrong_arguments():
    for kwargs, words in [
        ({"format": "int"}, "format must be .*got 'int'"),
        ({"mixing": "none"}, "mixing must be .*got 'none'"),
        ({"share": "macs"}, "share must be .*got 'macs'"),
        ({"start": 17}, "start must lie between .*got 17"),
        ({"start": (2, 3)}, r"start must be one number or 1, got \(2, 3\)"),
        ({"start": float("nan")}, "start must be at least 0 and finite, got nan"),
    ]:
        with pytest.raises(ValueError, match=words):
            baselines.learned_bits(**{"format": "uniform", **kwargs})
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got nan"):
        UNIFORM.init({"w": jnp.full((2, 2), jnp.nan)})
    with pytest.raises(ValueError, match="mask must be .*got 'all'"):
        baselines.learned_bits("uniform", mask="all").init({"w": jnp.ones((2, 2))})
    for n, e, words in [
        (24, 8, "mantissa_bits .*got 24"),
        (3, 0, "exponent_bits .*got 0"),
        (2.5, 8, "got 2.5"),
    ]:
        with pytest.raises(ValueError, match=words):
            baselines.round_floats({"w": jnp.ones((2, 2))}, n, e)
    assert np.isnan(jax.jit(lambda p: baselines.round_floats(p, 1))({"w": jnp.full((1, 1), jnp.nan)})["w"])


def test_lengths_that_momentum_has_carried_on_are_rounded_to_what_there_is():
    latent = made(MANTISSA, [-0.9])
    np.testing.assert_array_equal(baselines.round_up(latent).lengths["w"], [0])
    assert float(MANTISSA.rate(latent)) == float(MANTISSA.rate(made(MANTISSA, [0.0])))


def test_infinite_weights_stay_what_they_are_under_jit():
    w = jnp.array([[1.3, jnp.inf, -jnp.inf, jnp.nan]])
    found = jax.jit(lambda w: baselines.round_floats({"w": w}, 3))(w)["w"]
    np.testing.assert_array_equal(found, [[1.25, np.inf, -np.inf, np.nan]])
