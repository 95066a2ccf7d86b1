"""EntQuant: 8-bit levels that are cheap to entropy-code, without data."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import mesh, trees
from ggjax.baselines._powerquant import golden
from ggjax.baselines._reparameterization import Frozen, Mask, beside, check_whole, flatten


def entquant(
    params: Any, rate_weight: ArrayLike, *, axis: int = -1, most: int = 127, mask: Mask = "kernels"
) -> Frozen:
    """Round each row to whole multiples of a scale of its own, chosen for small error and small levels.

    After EntQuant (arXiv 2601.22787). Of the paper's: for each matrix W, with q = round(w / s) between -most
    and most and one scale s for each row, minimize |s q - W|_1 / |W|_1 + rate_weight mean |q|; small |q| stands
    for small entropy, and the levels are entropy-coded. The paper uses L-BFGS; here, as the sum has a part for
    each row, each row is searched by itself: over a grid of scales, then by golden section. Since max |w| /
    most, the scale of plain rounding to nearest, is tried too, the objective never exceeds that of plain
    rounding. The paper's 8-bit floats are not here.

    Args:
      params: a tree of arrays.
      rate_weight: at least 0, a number; may be traced.
      axis: the axis that has a scale for each entry (a "row"); -1 is that of the outputs in Flax's kernels, 0
        in PyTorch's. Leaves of fewer axes have one row.
      most: the largest level, 1 to 2^20; 127 for 8 bits.
      mask: the leaves to round: "kernels", a tree of bools, a prefix of one, or a function to one.

    Returns:
      A ``Frozen``: weights, levels, and 16 bits for each scale. All-zero rows stay zero.

    Raises:
      ValueError: an argument out of range, no floating leaf, a mask that does not fit, or a NaN or infinite
        weight (where it is known).

    >>> w = jnp.linspace(-1, 1, 9)[:, None]
    >>> [int(abs(entquant({"w": w}, r).levels["w"]).max()) for r in (0.01, 10.0)]
    [4, 0]
    """
    trees.check_not_negative("rate_weight", rate_weight)
    if np.ndim(rate_weight):
        raise ValueError(f"rate_weight must be one number, got an array of shape {np.shape(rate_weight)}")
    check_whole("most", most, 1, 2**20)
    flat = flatten(params, mask)
    rate_weight = jnp.asarray(rate_weight, jnp.float32)
    pairs = [_round(jnp.asarray(x), rate_weight, int(axis), int(most)) for x in flat.weights()]
    weights, levels = ([p[i] for p in pairs] for i in range(2))
    scales_in_all = sum(_rows_of(x, axis) for x in flat.weights())
    return Frozen(flat.replace(weights), beside(flat, levels), 16 * scales_in_all)


def _rows_of(x: Any, axis: int) -> int:
    """How many rows have a scale: those along the axis, or one if there is no such axis."""
    return x.shape[axis] if _has(x, axis) else 1


def _has(x: Any, axis: int) -> bool:
    return -x.ndim <= axis < x.ndim


_TRIED, _GOLDEN_STEPS = 320, 8


@functools.partial(jax.jit, static_argnums=(2, 3))
def _round(x: jax.Array, rate_weight: jax.Array, axis: int, most: int) -> tuple[jax.Array, jax.Array]:
    """The rounded weights and their levels, int32, both like x."""
    wide = x.astype(jnp.float32)
    scales = mesh.reduce(functools.partial(_scales, axis=axis, most=most), wide, rate_weight)
    shape = [n if _has(x, axis) and i == axis % x.ndim else 1 for i, n in enumerate(x.shape)]
    scales = scales.reshape(shape)
    levels = jnp.clip(jnp.round(wide / scales), -most, most)
    return (levels * scales).astype(x.dtype), levels.astype(jnp.int32)


def _scales(x: jax.Array, rate_weight: jax.Array, *, axis: int, most: int) -> jax.Array:
    """The scale of every row, (m,)."""
    rows = jnp.moveaxis(x, axis, 0) if _has(x, axis) else x.reshape(1, -1)
    w = rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
    top = jnp.max(jnp.abs(w), 1, keepdims=True, initial=0)
    top = jnp.where(top > 0, top, 1)
    whole = jnp.sum(jnp.abs(w))
    whole, size = jnp.where(whole > 0, whole, 1), float(max(w.size, 1))

    def objective(scale: jax.Array) -> jax.Array:
        """Each row's part of the sum, (m, 1), at these scales (m, 1)."""
        q = jnp.clip(jnp.round(w / scale), -most, most)
        error = jnp.sum(jnp.abs(scale * q - w), 1, keepdims=True) / whole
        return error + rate_weight * jnp.sum(jnp.abs(q), 1, keepdims=True) / size

    # From scales at which the largest weights are cut down to an eighth, to one at which all levels are 0.
    grid = jnp.asarray(np.geomspace(1 / (8 * most), 2.1, _TRIED).astype(np.float32))
    best = top * grid[jnp.argmin(lax.map(lambda g: objective(top * g), grid), 0)]
    refined = golden(objective, best * grid[0] / grid[1], best * grid[1] / grid[0], _GOLDEN_STEPS)
    tried = jnp.stack([top / most, best, refined])
    return jnp.take_along_axis(tried, jnp.argmin(lax.map(objective, tried), 0, keepdims=True), 0)[0, :, 0]
