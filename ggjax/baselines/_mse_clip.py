"""Where a uniform grid of few levels should end: the clip of the least squared error under the law."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees
from ggjax.baselines._reparameterization import check_whole


def mse_clip(bits: int, nu: float = 2.0) -> float:
    """The outermost of 2^bits even, symmetric levels with the least squared error, in standard deviations.

    The levels are the odd multiples of clip / (2^bits - 1) from -clip to clip, zero not among them. nu = 2 is
    the table of QuEST (arXiv 2502.05003): 1.49353, 2.05107, 2.51393 at 2, 3, 4 bits; other shapes are ours.
    (From 6 bits on the published clips are up to 1 % below those of the least error, which these are.)

    Args:
      bits: 1 to 8, a whole number.
      nu: the shape of the law, from 0.2 to 20.

    Returns:
      A Python float, computed in float64 on the host.

    Raises:
      ValueError: bits or nu out of range.

    >>> round(mse_clip(2), 3), round(mse_clip(2, nu=1.0), 3)
    (1.494, 1.631)
    """
    check_whole("bits", bits, 1, 8)
    trees.check_positive("nu", nu)
    if not 0.2 <= nu <= 20:
        raise ValueError(f"nu must lie between 0.2 and 20, got {nu!r}")
    return _best(int(bits), float(nu))


@functools.cache
def _best(bits: int, nu: float) -> float:
    from scipy.optimize import minimize_scalar  # scipy comes with jax

    grid = np.geomspace(0.05, 60, 120)
    best = int(np.argmin([mean_squared_error(c, bits, nu) for c in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found: Any = minimize_scalar(
        mean_squared_error, bounds=ends, args=(bits, nu), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


def mean_squared_error(clip: float, bits: int, nu: float) -> float:
    """E (x - nearest level)^2 of the law of variance 1, from its partial moments."""
    from scipy.special import gamma, gammainc

    alpha = np.sqrt(gamma(1 / nu) / gamma(3 / nu))
    step = 2 * clip / (2**bits - 1)
    bounds = np.append(np.arange(2 ** (bits - 1)) * step, np.inf)
    levels = (np.arange(2 ** (bits - 1)) + 0.5) * step
    t = (bounds / alpha) ** nu
    # The k-th moment of |x| up to each bound, and from it that of each cell.
    m0, m1, m2 = (
        np.diff(alpha**k * gamma((k + 1) / nu) / gamma(1 / nu) * gammainc((k + 1) / nu, t)) for k in range(3)
    )
    return float(np.sum(m2 - 2 * levels * m1 + levels**2 * m0))


@functools.cache
def _table(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """log nu and log clip, for shapes from 0.2 to 3.1."""
    nus = np.geomspace(0.2, 3.1, 40)
    return np.log(nus).astype(np.float32), np.log([_best(bits, v) for v in nus]).astype(np.float32)


def traced_clip(bits: int, nu: jax.Array) -> jax.Array:
    """``mse_clip`` of shapes that are not known before, float32, to 1e-3: interpolated in a table."""
    log_nus, log_clips = map(jnp.asarray, _table(bits))
    return jnp.exp(jnp.interp(jnp.log(nu), log_nus, log_clips))
