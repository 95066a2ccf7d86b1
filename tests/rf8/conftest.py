"""Fixtures of the tests of RF8."""

import jax
import pytest


@pytest.fixture(params=["digits", "nearest"])
def rounding(request):
    return request.param


@pytest.fixture
def compiled():
    """A list that grows by one whenever XLA compiles a program."""
    events = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)
