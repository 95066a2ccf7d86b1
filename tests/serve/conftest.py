"""Fixtures of the tests of serving."""

import jax
import numpy as np
import pytest

from ggjax import rf8
from ggjax.serve import _kinds


@pytest.fixture
def decoded(monkeypatch):
    """A list of the shapes of the small arrays that were decoded."""
    shapes = []
    decode = _kinds.decode

    def note(a):
        shapes.append(a.shape)
        return decode(a)

    monkeypatch.setattr(_kinds, "decode", note)
    return shapes


@pytest.fixture
def assert_same():
    """Trees of results that are equal within a tolerance, relative to the largest number of each leaf."""

    def check(found, want, tolerance=1e-6):
        assert jax.tree.structure(found) == jax.tree.structure(want)
        for y, w in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert (y.shape, y.dtype) == (w.shape, w.dtype)
            y, w = (np.asarray(a, np.float64) for a in (y, w))
            np.testing.assert_array_equal(np.isnan(y), np.isnan(w))
            assert np.nanmax(np.abs(y - w), initial=0) <= tolerance * np.nanmax(np.abs(w), initial=0)

    return check


@pytest.fixture
def small():
    """Trees with small arrays for all floating leaves of two and more axes; the others stay floats."""

    def encode(tree, **options):
        mask = jax.tree.map(lambda x: x.ndim > 1, tree)
        return rf8.tree_encode(tree, mask=mask, **options)

    return encode
