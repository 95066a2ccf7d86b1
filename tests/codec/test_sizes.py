"""What compressed arrays take against their entropy, and steps chosen by what is asked."""

import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import codec
from tests.codec.helpers import entropy, round_trip, weights


@pytest.mark.parametrize("per_std", [0.25, 2**-4])
def test_size_is_that_of_the_entropy(per_std):
    x = weights((1000, 1000))
    step = float(np.std(x)) * per_std
    small = codec.compress({"x": x}, step=step)
    assert 8 * small.nbytes / x.size < 1.003 * entropy(np.rint(np.asarray(x) / np.float32(step)))


def test_float16_rows_in_float32_cost_no_trailing_zeros():
    x = np.array(weights((600, 500)))
    x[::3] = x[::3].astype(np.float16)
    got, small = round_trip(jnp.asarray(x), lossless=True)
    np.testing.assert_array_equal(got, x)
    whole = np.array(weights((600, 500)))
    saved = codec.compress({"x": whole}, lossless=True).nbytes - small.nbytes
    assert saved > 200 * 500 * 12 / 8  # 13 bits a weight of every third row


def test_rows_of_different_scale_share_models_where_that_pays():
    scale = np.exp(np.random.default_rng(0).normal(size=(1000, 1)) * 0.7).astype(np.float32)
    x = np.asarray(weights((1000, 400))) * scale
    sizes = {}
    for name, y in {"rows": x, "columns": np.ascontiguousarray(x.T), "same": weights((1000, 400))}.items():
        got, small = round_trip(jnp.asarray(y), step=2**-7)
        assert np.abs(got - y).max() <= 2**-8 + 1e-6
        sizes[name] = small.tree["x"]
    assert sizes["rows"].meta.axis == 0 and sizes["columns"].meta.axis == -1 and sizes["same"].meta.axis is None
    level = np.rint(x * 2**7)
    assert 8 * sizes["rows"].nbytes / x.size < entropy(level) - 0.1


@pytest.mark.parametrize("bits", [2.0, 4.0, 6.5, 10.0])
def test_bits_are_met(bits):
    small = codec.compress({"w": weights((500, 600))}, bits=bits)
    assert abs(small.bits["w"] - bits) < 0.06


def test_snr_is_met():
    x = weights((300, 400))
    got, _ = round_trip(x, snr_db=25.0)
    error = np.asarray(x, np.float64) - got
    assert abs(10 * np.log10(np.mean(np.float64(x) ** 2) / np.mean(error**2)) - 25) < 0.05


def test_step_per_std():
    x = weights((300, 400))
    small = codec.compress({"x": x}, step_per_std=0.5)
    np.testing.assert_allclose(small.tree["x"].meta.step, 0.5 * np.std(np.asarray(x, np.float64)), rtol=1e-6)


def test_centroids_lower_the_error_and_a_dead_zone_the_rate():
    x = weights((300, 400))

    def measure(**options):
        got, small = round_trip(x, step=0.08, **options)
        return float(np.mean((got - np.asarray(x)) ** 2)), small.bits["x"]

    plain, centred, dead = measure(), measure(centroids=True), measure(dead_zone=0.2)
    both = measure(dead_zone=0.2, centroids=True)
    assert centred[0] < 0.97 * plain[0] and abs(centred[1] - plain[1]) < 0.01
    assert dead[1] < plain[1] - 0.1 and both[0] < dead[0]


@pytest.mark.parametrize("value", [1.366, 1e-3, -7.0, 0.0])
def test_constants_have_no_standard_deviation(value):
    x = np.full(40000, value, np.float32)
    for options in ({"step_per_std": 0.01}, {"bits": 4}, {"snr_db": 30}):
        got, _ = round_trip(jnp.asarray(x), **options)
        np.testing.assert_array_equal(got, x)


def test_rare_weights_are_kept_though_no_sample_has_them():
    x = np.zeros(1_000_000, np.float32)
    x[[100, 7, 500_000]] = 1.0, 0.3, -0.2
    got = np.asarray(codec.decompress(codec.compress({"x": x}, snr_db=30.0))["x"])
    assert np.sum((got - x) ** 2) < 0.01 * np.sum(x**2)


def test_small_weights_are_rounded_or_refused():
    x = 1e-33 * np.random.default_rng(0).normal(size=5000).astype(np.float32)
    got, _ = round_trip(jnp.asarray(x), bits=6)
    wide = x.astype(np.float64)
    assert np.mean((got - wide) ** 2) < 1e-2 * np.mean(wide**2)
    with pytest.raises(ValueError, match="leaf 'x': its largest weight is .*expected at least 2.-120"):
        codec.compress({"x": x * np.float32(1e-4)}, bits=6)
