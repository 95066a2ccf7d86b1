"""Drawing from the law."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaincc
from jax.typing import ArrayLike, DTypeLike

from ggjax._internal import mesh, trees
from ggjax.gennorm import _arguments, _special
from ggjax.gennorm._density import power
from ggjax.gennorm._quantile import distance
from ggjax.gennorm._table import TABLE_START


def sample(
    key: jax.Array,
    nu: ArrayLike,
    shape: tuple[int, ...] | None = None,
    dtype: DTypeLike | None = None,
    *,
    scale: ArrayLike = 1.0,
    out_sharding: Any = None,
) -> jax.Array:
    """Draw from the law of shape nu and mean 0, as fast as ``jax.random.normal``.

    Each value takes one 32-bit random number: a sign, and a survival probability whose quantile is interpolated
    in a table that is computed once per nu in float64. All values beyond the quantile of probability 2^-31 are
    one value, their root mean square. The draw is float32 and cast last (float64 when dtype is float64, from
    the same 32 bits). The same key gives the same values whether or not the result is sharded.

    Where nu is not known when the function is traced, its table is computed on the device at every call, which
    takes as long as some millions of normal numbers, in the dtype of the draw: the values are those of a known
    nu to a relative 1e-5. An array of shapes takes no table but the quantile of every value, which takes tens
    of times as long as normal numbers; the values are the same but for the error of interpolation, which shows
    in values near 0 (less than 1e-3 of the probability). Draws are differentiable in nu (as an array or traced)
    and scale.

    Args:
      key: an unused PRNG key.
      nu: the shapes, a positive number of at least 0.1 or an array of them that broadcasts to shape. Any larger
        number will do: at 1000 the law is uniform between -scale and scale but for its edges.
      shape: of the result; None for that of nu and scale together.
      dtype: a floating dtype; None for JAX's default.
      scale: alpha, positive, a number or an array that broadcasts to shape; multiplied in before the cast.
      out_sharding: sharding of the result, as in ``jax.random.normal``.

    Raises:
      ValueError: nu or scale is not positive or does not broadcast to shape, or nu is below 0.1.
      TypeError: dtype is not one that weights are kept in.

    >>> import jax
    >>> sample(jax.random.key(0), 0.7, (2, 3)).shape
    (2, 3)
    """
    trees.check_positive("nu", nu)
    trees.check_positive("scale", scale)
    if trees.is_concrete(nu) and np.any(np.asarray(nu, np.float64) < TABLE_START):
        raise ValueError(f"nu must be at least {TABLE_START}, got {nu!r}")
    dtype = jax.dtypes.canonicalize_dtype(jnp.float_ if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating one, got {dtype}")
    _arguments.check_kind_of_float(dtype)
    shape = _shape(shape, nu, scale)
    wide = trees.wide_dtype(dtype)
    scale = jnp.asarray(scale, wide)
    if np.ndim(nu) > 0:
        return _sample_each(key, jnp.asarray(nu, wide), scale, shape, dtype, out_sharding)
    if trees.is_concrete(nu):
        tables = tuple(t.astype(wide) for t in _quantile_cells(float(np.asarray(nu, np.float64))))
    else:
        tables = _traced_quantile_cells(jnp.asarray(nu, wide))
    return _sample(key, scale, tables, shape, dtype, out_sharding)


def _shape(shape: tuple[int, ...] | None, nu: ArrayLike, scale: ArrayLike) -> tuple[int, ...]:
    shapes = {"nu": np.shape(nu), "scale": np.shape(scale)}
    if shape is None:
        return np.broadcast_shapes(*shapes.values())
    shape = tuple(int(n) for n in shape)
    for name, given in shapes.items():
        if len(given) > len(shape) or any(a not in (1, b) for a, b in zip(given[::-1], shape[::-1])):  # noqa: B905
            raise ValueError(f"{name} of shape {given} does not broadcast to the shape {shape}")
    return shape


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _sample(
    key: jax.Array,
    scale: jax.Array,
    tables: tuple[ArrayLike, ArrayLike],
    shape: tuple[int, ...],
    dtype: Any,
    out_sharding: Any,
) -> jax.Array:
    wide = trees.wide_dtype(dtype)
    bits, survival = _survival(key, shape, out_sharding)
    # In units of 2^-31, its float32 code names the cell by exponent and leading digits.
    code = lax.bitcast_convert_type(survival, jnp.int32)
    low = 23 - _CELL_BITS
    cell = jnp.maximum((code >> low) - (127 << _CELL_BITS) + 1, 0)
    part = (code & ((1 << low) - 1)).astype(wide) / (1 << low)
    edge, rise = (mesh.elementwise(lambda i, t: t[i], cell, jnp.asarray(t)) for t in tables)
    return _signed(bits, edge + part * rise, scale, dtype)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _sample_each(
    key: jax.Array, nu: jax.Array, scale: jax.Array, shape: tuple[int, ...], dtype: Any, out_sharding: Any
) -> jax.Array:
    nu = jnp.expand_dims(nu, range(len(shape) - nu.ndim))
    bits, survival = _survival(key, shape, out_sharding)
    outer = survival.astype(nu.dtype) * 2.0**-31
    x = jnp.where(survival < 1, _tail(nu), distance(1 - outer, outer, nu))
    return _signed(bits, x, scale, dtype)


def _survival(key: jax.Array, shape: tuple[int, ...], out_sharding: Any) -> tuple[jax.Array, jax.Array]:
    """Random bits, whose last one is for the sign, and a survival probability in units of 2^-31."""
    bits = jax.random.bits(key, shape, jnp.uint32, out_sharding=out_sharding)
    return bits, (bits >> 1).astype(jnp.float32) + 0.5


def _signed(bits: jax.Array, x: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
    scale = jnp.expand_dims(scale, range(x.ndim - scale.ndim))
    return (scale * jnp.where(bits & 1, x, -x)).astype(dtype)


_CELL_BITS = 10
"""Cells per octave of survival probability, as a power of two."""


def _survival_of_cells() -> np.ndarray:
    """The survival probability at the start of every cell but the first, in float64.

    31 octaves of 1024 cells from 2^-31 on, then the single point of probability 1.
    """
    cells = 1 << _CELL_BITS
    octaves = 2.0 ** np.arange(-31, 0)[:, None] * (1 + np.arange(cells) / cells)
    return np.append(octaves.ravel(), 1.0)


@functools.lru_cache(maxsize=64)
def _quantile_cells(nu: float) -> tuple[np.ndarray, np.ndarray]:
    """|x| at the start of every cell of survival probability, and its rise within the cell, in float64.

    Cell 0 is the tail below 2^-31, where |x| is the root mean square of the law there.
    """
    from scipy.special import gammaincc, gammainccinv, gammaincinv, gammaln

    a = 1 / nu
    survival = _survival_of_cells()
    # Where t = |x|^nu vanishes beside 1 (or as a float), P(|X| < x) = x / Gamma(1 + 1/nu).
    uniform = (1 - survival) * np.exp(gammaln(1 + a))
    t = np.where(survival < 0.5, gammainccinv(a, survival), gammaincinv(a, 1 - survival))
    x = np.where(uniform**nu < np.finfo(float).eps, uniform, t**a)
    tail = x[0]
    if t[0] > 1:
        mean_square = np.exp(gammaln(3 * a) - gammaln(a)) * gammaincc(3 * a, t[0]) / gammaincc(a, t[0])
        tail = np.sqrt(mean_square)
    return np.append(tail, x), np.concatenate([[0], np.diff(x), [0]])


@jax.jit
def _traced_quantile_cells(nu: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``_quantile_cells`` on the device, in nu's dtype."""
    survival = _survival_of_cells()
    inner, outer = (jnp.asarray(p, nu.dtype) for p in (1 - survival, survival))
    x = distance(inner, outer, nu)
    zero = jnp.zeros_like(x[:1])
    return jnp.append(_tail(nu), x), jnp.concatenate([zero, jnp.diff(x), zero])


def _tail(nu: jax.Array) -> jax.Array:
    """The root mean square of the values beyond the quantile of probability 2^-31."""
    a = 1 / nu
    probability = jnp.asarray(2.0**-31, nu.dtype)
    x = distance(1 - probability, probability, nu)
    t = jnp.maximum(power(x, nu, jnp.asarray(1, nu.dtype)), 1)
    log_share = _special.log_gamma1p(3 * a) - _special.log_gamma1p(a) - math.log(3)
    mean_square = jnp.exp(log_share) * gammaincc(3 * a, t) / gammaincc(a, t)
    return jnp.where(t > 1, jnp.sqrt(mean_square), x)
