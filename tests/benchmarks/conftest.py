"""For the tests of the benchmarks."""

import jax
import pytest


@pytest.fixture(autouse=True)
def promotion():
    """Adam is not made for strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield
