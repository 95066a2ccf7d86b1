"""What holds for any weights and any settings: order is kept, results lie on the grid."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggjax import deepshape
from tests.reshape.reference import levels


@pytest.mark.filterwarnings("ignore:deepshape reshaped next to nothing")
@settings(max_examples=25, deadline=None)
@given(
    x=st.lists(st.one_of(st.just(0.0), st.floats(-9, 9, width=32)), min_size=64, max_size=64),
    exponent=st.integers(-10, 0),
    scales=st.tuples(st.floats(0.2, 3), st.floats(0.05, 3)),
    step=st.floats(2**-13, 1),
    min_count=st.sampled_from([0, 1, 3, 1000]),
    way=st.sampled_from([("histogram", True), ("rank", False)]),  # each is a program to compile
)
def test_always_monotone_and_on_the_grid(x, exponent, scales, step, min_count, way):
    x = np.float32(x) * np.float32(2.0**exponent)
    x[np.abs(x) < np.finfo(np.float32).tiny] = 0  # as XLA takes subnormal numbers
    step = np.float32(step)
    method, keep_zeros = way
    new, info = deepshape(
        jnp.asarray(x),
        shape_scale=scales[0],
        std_scale=scales[1],
        step=step,
        min_count=min_count,
        method=method,
        keep_zeros=keep_zeros,
    )
    new = np.asarray(new)
    got = levels(new, np.float64(step))
    np.testing.assert_array_equal(new, np.float32(got) * step)
    q = np.rint(x / step).astype(int)
    mu, top = round(float(info.before.loc) / float(step)), int(info.max_level)
    takes_part = (x != 0) | (not keep_zeros)
    reached = (np.abs(q) <= 2**16) & (np.abs(q - mu) <= top) & takes_part
    order = np.argsort(x[reached], kind="stable")
    assert np.all(np.diff(got[reached][order]) >= 0)
    if method == "histogram":  # "rank" gives equal weights to several levels, in the order of the tree
        assert all(len(set(got[reached & (x == v)])) == 1 for v in set(x[reached].tolist()))
    np.testing.assert_array_equal(got[~reached], q[~reached])
    assert np.all(np.abs(got[reached] - mu) <= top)
    if min_count == 0:
        assert np.all(reached[takes_part & (np.abs(q) <= 2**15)])
