"""Many small leaves in a few vectors, and back."""

import jax.numpy as jnp
import numpy as np

from ggjax._internal import pack


def leaves():
    shapes = [(3,), (2, 2), (), (0, 4), (100,), (5,), (1, 1), (6,)]
    dtypes = [jnp.float32, jnp.bfloat16] * 4
    return [jnp.full(s, i).astype(d) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]


def test_small_leaves_of_a_dtype_come_together():
    packing = pack.plan(leaves(), below=50, at_most=3)
    assert packing.groups == [[0, 2, 6], [1, 3, 5], [4], [7]]
    assert [x.shape for x in packing.pack(leaves())] == [(5,), (9,), (100,), (6,)]


def test_unpacked_leaves_are_the_packed_ones():
    for below, at_most in ((50, 3), (1, 3), (1000, 100), (50, 1)):
        packing = pack.plan(leaves(), below=below, at_most=at_most)
        got = packing.unpack(packing.pack(leaves()))
        for a, b in zip(got, leaves(), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_array_equal(a, b)
    assert pack.plan([], below=9, at_most=9).unpack([]) == []
