"""Fitting the law to weights, by moments."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ggjax._internal import trees
from ggjax.gennorm import _arguments, _sums
from ggjax.gennorm._density import std
from ggjax.gennorm._table import Method, shape_from_ratio


class Fit(NamedTuple):
    """A fitted law: three float32 scalars (float64 when fitted to float64 weights)."""

    nu: jax.Array  # shape, ()
    scale: jax.Array  # alpha, in the units of the weights, ()
    loc: jax.Array  # mean, in the units of the weights, ()


def fit(
    params: Any,
    *,
    mask: trees.Mask = None,
    center: bool = False,
    method: Method = "table",
    axis_name: _sums.AxisName = None,
) -> Fit:
    """Fit one law to all selected weights of a tree, by moments.

    The ratio n sum(x^2) / (sum |x|)^2 over all selected leaves together gives nu, the variance gives alpha.
    Weights of any size can be fitted: they are divided by a power of two near the largest one before they are
    squared.

    From few weights the estimate of nu is too large, and it scatters. Mean and standard deviation of its error
    with ``method="interp"``, over thousands of draws of n weights each:

        n           30           100            1000           10^4
        nu = 0.5  0.18 ± 0.24  0.06 ± 0.12  0.008 ± 0.043  0.001 ± 0.014
        nu = 1    0.25 ± 0.49  0.07 ± 0.21  0.007 ± 0.064  0.000 ± 0.020
        nu = 2    0.24 ± 0.64  0.13 ± 0.47  0.017 ± 0.15   0.002 ± 0.046

    Args:
      params: a tree of arrays; floating leaves count, in any floating dtype (sums are float32, or float64 for
        float64 leaves). A single array is a tree too. Leaves that are not arrays of weights (integers,
        functions, codes of four bits) are left out.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.
      center: take the moments about the mean (DeepShape) instead of about 0 (BackSlash).
      method: see ``shape_from_ratio``.
      axis_name: inside ``jax.shard_map`` (or ``jax.vmap`` or ``jax.pmap`` with that axis name), the name or
        names of the axes that the weights are spread over: one law is fitted to the weights of all of them. A
        leaf that does not vary over an axis counts once under ``shard_map``, which tracks that (with
        ``check_vma=False`` and elsewhere, it counts once for each device). None fits the weights that are
        there: the local shard, inside ``shard_map``. Outside it sharded arrays need no axis name.

    Returns:
      A ``Fit(nu, scale, loc)``; loc is 0 unless ``center``. All-zero, empty and (with center) constant weights
      give Fit(2, 0, loc): a Gaussian of width 0. Constant weights without center give the table's end, nu = 3.
      Under jit a NaN or infinite weight gives NaN.

    Raises:
      ValueError: no floating leaf, a mask that does not fit, or (where the weights are known) one that is NaN
        or infinite.
      TypeError: a single array of floats without sign or of fewer than eight bits (a tree may hold them).

    >>> import jax
    >>> from ggjax import gennorm
    >>> law = gennorm.fit({"w": gennorm.sample(jax.random.key(0), 1.0, (100_000,))})
    >>> bool(abs(law.nu - 1.0) < 0.03), bool(abs(law.scale - 1.0) < 0.03)
    (True, True)
    """
    _arguments.check_kind_of_float(params)
    flat = trees.flatten(params, mask)
    names, leaves = flat.weight_names(), flat.weights()
    if axis_name is not None or not trees.is_concrete(*leaves):
        return fit_leaves(leaves, center=center, method=method, axis_name=axis_name)
    with jax.ensure_compile_time_eval():
        law = fit_leaves(leaves, center=center, method=method)
        if not jnp.isfinite(law.scale):  # only then: looking through all weights costs as much as fitting them
            trees.check_finite(names, leaves)
    return law


@functools.partial(jax.jit, static_argnames=("center", "method", "axis_name"))
def fit_leaves(
    leaves: list[Any],
    *,
    center: bool = False,
    method: Method = "table",
    axis_name: _sums.AxisName = None,
) -> Fit:
    """``fit`` of a list of floating arrays, without its checks."""
    n = _sums.number(leaves, axis_name)
    parts = _sums.together(leaves)
    if center:
        high = _sums.largest(parts, axis_name)
        low = -_sums.largest(parts, axis_name, jnp.negative, high)
        unit = _sums.power_of_two(jnp.maximum(high, -low))
        mean = _sums.total(parts, _sums.over, axis_name, unit) / max(n, 1)
        # Rounding may take the mean of equal weights beyond them: they would seem to scatter.
        loc = jnp.clip(mean * unit, low, high)
    else:
        unit, loc = _sums.power_of_two(_sums.largest(parts, axis_name, jnp.abs)), 0.0
    first, second = _sums.moments(parts, loc, unit, axis_name)
    return from_moments(first, second, n, loc, method=method, unit=unit)


def from_moments(
    first: jax.Array,
    second: jax.Array,
    n: ArrayLike,
    loc: ArrayLike = 0.0,
    *,
    method: Method = "table",
    unit: ArrayLike = 1.0,
) -> Fit:
    """The law of given moments: sums of |x - loc| / unit and of its square, over n numbers.

    Arrays of moments give a law for each entry; the others are scalars or arrays of the same shape. Moments
    that are zero give Fit(2, 0, loc), those that are NaN give NaN.
    """
    n, loc, unit = (jnp.asarray(v, first.dtype) for v in (n, loc, unit))
    some = first != 0  # NaN counts as some
    divisor = jnp.where(some, first, 1)
    ratio = jnp.where(some, (second / divisor) * (n / divisor), jnp.pi / 2)
    nu = shape_from_ratio(ratio, method)
    width = jnp.where(some, jnp.sqrt(jnp.where(some, second / jnp.maximum(n, 1), 1)), 0)
    return Fit(nu, width / std(nu) * unit, jnp.broadcast_to(loc, nu.shape))
