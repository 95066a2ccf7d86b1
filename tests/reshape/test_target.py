"""DeepShape against a sort in NumPy float64, and its histogram against its target."""

import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import deepshape
from ggjax.reshape import _deepshape, _histogram, _table
from tests.reshape.reference import METHODS, STEP, draw, fit64, levels, reference, total_variation

CASES = {
    "peaked": (draw(0.6, 10**6, 0.01), {"min_count": 1000}),
    "laplace": (draw(1.0, 10**6, 0.02, 1), {"min_count": 100}),
    "off centre": (draw(1.2, 10**6, 0.01, 2) + np.float32(0.004), {"min_count": 200}),
    "uncut": (draw(0.9, 10**6, 0.01, 3), {"min_count": 0}),
    "wider": (draw(1.0, 10**6, 0.01, 4), {"min_count": 50, "shape_scale": 1.3, "std_scale": 1.5}),
    "coarse": (draw(0.8, 10**6, 0.02, 5), {"min_count": 20, "step": 0.003}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_histogram_is_the_target(case, method):
    x, options = CASES[case]
    want, nu, alpha, mu, top, kept, pmf = reference(x, **options)
    step = options.get("step", STEP)
    new, info = deepshape(jnp.asarray(x.reshape(1000, -1)), method=method, **options)
    new = np.asarray(new).ravel()
    assert int(info.max_level) == top
    assert abs(float(info.before.nu) - nu) <= 0.0101
    np.testing.assert_allclose(info.before.scale, alpha, rtol=0.02)  # alpha moves with nu by a table step
    assert round(float(info.before.loc) / step) == mu
    got = levels(new, step)
    np.testing.assert_array_equal(new, np.float32(got) * np.float32(step))  # the grid
    assert total_variation(got, mu, top, kept, pmf) < 0.01
    assert np.mean(got != want) < 0.02 and np.abs(got - want)[np.abs(want - mu) < top // 2].max() <= 2
    ordered = got[kept[np.argsort(x[kept], kind="stable")]]
    assert np.all(np.diff(ordered) >= 0)  # monotone
    outside = np.setdiff1d(np.arange(x.size), kept)
    np.testing.assert_array_equal(got[outside], levels(x, step)[outside])
    # What the info says of the result.
    nu_after, alpha_after = fit64(new[kept].astype(np.float64))
    assert abs(float(info.after.nu) - nu_after) <= 0.0201
    np.testing.assert_allclose(info.after.scale, alpha_after, rtol=0.03)
    np.testing.assert_allclose(info.moved, np.mean(got != levels(x, step)), atol=0.01)


def test_no_rare_level_and_min_count_zero_keep_everything():
    x = np.repeat(np.float32([-3, -1, 0, 1, 2]), 2000) * np.float32(STEP)
    published = {"std_scale": 1.0, "shape_scale": 1.0, "method": "rank", "keep_zeros": False}
    for min_count in (0, 1000):  # no level is rare in either
        new, info = deepshape(jnp.asarray(x), min_count=min_count, **published)
        assert int(info.max_level) == 3
        np.testing.assert_array_equal(levels(new), reference(x, 1.0, 1.0, min_count=min_count)[0])
    negative = -jnp.abs(jnp.asarray(x))  # no positive level at all
    new, info = deepshape(negative)
    assert int(info.max_level) == 2  # from mu = -1
    assert levels(new).min() >= -3 and levels(new).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_weights_are_assigned(method):
    x = draw(1.0, 200_000, 0.01)
    x[0], x[1] = x.max() * 1.5, -x.max() * 1.5  # alone at both ends
    new, info = deepshape(jnp.asarray(x), min_count=0, method=method)
    got = levels(new)
    assert got[0] == got.max() < levels(x)[0] and got[1] == got.min() > levels(x)[1]
    assert int(info.max_level) == levels(x)[0]


def test_weights_out_of_reach_are_only_rounded():
    x = jnp.concatenate([draw(1.0, 20_000, 0.01), jnp.array([9.00001, -1e6, 3e38, -8.5])])
    new, info = deepshape(x, min_count=0)
    np.testing.assert_array_equal(new[-4:], np.float32([9, -1e6, 3e38, -8.5]))
    assert int(info.max_level) < 1500


def test_counts_beyond_the_integers(monkeypatch):
    """With integers of 14 bits, 50,000 weights take the path of 10^10: groups of leaves, ranks in units."""
    x = jnp.asarray(draw(0.8, 50_000, 0.02))
    leaves = [x[i : i + 12_500] for i in range(0, x.size, 12_500)]
    settings = _deepshape._Settings(*(jnp.float32(v) for v in (0.8, 0.6, STEP, 20)))
    counting = _histogram.Counting(keep_zeros=True, whole=False, axis_name=None)
    reshape = _deepshape._reshape.__wrapped__
    want, want_info, _ = reshape(leaves, settings, counting, "histogram")
    for module in (_histogram, _table):
        monkeypatch.setattr(module, "COUNT_BITS", 14)
    got, info, _ = reshape(leaves, settings, counting, "histogram")
    assert int(info.max_level) == int(want_info.max_level)
    got, want = levels(np.concatenate(got)), levels(np.concatenate(want))
    order = np.argsort(np.asarray(x), kind="stable")
    inner = order[np.abs(levels(x))[order] <= int(info.max_level)]
    assert np.all(np.diff(got[inner]) >= 0)
    counts = [np.bincount(v[inner] + 5000, minlength=10001) for v in (got, want)]
    assert 0.5 * np.abs(counts[0] - counts[1]).sum() / inner.size < 0.03  # units of 4 ranks
