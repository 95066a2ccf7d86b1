"""PowerQuant: uniform levels of a power of the weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import mesh, trees
from ggjax.baselines._reparameterization import Frozen, Mask, beside, check_whole, flatten


def power_quant(params: Any, bits: int, *, exponent: float | None = None, mask: Mask = "kernels") -> Frozen:
    """Round a power of the weights to 2^bits - 1 even levels, 0 among them.

    After PowerQuant (ICLR 2023, OpenReview s1KljJpAukm). Of the paper's: with m = max |w| and
    L = 2^(bits - 1) - 1, the level is q = round(L sign(w) (|w| / m)^a), the weight sign(q) m (|q| / L)^(1/a);
    the exponent a is the one with the least squared error. Ours: one a for each leaf; it is searched from 0.1
    to 2 on a grid, then by golden section, and a = 1 (plain rounding) is tried too, so that the error never
    exceeds that of plain rounding.

    For codes of fixed length only: under an entropy code uniform levels of the weights themselves are better.

    Args:
      params: a tree of arrays.
      bits: 2 to 16, a whole number.
      exponent: a, a positive number; None to search it.
      mask: the leaves to round: "kernels", a tree of bools, a prefix of one, or a function to one.

    Returns:
      A ``Frozen``: weights, levels from -L to L, and 72 bits for each leaf (m, a and the number of bits).

    Raises:
      ValueError: bits or exponent out of range, no floating leaf, a mask that does not fit, or a NaN or
        infinite weight (where it is known).

    >>> rounded = power_quant({"w": jnp.array([[0.0, 0.25, -1.0]])}, 2, exponent=0.5)
    >>> rounded.levels["w"].tolist(), rounded.weights["w"].tolist()
    ([[0, 0, -1]], [[0.0, 0.0, -1.0]])
    """
    check_whole("bits", bits, 2, 16)
    if exponent is not None:
        trees.check_positive("exponent", exponent)
        if np.ndim(exponent):
            raise ValueError(f"exponent must be one number, got an array of shape {np.shape(exponent)}")
    flat = flatten(params, mask)
    rounded = [_round(jnp.asarray(x), exponent, most=2 ** (int(bits) - 1) - 1) for x in flat.weights()]
    weights, levels = ([r[i] for r in rounded] for i in range(2))
    return Frozen(flat.replace(weights), beside(flat, levels), 72 * len(rounded))


def power_exponent(x: ArrayLike, bits: int) -> jax.Array:
    """The exponent a that ``power_quant`` finds for one array: a float32 scalar, 1 for all-zero and empty ones.

    >>> normal = jax.random.normal(jax.random.key(0), (1000,))
    >>> bool(power_exponent(normal, 4) < 0.9)  # finer levels near 0
    True
    """
    check_whole("bits", bits, 2, 16)
    return _searched(trees.wide(x).astype(jnp.float32), 2 ** (int(bits) - 1) - 1)


@functools.partial(jax.jit, static_argnames="most")
def _round(x: jax.Array, exponent: ArrayLike | None, *, most: int) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    a = _searched(wide, most) if exponent is None else jnp.asarray(exponent).astype(jnp.float32)
    levels = to_levels(wide, a, most)
    return from_levels(levels, a, most, jnp.max(jnp.abs(wide), initial=0)).astype(x.dtype), levels


def to_levels(x: jax.Array, a: ArrayLike, most: int) -> jax.Array:
    """round(L sign(x) (|x| / max |x|)^a), int32; 0 where all weights are."""
    top = jnp.max(jnp.abs(x), initial=0)
    part = jnp.abs(x) / jnp.where(top > 0, top, 1)
    return (jnp.sign(x) * jnp.round(most * _power(part, a))).astype(jnp.int32)


def from_levels(levels: jax.Array, a: ArrayLike, most: int, top: jax.Array) -> jax.Array:
    """sign(q) top (|q| / L)^(1/a), float32."""
    q = levels.astype(jnp.float32)
    return jnp.sign(q) * top * _power(jnp.abs(q) / most, 1 / jnp.asarray(a))


def _power(x: jax.Array, a: ArrayLike) -> jax.Array:
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** a, 0)


_GRID = np.geomspace(0.1, 2.0, 40).astype(np.float32)
_GOLDEN_STEPS = 16


def _searched(x: jax.Array, most: int) -> jax.Array:
    return mesh.reduce(functools.partial(_search, most=most), x)


def _search(x: jax.Array, *, most: int) -> jax.Array:
    top = jnp.max(jnp.abs(x), initial=0)

    def error(a: jax.Array) -> jax.Array:
        part = (from_levels(to_levels(x, a, most), a, most, top) - x) / jnp.where(top > 0, top, 1)
        return jnp.sum(part * part)

    best = jnp.argmin(lax.map(error, jnp.asarray(_GRID)))
    grid = jnp.asarray(_GRID)
    ends = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, len(_GRID) - 1)]
    found = jnp.stack([jnp.ones((), jnp.float32), grid[best], golden(error, *ends, _GOLDEN_STEPS)])
    return found[jnp.argmin(lax.map(error, found))]


def golden(f: Any, low: jax.Array, high: jax.Array, steps: int) -> jax.Array:
    """Where f is least between two ends, by golden section: elementwise, for arrays of ends and values."""
    ratio = (5**0.5 - 1) / 2

    def narrow(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        lower = f(left) < f(right)
        return jnp.where(lower, low, left), jnp.where(lower, right, high)

    low, high = lax.fori_loop(0, steps, narrow, (low, high))
    return (low + high) / 2
