"""Sums over all weights of a tree: one pass over them, quick to compile, without overflow or underflow."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import mesh, pack, trees

AxisName: TypeAlias = str | tuple[str, ...] | None


class Parts(NamedTuple):
    """Leaves in groups of one shape, each group reduced by one program; empty leaves are left out."""

    groups: list[list[jax.Array]]
    dtype: Any  # of all arrays, and of the sums


def moments(parts: Parts, loc: ArrayLike, unit: ArrayLike, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """(sum of |x - loc| / unit, sum of its square) over all weights.

    One pass over them, whatever the unit. With unit 1 the squares of weights above 1e19 overflow in float32,
    and those of weights below 1e-19 underflow. A unit near the largest weight prevents both: a power of two,
    which leaves every digit as it is, or the scale of an earlier fit.
    """

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
    return float(
        sum(trees.size([x]) * math.prod(map(lax.axis_size, mesh.spread(x, axis_name))) for x in leaves)
    )


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
        by_axes.setdefault(mesh.spread(group[0], axis_name), []).append(value)
    values = {axes: functools.reduce(of_two, v) for axes, v in by_axes.items()}
    whole = [of_devices(v, axes) if axes else v for axes, v in values.items()]
    return functools.reduce(of_two, whole) if whole else jnp.zeros((), parts.dtype)


_ALIKE = 16
"""Leaves of one shape that are added up before they are summed: models have many, and compiling a program for
each takes long."""

_FEW, _SMALL = 32, 1 << 17
"""Where more than _FEW leaves have a shape of their own, those below _SMALL weights are packed into vectors,
for the same reason."""


def together(leaves: list[Any]) -> Parts:
    """The leaves in groups of one shape; each alone where they may be sharded, each in its own way."""
    dtype = trees.wide_dtype(*(jnp.result_type(x) for x in leaves))
    arrays = [jnp.asarray(x, dtype) for x in leaves if trees.size([x])]
    if not pack.one_device():
        return Parts([[x] for x in arrays], dtype)
    groups = pack.runs(arrays, lambda x: (x.shape, mesh.varies(x)), at_most=_ALIKE)
    lone = [g[0] for g in groups if len(g) == 1 and g[0].size < _SMALL]
    if len(lone) <= _FEW:
        return Parts(groups, dtype)
    packs = [
        jnp.concatenate([x.ravel() for x in run]) for run in pack.runs(lone, mesh.varies, at_most=pack.MOST)
    ]
    packs = lax.optimization_barrier(packs)  # or XLA would sum each leaf by itself again
    return Parts([g for g in groups if len(g) > 1 or g[0].size >= _SMALL] + [[x] for x in packs], dtype)
