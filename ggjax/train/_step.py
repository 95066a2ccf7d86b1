"""The mathematics of BackSlash: the law of the weights, and the step that makes it cost fewer bits.

With theta' = theta + u the weights that the optimizer leads to, nu the shape of the law and lambda / n the
weight of the rate per parameter, BackSlash replaces the optimizer's update u by

    u - s,    s = (lambda / n) nu sign(theta') (|theta'| + eps)^(nu - 1)
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ggjax import gennorm
from ggjax._internal import trees
from ggjax._internal.power import power
from ggjax.gennorm import _density

LARGEST_FITTED_NU = 2.0
"""A fitted shape above this pulls as this one. A larger one would pull at large weights harder than in
proportion to their size. Where the gradients have little noise, that gathers weights at one size, to which a
larger shape still is fitted, until nothing is left of the training."""


def law(
    first: jax.Array, second: jax.Array, n: jax.Array, gg_shape: chex.Numeric | None
) -> tuple[jax.Array, jax.Array]:
    """The shape that BackSlash pulls with, and the entropy of the law in bits per parameter, from moments.

    Args:
      first, second, n: sums of |theta| and theta^2, and the number of weights; arrays of one shape.
      gg_shape: the shape to take instead of the fitted one, or None.

    Returns:
      (nu, bits). A fitted nu is at most LARGEST_FITTED_NU; the bits are those of the law before that limit.
      Weights that are all zero have nu = 2 and -inf bits.
    """
    some = (first > 0) & (second > 0)
    mean = first / jnp.maximum(n, 1)
    # The root only of what is above 0: elsewhere its derivative is infinite.
    deviation = jnp.where(some, jnp.sqrt(jnp.where(some, second / jnp.maximum(n, 1), 1)), 0)
    # The square of a quotient: a quotient of squares could be 0 / 0.
    ratio = jnp.where(some, jnp.square(deviation / jnp.where(some, mean, 1)), np.pi / 2)
    fitted = gennorm.shape_from_ratio(ratio)
    nu = fitted if gg_shape is None else jnp.broadcast_to(jnp.asarray(gg_shape, fitted.dtype), fitted.shape)
    bits = _density.entropy_unchecked(nu, deviation / gennorm.std(nu)) / float(np.log(2))
    return nu if gg_shape is not None else jnp.minimum(nu, LARGEST_FITTED_NU), bits


@functools.partial(
    jax.jit, static_argnames=("special_nu", "clamp", "move_idle")
)  # traced once for all leaves that are alike
def shrink(
    theta: jax.Array,
    u: jax.Array,
    nu: jax.Array,
    rate: jax.Array,
    eps: chex.Numeric,
    moves: jax.Array,
    *,
    special_nu: float | None = None,
    clamp: bool = False,
    move_idle: bool = False,
) -> jax.Array:
    """The update u of one leaf less the step of BackSlash; one elementwise expression, so that XLA fuses it.

    Args:
      theta, u: the weights and the optimizer's update, arrays of one shape.
      nu, rate, eps: scalars; rate is lambda / n.
      moves: a scalar bool; where it is False the update is returned as it is.
      special_nu: nu, if it is known to be 1 or 2, which need no power.
      clamp: stop at zero rather than cross it.
      move_idle: take the step where u is 0 too.

    Returns:
      An array of the shape and dtype of u.
    """
    dtype = trees.wide_dtype(jnp.result_type(theta), jnp.result_type(u))
    nu, rate, eps = (jnp.asarray(v, dtype) for v in (nu, rate, eps))
    wide_theta, wide_u = jnp.asarray(theta, dtype), jnp.asarray(u, dtype)
    new = wide_theta + wide_u
    size, sign = jnp.abs(new), jnp.sign(new)
    if special_nu == 1:
        slope = jnp.ones_like(size)
    elif special_nu == 2:
        slope = size + eps
    else:
        slope = power(size + eps, nu - 1)
    step = rate * nu * slope
    shrunk = wide_u - sign * step
    if clamp:
        lost = _rounding(shrunk, u.dtype) + _rounding(size, dtype)
        stops = (step > 0) & (size - step <= lost) & (size < jnp.inf)  # an infinite update is let through
        shrunk = jnp.where(stops, _stop(wide_theta, sign, theta.dtype, u.dtype), shrunk)
    return jnp.where(moves if move_idle else moves & (u != 0), shrunk.astype(u.dtype), u)


def _stop(theta: jax.Array, sign: jax.Array, weight_dtype: Any, update_dtype: Any) -> jax.Array:
    """The update that takes theta to zero; just short of it, on the side of the sign, if the updates' dtype may
    not have that number."""
    weight, update = jnp.finfo(weight_dtype), jnp.finfo(update_dtype)
    exact = update.nmant >= weight.nmant and update.nexp >= weight.nexp
    return -theta if exact else sign * _rounding(theta, update_dtype) - theta


def _rounding(x: jax.Array, dtype: Any) -> jax.Array:
    """More than x can change when it is rounded to dtype. Taken instead of the rounded number itself, since XLA
    may skip a cast there and back."""
    info = jnp.finfo(dtype)
    least = max(float(info.smallest_subnormal), float(jnp.finfo(x.dtype).tiny))
    return float(info.eps) * jnp.abs(x) + least
