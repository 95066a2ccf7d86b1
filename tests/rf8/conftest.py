"""Fixtures of the tests of RF8."""

import pytest


@pytest.fixture(params=["digits", "nearest"])
def rounding(request):
    return request.param
