"""Modules of nnx in files: by their states, which hold a weight that is tied once."""

import sys
from collections.abc import Callable
from typing import Any


def state_of(tree: Any) -> Any:
    """The state of an nnx module, without PRNG keys, which no file holds; any other tree as it is."""
    nnx = _nnx(tree)
    return nnx.state(tree, nnx.Not(nnx.RngKey)) if nnx else tree


def opened(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The state of an nnx module, and what makes a new module of another state; any other tree as it is."""
    nnx = _nnx(tree)
    if not nnx:
        return tree, lambda loaded: loaded
    graph, state = nnx.split(tree)
    return state, lambda loaded: nnx.merge(graph, loaded)


def _nnx(tree: Any) -> Any:
    """The package of nnx where the tree is a module of it. No such tree is about before somebody imports it."""
    nnx = sys.modules.get("flax.nnx")
    return nnx if nnx and isinstance(tree, nnx.Module) else None
