"""The mathematics of BackSlash: the law of the weights, and the step that makes it cost fewer bits.

With theta' = theta + u the weights that the optimizer leads to, nu the shape of the law and lambda / n the
weight of the rate per parameter, BackSlash replaces the optimizer's update u by

    u - s,    s = (lambda / n) nu sign(theta') (|theta'| + eps)^(nu - 1)
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax import gennorm
from ggjax._internal import trees
from ggjax._internal.power import power
from ggjax.gennorm import _density


def law(
    first: jax.Array, second: jax.Array, n: jax.Array, gg_shape: chex.Numeric | None
) -> tuple[jax.Array, jax.Array]:
    """The shape of the law with given moments, and its entropy in bits per parameter.

    Args:
      first, second, n: sums of |theta| and theta^2, and the number of weights; arrays of one shape.
      gg_shape: the shape to take instead of the fitted one, or None.

    Returns:
      (nu, bits). Weights that are all zero have nu = 2 and -inf bits.
    """
    some = first > 0
    safe = jnp.where(some, first, 1)
    ratio = jnp.where(some, (second / safe) * (n / safe), np.pi / 2)
    fitted = gennorm.shape_from_ratio(ratio)
    nu = fitted if gg_shape is None else jnp.broadcast_to(jnp.asarray(gg_shape, fitted.dtype), fitted.shape)
    variance = second / jnp.maximum(n, 1)
    bits = _density.entropy_unchecked(nu, jnp.sqrt(variance) / gennorm.std(nu)) / float(np.log(2))
    return nu, bits


@functools.partial(
    jax.jit, static_argnames=("power_of", "clamp", "move_idle")
)  # traced once for all leaves that are alike
def shrink(
    theta: jax.Array,
    u: jax.Array,
    nu: jax.Array,
    rate: jax.Array,
    eps: chex.Numeric,
    sound: jax.Array,
    *,
    power_of: float | None = None,
    clamp: bool = False,
    move_idle: bool = False,
) -> jax.Array:
    """The update u of one leaf less the step of BackSlash; one elementwise expression, so that XLA fuses it.

    Args:
      theta, u: the weights and the optimizer's update, arrays of one shape.
      nu, rate, eps: scalars; rate is lambda / n.
      sound: a scalar bool; where it is False the update is returned as it is.
      power_of: nu where it is known beforehand: 1 and 2 need no power.
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
    if power_of == 1:
        slope = jnp.ones_like(size)
    elif power_of == 2:
        slope = size + eps
    else:
        slope = power(size + eps, nu - 1)
    step = rate * nu * slope
    shrunk = _rounded(wide_u - sign * step, u.dtype)
    if clamp:
        crosses = sign * (wide_theta + shrunk) < 0  # by rounding, even where step < size
        shrunk = jnp.where((step >= size) | crosses, _stop(wide_theta, sign, u.dtype), shrunk)
    return jnp.where(sound if move_idle else sound & (u != 0), shrunk.astype(u.dtype), u)


def _stop(theta: jax.Array, sign: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The update that takes theta to zero, or, where dtype has no such number, just short of it.

    theta plus the update then is zero, or has the given sign.
    """
    stop = _rounded(-theta, dtype)
    if jnp.finfo(dtype).nmant >= jnp.finfo(theta.dtype).nmant:
        return stop
    beyond = sign * (theta + stop) < 0
    short = lax.nextafter(stop.astype(dtype), jnp.where(sign > 0, jnp.inf, -jnp.inf).astype(dtype))
    return jnp.where(beyond, short.astype(theta.dtype), stop)


def _rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The nearest numbers of dtype, in the dtype of x: a rounding that XLA does not skip, as it may a cast
    there and back."""
    info = jnp.finfo(dtype)
    if info.nmant >= jnp.finfo(x.dtype).nmant:
        return x
    return lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant)
