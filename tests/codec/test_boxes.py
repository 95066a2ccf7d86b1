"""Boxes of arrays, and which chunks they need."""

import numpy as np
import pytest

from ggjax.codec import _boxes
from ggjax.codec.entropy import _lanes

CASES = [
    ((), []),
    ((7,), [(2, 5)]),
    ((6, 8), [(1, 3), (0, 8)]),
    ((6, 8), [(0, 6), (3, 4)]),
    ((3, 4, 5), [(0, 3), (1, 2), (0, 5)]),
    ((3, 4, 5), [(2, 3), (0, 4), (4, 5)]),
    ((1, 40, 3), [(0, 1), (20, 30), (1, 3)]),
    ((2, 3, 4, 5), [(0, 2), (1, 3), (2, 4), (0, 1)]),
]


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
@pytest.mark.parametrize("shape, ranges", CASES)
def test_chunks_are_those_that_hold_elements_of_the_box(monkeypatch, shape, ranges, chunk):
    monkeypatch.setattr(_lanes, "CHUNK", chunk)
    box = tuple(slice(*r) for r in ranges)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    elements = array[box].reshape(-1)
    got = _boxes.chunks(shape, box)
    assert set(elements // chunk) <= set(got.tolist())
    assert got.min() == elements.min() // chunk and got.max() == elements.max() // chunk
    assert (np.diff(got) > 0).all()
    if chunk == 1:
        assert got.tolist() == elements.tolist()


@pytest.mark.parametrize("shape, ranges", CASES)
def test_a_view_of_the_span_is_the_box(shape, ranges):
    box = tuple(slice(*r) for r in ranges)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    first, end = _boxes.span(shape, box)
    np.testing.assert_array_equal(_boxes.view(array.reshape(-1)[first:end], shape, box), array[box])


def test_boxes_within_boxes():
    a, b = (slice(2, 6), slice(0, 4)), (slice(5, 9), slice(1, 3))
    assert _boxes.common(a, b) == (slice(5, 6), slice(1, 3))
    assert _boxes.common(a, (slice(6, 9), slice(1, 3))) is None
    assert _boxes.bounding([a, b]) == (slice(2, 9), slice(0, 4))
    assert _boxes.inside(b, _boxes.bounding([a, b])) == (slice(3, 7), slice(1, 3))
    assert _boxes.of_index((slice(None), slice(2, None)), (4, 5)) == (slice(0, 4), slice(2, 5))
