"""Gathers, scatters and the like on sharded arrays, whatever kind of mesh they lie on.

On a mesh with Explicit axes (what ``jax.make_mesh`` makes) these operations refuse sharded operands unless
told the sharding of their result. The helpers here let XLA's partitioner choose inside, as on an Auto mesh,
and state the sharding outside.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def explicit_sharding(x: Any) -> NamedSharding | None:
    """The sharding of an array on a mesh with Explicit axes, or None for any other array."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def varies(x: Any) -> frozenset[str]:
    """The mesh axes over which the array varies, as far as JAX tracks it (inside ``jax.shard_map``)."""
    return jax.typeof(x).manual_axis_type.varying


def spread(x: Any, axis_name: str | Sequence[str] | None) -> tuple[str, ...]:
    """Those of the named axes along which x differs from device to device.

    ``jax.shard_map`` keeps an account of that, unless it is told not to; without one (``check_vma=False``,
    ``vmap``), x counts as different along all of them.
    """
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name or ()
    return tuple(a for a in axes if a in varies(x) or a not in varies(lax.axis_index(a)))


def elementwise(f: Callable[..., jax.Array], x: jax.Array, *rest: Any) -> jax.Array:
    """``f(x, *rest)`` for an f that gives an array of x's shape (a table lookup, say), sharded like x.

    What f needs besides constants comes through ``rest``: an array that f closes over stays Explicit.
    """
    sharding = explicit_sharding(x)
    return f(x, *rest) if sharding is None else _auto(f, sharding, sharding, x, *rest)


def reduce(f: Callable[..., Any], x: jax.Array, *rest: Any) -> Any:
    """``f(x, *rest)`` for an f that gives small arrays of any shape (a histogram, say), replicated."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return f(x, *rest)
    return _auto(f, sharding, NamedSharding(sharding.mesh, P()), x, *rest)


def _auto(f: Callable[..., Any], given: NamedSharding, out: NamedSharding, *args: Any) -> Any:
    inside: Any = jax.sharding.auto_axes(f, axes=given.mesh.axis_names, out_sharding=out)
    return inside(*args)


def local(x: Any) -> jax.Array:
    """The whole of an array on one device of this process, gathered where it is sharded. Outside of jit."""
    if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
        return jnp.asarray(x)
    if not x.is_fully_replicated:
        given = x.sharding
        mesh = given.mesh if isinstance(given, NamedSharding) else _line_of(given.device_set)
        x = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(x)
    return x.addressable_data(0)


def placed_like(value: jax.Array, x: Any) -> jax.Array:
    """An array of ``local`` on the devices of another one, sharded like it."""
    if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
        return value
    return jax.device_put(value, x.sharding)


def _line_of(devices: set[jax.Device]) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(sorted(devices, key=lambda d: d.id), ("all",))
