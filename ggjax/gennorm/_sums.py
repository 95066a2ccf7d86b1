"""Sums over all weights of a tree: one pass over them, quick to compile, without overflow or underflow."""

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import trees

AxisName: TypeAlias = str | tuple[str, ...] | None


class Parts(NamedTuple):
    """Leaves in groups of one shape, each group reduced by one program; empty leaves are left out."""

    groups: list[list[jax.Array]]
    dtype: Any  # of all arrays, and of the sums


def abs_moments(
    leaves: list[Any],
    loc: ArrayLike = 0.0,
    *,
    unit: ArrayLike = 1.0,
    axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
    """(sum of |x - loc| / unit, sum of its square) over all leaves together, in float32 or wider.

    One pass over the weights, whatever the unit. With unit 1 the squares of weights above 1e19 overflow in
    float32, and those of weights below 1e-19 underflow. A unit near the largest weight prevents both: a power
    of two, which leaves every digit as it is, or the scale of an earlier fit.
    """
    return moments(together(leaves), loc, unit, axis_name)


def moments(parts: Parts, loc: ArrayLike, unit: ArrayLike, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """``abs_moments`` of leaves that are put together."""

    def distance(x: jax.Array) -> jax.Array:
        return jnp.abs(over(x - jnp.asarray(loc, x.dtype), unit))

    return total(parts, distance, axis_name), total(parts, lambda x: jnp.square(distance(x)), axis_name)


def over(x: jax.Array, unit: ArrayLike) -> jax.Array:
    """x / unit, by the reciprocal: exact for powers of two, and no slower than reading x."""
    return x * (1 / jnp.asarray(unit, x.dtype))


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two nearest to x, kept where it and its reciprocal are ordinary floats."""
    info = jnp.finfo(x.dtype)
    rounded = lax.reduce_precision(lax.stop_gradient(x), exponent_bits=info.nexp, mantissa_bits=0)
    return jnp.clip(rounded, info.tiny, 1 / info.tiny)


def number(leaves: list[Any], axis_name: AxisName) -> float:
    """How many weights there are, on all devices of the axes together: a Python number, so never too many."""
    return float(sum(trees.size([x]) * math.prod(map(lax.axis_size, _spread(x, axis_name))) for x in leaves))


def total(parts: Parts, f: Callable[[jax.Array], jax.Array], axis_name: AxisName) -> jax.Array:
    """The sum of f over all weights."""
    return _reduce(parts, f, axis_name, jnp.add, jnp.sum, lax.psum)


def largest(parts: Parts, axis_name: AxisName, f: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
    """The largest f of any weight, without a derivative; 0 where there are no weights."""
    return _reduce(parts, lambda x: f(lax.stop_gradient(x)), axis_name, jnp.maximum, jnp.max, lax.pmax)


def _reduce(
    parts: Parts,
    f: Callable[[jax.Array], jax.Array],
    axis_name: AxisName,
    of_two: Callable[[jax.Array, jax.Array], jax.Array],
    of_array: Callable[[jax.Array], jax.Array],
    of_devices: Callable[[jax.Array, tuple[str, ...]], jax.Array],
) -> jax.Array:
    by_axes: dict[tuple[str, ...], list[jax.Array]] = {}
    for group in parts.groups:
        value = of_array(functools.reduce(of_two, map(f, group)))
        by_axes.setdefault(_spread(group[0], axis_name), []).append(value)
    values = {axes: functools.reduce(of_two, v) for axes, v in by_axes.items()}
    whole = [of_devices(v, axes) if axes else v for axes, v in values.items()]
    return functools.reduce(of_two, whole) if whole else jnp.zeros((), parts.dtype)


def _spread(x: Any, axis_name: AxisName) -> tuple[str, ...]:
    """Those of the axes along which x differs from device to device.

    ``shard_map`` keeps an account of that, unless it is told not to; without one, x differs along all of them.
    """
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name or ()
    return tuple(a for a in axes if a in _varies(x) or a not in _varies(lax.axis_index(a)))


def _varies(x: Any) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


_ALIKE = 16
"""Leaves of one shape that are added up before they are summed: models have many, and compiling a program for
each takes long."""

_FEW, _SMALL, _PACK = 32, 1 << 17, 64
"""Where more than _FEW leaves have a shape of their own, those below _SMALL weights are copied into vectors, up
to _PACK of them each, for the same reason."""


def together(leaves: list[Any]) -> Parts:
    """The leaves in groups of one shape; each alone where they may be sharded, each in its own way."""
    dtype = trees.wide_dtype(*(jnp.result_type(x) for x in leaves))
    arrays = [jnp.asarray(x, dtype) for x in leaves if trees.size([x])]
    if jax.device_count() > 1:
        return Parts([[x] for x in arrays], dtype)
    groups = _runs(arrays, _ALIKE, lambda x: (x.shape, _varies(x)))
    lone = [g[0] for g in groups if len(g) == 1 and g[0].size < _SMALL]
    if len(lone) <= _FEW:
        return Parts(groups, dtype)
    packs = [jnp.concatenate([x.ravel() for x in pack]) for pack in _runs(lone, _PACK, _varies)]
    packs = lax.optimization_barrier(packs)  # or XLA would sum each leaf by itself again
    return Parts([g for g in groups if len(g) > 1 or g[0].size >= _SMALL] + [[x] for x in packs], dtype)


def _runs(xs: list[jax.Array], length: int, key: Callable[[jax.Array], Hashable]) -> list[list[jax.Array]]:
    """The arrays in lists of one key, in order, of at most so many arrays each."""
    runs: dict[Hashable, list[list[jax.Array]]] = {}
    for x in xs:
        of_key = runs.setdefault(key(x), [[]])
        if len(of_key[-1]) == length:
            of_key.append([])
        of_key[-1].append(x)
    return [run for of_key in runs.values() for run in of_key]
