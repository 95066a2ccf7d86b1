"""Rows by class: parts of an array, and the array of its parts."""

import numpy as np
import pytest

from ggjax.codec.quantize import _rows


@pytest.mark.parametrize("shape", [(3, 40), (300, 70), (5, 60, 16), (17, 2, 1)])
@pytest.mark.parametrize("axis", [0, -1])
def test_parts_are_the_rows_of_their_class(shape, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    classes = rng.integers(0, 3, shape[axis]).astype(np.uint8)
    rows = _rows.Rows(axis, classes, (0, 0, 0))
    parts = list(_rows.parts_of(x, rows))
    moved = np.moveaxis(x, axis, 0)
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(part, moved[classes == k].reshape(-1))
    if axis == -1:
        out = np.empty(shape, np.float32)
        _rows.from_sorted_columns(np.concatenate(parts).reshape(shape[-1], -1), classes, out)
        np.testing.assert_array_equal(out, x)


def test_mean_sizes_of_rows_count_odd_weights_as_0():
    x = np.random.default_rng(1).normal(size=(20, 30, 40)).astype(np.float32)
    x[3, 4], x[5, 6, 7], x[8, 9, 10] = np.inf, np.nan, -np.inf
    size = np.where(np.isfinite(x), np.abs(x), 0).astype(np.float64)
    first, last = _rows._row_means(x)
    np.testing.assert_allclose(first, size.mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(last, size.mean((0, 1)), rtol=1e-12)
