"""The ratio of moments that names a shape, and its table."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ggjax._internal import trees
from ggjax.gennorm import _arguments, _special

TABLE_START, TABLE_STEP, TABLE_SIZE = 0.10, 0.01, 291
"""The tabulated shapes: 0.10, 0.11, ..., 3.00."""


Method = Literal["table", "interp"]


def rho(nu: ArrayLike) -> jax.Array:
    """The ratio of moments E[x^2] / E[|x|]^2 of the law of shape nu about its mean.

    rho(nu) = Gamma(1/nu) Gamma(3/nu) / Gamma(2/nu)^2, decreasing from infinity to 4/3: 2 at nu = 1, pi/2 at
    nu = 2. It is almost flat above nu = 2.5, so that a shape read from a ratio is ill-conditioned there.

    Args:
      nu: positive shapes, any shape of array.

    Returns:
      An array like nu, float32 (relative error about 2e-5 at nu = 0.1, 2e-6 from 0.3 on) or, when nu is,
      float64.

    Raises:
      ValueError: nu is not positive (when its value is known).

    >>> round(float(rho(1.0)), 4)
    2.0
    """
    trees.check_positive("nu", nu)
    return _rho(*_arguments.floats(nu))


@jax.jit
def _rho(nu: jax.Array) -> jax.Array:
    a = 1 / nu
    # Gamma(1 + x) = x Gamma(x): no large numbers cancel, however large nu is.
    parts = _special.log_gamma1p(a) + _special.log_gamma1p(3 * a) - 2 * _special.log_gamma1p(2 * a)
    return 4 / 3 * jnp.exp(parts)


@functools.cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """The published table of shapes: (nu, rho), two float64 arrays of 291 entries, nu = 0.10 to 3.00.

    >>> nu, ratio = table()
    >>> len(nu), round(float(ratio[0]), 3), round(float(ratio[-1]), 5)
    (291, 216.827, 1.461)
    """
    from scipy.special import gammaln as gammaln64  # scipy comes with jax

    nu = (np.arange(TABLE_SIZE) + round(TABLE_START / TABLE_STEP)) * TABLE_STEP
    nu = np.round(nu, 2)
    a = 1 / nu
    ratio = np.exp(gammaln64(a) + gammaln64(3 * a) - 2 * gammaln64(2 * a))
    nu.flags.writeable = ratio.flags.writeable = False
    return nu, ratio


def shape_from_ratio(ratio: ArrayLike, method: Method = "table") -> jax.Array:
    """The shape whose ratio of moments ``rho`` is nearest to the given one.

    Args:
      ratio: E[x^2] / E[|x|]^2, any shape of array. The ratios of the table run from 216.8 (nu = 0.10) down to
        1.461 (nu = 3.00); a ratio beyond either end gets that end, a NaN stays NaN.
      method: "table" gives the entry with the nearest ratio, a multiple of 0.01 (the papers' rule);
        "interp" interpolates linearly between entries.

    Returns:
      An array like ratio: the shape nu, float32 or, when ratio is, float64.

    Raises:
      ValueError: an unknown method.

    >>> round(float(shape_from_ratio(2.0)), 2)
    1.0
    """
    if method not in ("table", "interp"):
        raise ValueError(f'method must be "table" or "interp", got {method!r}')
    return _shape_from_ratio(*_arguments.floats(ratio), method)


@functools.partial(jax.jit, static_argnums=1)
def _shape_from_ratio(ratio: jax.Array, method: Method) -> jax.Array:
    nus, ratios = table()
    row = (1,) * ratio.ndim + (-1,)
    if method == "interp":
        larger = ratio[..., None] < ratios.astype(ratio.dtype).reshape(row)
        entry = jnp.clip(jnp.sum(larger, -1, dtype=np.int32), 1, TABLE_SIZE - 1) - 1
    else:
        entry = jnp.argmin(jnp.abs(ratio[..., None] - ratios.astype(ratio.dtype).reshape(row)), -1)
    # Read the entry by a sum over the table: exact, and a lookup would refuse a sharded ratio.
    hit = entry[..., None] == np.arange(TABLE_SIZE).reshape(row)

    def read(column: np.ndarray) -> jax.Array:
        return jnp.sum(jnp.where(hit, column.astype(ratio.dtype).reshape(row), 0), -1)

    nu = read(nus)
    if method == "interp":
        slope = np.append(np.diff(nus) / np.diff(ratios), 0)
        low, high = ratios[-1], ratios[0]
        inside = jnp.clip(ratio, jnp.asarray(low, ratio.dtype), jnp.asarray(high, ratio.dtype))
        nu += (inside - read(ratios)) * read(slope)
    return jnp.where(jnp.isnan(ratio), ratio, nu)
