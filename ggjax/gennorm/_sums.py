"""Sums over all weights of a tree: quick to compile, without overflow or underflow, and without copies."""

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
    dtype: Any  # in which they are summed


def moments(parts: Parts, loc: ArrayLike, unit: ArrayLike, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """(sum of |x - loc| / unit, sum of its square) over all weights.

    With unit 1 the squares of weights above 1e19 overflow in float32, and those of weights below 1e-19
    underflow. A unit near the largest weight prevents both: a power of two, which leaves every digit as it is,
    or the scale of an earlier fit.
    """

    def distance(x: jax.Array, loc: jax.Array, unit: jax.Array) -> jax.Array:
        return jnp.abs(over(x - loc, unit))

    known = tuple(jnp.asarray(v, parts.dtype) for v in (loc, unit))
    first = total(parts, distance, axis_name, *known)
    second = total(parts, lambda x, *v: jnp.square(distance(x, *v[:2])), axis_name, *known, first)
    return first, second


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


def total(parts: Parts, f: Callable[..., jax.Array], axis_name: AxisName, *known: jax.Array) -> jax.Array:
    """The sum of f(x, *known) over all weights x. The pass over them begins when the scalars are known."""
    return _reduce(parts, f, known, axis_name, jnp.add, jnp.sum, lax.psum)


def largest(
    parts: Parts, axis_name: AxisName, f: Callable[[jax.Array], jax.Array] = lambda x: x, *known: jax.Array
) -> jax.Array:
    """The largest f(x) of any weight x, without a derivative; 0 where there are no weights. The pass over them
    begins when the scalars are known."""

    def g(x: jax.Array, *_: jax.Array) -> jax.Array:
        return f(lax.stop_gradient(x))

    return _reduce(parts, g, known, axis_name, jnp.maximum, jnp.max, lax.pmax)


def _reduce(
    parts: Parts,
    f: Callable[..., jax.Array],
    known: tuple[jax.Array, ...],
    axis_name: AxisName,
    of_two: Callable[[jax.Array, jax.Array], jax.Array],
    of_array: Callable[[jax.Array], jax.Array],
    of_devices: Callable[[jax.Array, tuple[str, ...]], jax.Array],
) -> jax.Array:
    by_axes: dict[tuple[str, ...], list[jax.Array]] = {}
    for group in parts.groups:
        # What two passes have in common, such as |x|, XLA would compute once and keep, in a copy of the weights
        # and several times the time; so it is with a scalar broadcast to a shape that many leaves have.
        arrays, scalars = lax.optimization_barrier((group, known)) if known else (group, ())
        value = of_array(functools.reduce(of_two, (f(x.astype(parts.dtype), *scalars) for x in arrays)))
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
    arrays = [jnp.asarray(x) for x in leaves if trees.size([x])]
    if not pack.one_device():
        return Parts([[x] for x in arrays], dtype)
    groups = pack.runs(arrays, lambda x: (x.shape, mesh.varies(x)), at_most=_ALIKE)
    lone = [g[0] for g in groups if len(g) == 1 and g[0].size < _SMALL]
    if len(lone) <= _FEW:
        return Parts(groups, dtype)
    packs = [
        jnp.concatenate([x.ravel().astype(dtype) for x in run])
        for run in pack.runs(lone, mesh.varies, at_most=pack.MOST)
    ]
    packs = lax.optimization_barrier(packs)  # or XLA would sum each leaf by itself again
    return Parts([g for g in groups if len(g) > 1 or g[0].size >= _SMALL] + [[x] for x in packs], dtype)
