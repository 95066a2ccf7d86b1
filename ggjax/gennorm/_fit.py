"""Fitting the law to weights, by moments."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ggjax._internal import trees
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
) -> Fit:
    """Fit one law to all selected weights of a tree, by moments.

    rho_hat = n sum(x^2) / (sum |x|)^2 over all selected leaves together gives nu, the variance gives alpha.

    Args:
      params: a tree of arrays; floating leaves count, in any floating dtype (sums are float32, or float64 for
        float64 leaves). A single array is a tree too.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.
      center: take the moments about the mean (DeepShape) instead of about 0 (BackSlash).
      method: see ``shape_from_ratio``.

    Returns:
      A ``Fit(nu, scale, loc)``; loc is 0 unless ``center``. All-zero, empty and (with center) constant weights
      give Fit(2, 0, loc): a Gaussian of width 0. Constant weights without center give the table's end, nu = 3.
      Under jit a NaN weight gives NaN.

    Raises:
      ValueError: no floating leaf, a mask that does not fit, or (outside jit) a NaN or infinite weight.

    >>> import jax
    >>> from ggjax import gennorm
    >>> law = gennorm.fit({"w": gennorm.sample(jax.random.key(0), 1.0, (100_000,))})
    >>> bool(abs(law.nu - 1.0) < 0.03), bool(abs(law.scale - 1.0) < 0.03)
    (True, True)
    """
    flat = trees.flatten(params, mask)
    trees.check_finite(flat.weight_names(), flat.weights())
    return fit_leaves(flat.weights(), center=center, method=method)


@functools.partial(jax.jit, static_argnames=("center", "method"))
def fit_leaves(leaves: list[Any], *, center: bool = False, method: Method = "table") -> Fit:
    """``fit`` of a list of floating arrays, without its checks."""
    n = trees.size(leaves)
    loc = _total([jnp.sum(trees.wide(x)) for x in leaves]) / float(max(n, 1)) if center else 0.0
    first, second = abs_moments(leaves, loc)
    return from_moments(first, second, float(n), loc, method=method)


def abs_moments(leaves: list[Any], loc: ArrayLike = 0.0) -> tuple[jax.Array, jax.Array]:
    """(sum |x - loc|, sum (x - loc)^2) over all leaves together, in float32 or wider."""
    first, second = [], []
    for alike in _alike(leaves):
        centred = [x - jnp.asarray(loc, x.dtype) for x in map(trees.wide, alike)]
        first.append(jnp.sum(functools.reduce(jnp.add, map(jnp.abs, centred))))
        second.append(jnp.sum(functools.reduce(jnp.add, [x * x for x in centred])))
    return _total(first), _total(second)


_ALIKE = 16
"""Leaves of one shape that are summed up together: models have many, and a program for each takes long to
compile."""


def _alike(leaves: list[Any]) -> list[list[Any]]:
    """The leaves in groups of one shape and dtype; each alone where they may be sharded, each in its own
    way."""
    if jax.device_count() > 1:
        return [[x] for x in leaves]
    groups: dict[Any, list[list[Any]]] = {}
    for x in leaves:
        runs = groups.setdefault((jnp.shape(x), jnp.result_type(x)), [[]])
        if len(runs[-1]) == _ALIKE:
            runs.append([])
        runs[-1].append(x)
    return [run for runs in groups.values() for run in runs]


def _total(parts: list[jax.Array]) -> jax.Array:
    """The sum of float32 and float64 scalars; float32 zero for none."""
    dtype = trees.wide_dtype(*(p.dtype for p in parts))
    return sum((p.astype(dtype) for p in parts), jnp.zeros((), dtype))


def from_moments(
    first: jax.Array,
    second: jax.Array,
    n: ArrayLike,
    loc: ArrayLike = 0.0,
    *,
    method: Method = "table",
) -> Fit:
    """The law of given moments: sums of |x - loc| and (x - loc)^2 over n numbers.

    Zero moments give Fit(2, 0, loc); NaN ones give NaN.
    """
    n = jnp.asarray(n, first.dtype)
    some = first != 0  # NaN counts as some
    ratio = jnp.where(some, (second / jnp.where(some, first, 1)) * (n / jnp.where(some, first, 1)), jnp.pi / 2)
    nu = shape_from_ratio(ratio, method)
    variance = jnp.where(some, second / jnp.maximum(n, 1), 0)
    return Fit(nu, jnp.sqrt(variance) / std(nu), jnp.asarray(loc, nu.dtype))
