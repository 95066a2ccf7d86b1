"""Gathers, scatters and the like on sharded arrays, whatever kind of mesh they lie on.

On a mesh with Explicit axes (what ``jax.make_mesh`` makes) these operations refuse sharded operands unless
told the sharding of their result. The helpers here let XLA's partitioner choose inside, as on an Auto mesh,
and state the sharding outside.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def explicit_sharding(x: Any) -> NamedSharding | None:
    """The sharding of an array on a mesh with Explicit axes, or None for any other array."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def elementwise(f: Callable[..., jax.Array], x: jax.Array, *rest: Any) -> jax.Array:
    """``f(x, *rest)`` for an f that gives an array of x's shape (a table lookup, say), sharded like x.

    What f needs besides constants comes through ``rest``: an array that f closes over stays Explicit.
    """
    sharding = explicit_sharding(x)
    return f(x, *rest) if sharding is None else _auto(f, sharding, sharding, x, *rest)


def reduce(f: Callable[..., jax.Array], x: jax.Array, *rest: Any) -> jax.Array:
    """``f(x, *rest)`` for an f that gives a small array of any shape (a histogram, say), replicated."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return f(x, *rest)
    return _auto(f, sharding, NamedSharding(sharding.mesh, P()), x, *rest)


def _auto(f: Callable[..., jax.Array], given: NamedSharding, out: NamedSharding, *args: Any) -> jax.Array:
    inside: Any = jax.sharding.auto_axes(f, axes=given.mesh.axis_names, out_sharding=out)
    return inside(*args)
