"""Strict settings for the whole suite: set before JAX starts its backend."""

import gc
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000
"""Every compiled program takes some maps of memory, of which Linux lets a process have 65,530: the compiler
crashes beyond that."""


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """Forgets compiled programs after a module when there are too many."""
    yield
    if MAPS.exists() and MAPS.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


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


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of a few rows, so that small matrices have many, and some rows left over."""
    from ggjax._internal.tiled import _loops

    monkeypatch.setattr(_loops, "SMALL_TILE", 64)
    monkeypatch.setattr(_loops, "LARGE_TILE", 96)
    jax.clear_caches()
    yield
    jax.clear_caches()
