"""Weights that are exactly 0, as pruning leaves them: kept by default, ranked like the others if asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import deepshape
from tests.reshape.reference import METHODS, draw, levels, reference

N = 50_000


def pruned(by):
    """Weights of which 80 % are zeros: drawn by lot, or the smallest ones."""
    x = draw(0.8, N, 0.02)
    lot = np.random.default_rng(1).random(N) if by == "lot" else np.abs(x)
    return np.where(lot >= np.quantile(lot, 0.8), x, np.float32(0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", ["lot", "magnitude"])
def test_pruned_weights_stay_pruned(by, method):
    x = pruned(by)
    new, info = deepshape(jnp.asarray(x), method=method)
    new, rest = np.asarray(new), x != 0
    assert np.all(new[~rest] == 0)
    assert int(info.min_count) == 0
    # The other weights are reshaped as they would be alone.
    want, nu, alpha, _, top, *_ = reference(x[rest], min_count=0)
    got = levels(new[rest])
    assert int(info.max_level) == top
    assert abs(float(info.before.nu) - nu) <= 0.0101
    np.testing.assert_allclose(info.before.scale, alpha, rtol=0.02)
    assert np.mean(np.abs(got - want) > 1) < 0.03
    np.testing.assert_allclose(info.moved, np.mean(got != levels(x[rest])), atol=0.01)
    assert float(info.moved) > 0.9


def test_zeros_change_nothing_for_the_others():
    x = jnp.asarray(pruned("lot"))
    rest = np.asarray(x) != 0
    new, info = deepshape(x)
    alone, alone_info = deepshape(x[rest])
    np.testing.assert_array_equal(new[rest], alone)
    jax.tree.map(np.testing.assert_array_equal, info, alone_info)


def test_the_published_rule_ranks_the_zeros():
    x = pruned("lot")
    new, info = deepshape(jnp.asarray(x), method="rank", min_count=0, keep_zeros=False)
    want, _, _, _, _, _, pmf = reference(x, min_count=0)
    got = levels(new)
    assert np.mean(np.abs(got - want) > 1) < 0.01
    assert np.mean(got == 0) < 0.5 < np.mean(x == 0)  # no longer pruned
    np.testing.assert_allclose(np.mean(got == 0), pmf[pmf.size // 2], atol=1e-3)


def test_second_call_keeps_the_zeros_of_the_first():
    first, _ = deepshape(jnp.asarray(pruned("lot")))
    second, info = deepshape(first)
    zero = np.asarray(first) == 0
    assert np.all(np.asarray(second)[zero] == 0)
    np.testing.assert_array_equal(levels(second) * 2.0**-13, second)
    assert float(info.after.scale) < float(info.before.scale)
