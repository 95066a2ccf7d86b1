"""GG init: initializers that draw from a generalized Gaussian (arXiv 2506.00486, section on GG init)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike

from ggjax import gennorm
from ggjax._internal import trees
from ggjax.init import _fans
from ggjax.init._fans import Axes, Mode

_HAIKU = "w_init=lambda shape, dtype: gg_init()(hk.next_rng_key(), shape, dtype)"


def gg_init(
    shape: ArrayLike = 2.0,
    xi: ArrayLike = 2.0,
    mode: Mode = "fan_out",
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DTypeLike | None = None,
) -> Initializer:
    """An initializer that draws weights from a generalized Gaussian of variance xi / fan.

    ``shape=2, xi=2, mode="fan_in"`` is He initialization, ``shape=2, xi=1, mode="fan_avg"`` Glorot's. The fan
    counts the receptive field of a convolution, as in ``jax.nn.initializers.variance_scaling``.

    Args:
      shape: nu of the law, a number of at least 0.1: 2 is Gaussian, 1 is Laplace, and smaller ones have heavier
        tails. It may be traced; then sampling is slower (see ``gennorm.sample``).
      xi: the gain, a positive number, which may be traced: 1 for linear and sigmoid layers, 2 for ReLU,
        2 / (1 + k^2) for leaky ReLU of slope k.
      mode: the fan that divides xi: "fan_out" (the published code's choice), "fan_in", "fan_avg" (their mean)
        or "fan_geo_avg" (their geometric mean).
      in_axis, out_axis, batch_axis: the axes of the inputs, those of the outputs, and those of neither (stacked
        layers); every other axis belongs to the receptive field. Arrays of fewer than two axes need in_axis and
        out_axis: ``in_axis=(), out_axis=0`` for a vector of outputs.
      dtype: the dtype of the weights when the initializer is called without one; None is JAX's default.

    Returns:
      ``init(key, shape, dtype=None, out_sharding=None) -> array``, as Flax and JAX expect. It samples in
      float32 (float64 for float64 weights) and casts last, and gives the same values whether or not they are
      sharded. It raises ValueError for axes that the array shape does not have, and TypeError for a dtype that
      is not floating, or that has no sign, no zero or fewer than eight bits.

    Raises:
      ValueError: an unknown mode, xi not positive, shape below 0.1.
      TypeError: shape or xi is not a number, or gg_init is called like the initializer itself, with a key.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, ggjax
      >>> layer = nn.Dense(64, kernel_init=ggjax.gg_init(shape=1.0, xi=2.0))
      >>> params = layer.init(jax.random.key(0), jnp.ones((1, 32)))
      >>> params["params"]["kernel"].shape
      (32, 64)

      Haiku's initializers take no key, so it needs an adapter:
      ``w_init=lambda shape, dtype: gg_init()(hk.next_rng_key(), shape, dtype)``.

    References:
      arXiv 2506.00486, GG initialization.
    """
    if _is_key_or_array_shape(shape):
        raise TypeError(
            f"gg_init makes an initializer and was called like one (its first argument is {shape!r}): did you "
            f"forget the parentheses, as in kernel_init=gg_init()? For Haiku, write {_HAIKU}"
        )
    if mode not in _fans.MODES:
        raise ValueError(f"mode must be one of {', '.join(_fans.MODES)}, got {mode!r}")
    nu, gain = _number("shape", shape), _number("xi", xi)
    if isinstance(nu, float) and nu < gennorm.TABLE_START:
        raise ValueError(f"shape must be at least {gennorm.TABLE_START}, got {shape!r}")

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = dtype,
        out_sharding: Any = None,
    ) -> jax.Array:
        if isinstance(key, (tuple, list)):
            raise TypeError(
                f"the initializer of gg_init takes (key, shape, dtype), and its first argument is {key!r}. "
                f"For Haiku, write {_HAIKU}"
            )
        shape = tuple(shape)
        dtype = _weight_dtype(dtype)
        law = _in_dtype_of_draw(nu, dtype)
        scale: Any = 1.0
        if 0 not in shape:  # else there is nothing to draw, and no fan to divide by
            fan = _fans.fan(shape, mode, in_axis, out_axis, batch_axis)
            scale = _scale(law, _in_dtype_of_draw(gain, dtype), fan)
        return gennorm.sample(key, law, shape, dtype, scale=scale, out_sharding=out_sharding)

    return init


def _is_key_or_array_shape(x: Any) -> bool:
    """Whether an argument that should be a number is a PRNG key (of either kind) or the shape of an array."""
    if isinstance(x, (tuple, list)):
        return True
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == np.uint32 and jnp.ndim(x) > 0)


def _number(name: str, value: Any) -> Any:
    """The number as a float, or as it is when it is traced."""
    trees.check_positive(name, value)
    if jnp.ndim(value) > 0:
        raise TypeError(f"{name} must be one number, got an array of shape {jnp.shape(value)}")
    if not trees.is_concrete(value):
        return value
    info = jnp.finfo(jnp.float32)
    if not float(info.tiny) <= float(value) <= float(info.max):
        raise ValueError(f"{name} must be in the range of float32, got {value!r}")
    return float(value)


def _weight_dtype(dtype: DTypeLike | None) -> Any:
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if not trees.is_weight_dtype(dtype):
        raise TypeError(
            f"gg_init draws weights of a floating dtype with a sign, a zero and at least 8 bits, got {dtype}"
        )
    return dtype


def _in_dtype_of_draw(number: Any, dtype: Any) -> Any:
    """A traced number in the dtype that weights are drawn in, whatever it came as (float64 under x64, say)."""
    return number if isinstance(number, float) else jnp.asarray(number, trees.wide_dtype(dtype))


def _scale(nu: Any, xi: Any, fan: float) -> Any:
    """alpha of the law whose variance is xi / fan."""
    if isinstance(nu, float):
        std = math.exp(0.5 * (math.lgamma(3 / nu) - math.lgamma(1 / nu)))
    else:
        std = gennorm.std(nu).astype(nu.dtype)
    return (math.sqrt(xi / fan) if isinstance(xi, float) else jnp.sqrt(xi / fan)) / std
