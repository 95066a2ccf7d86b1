"""The exact compander of the generalized Gaussian law, for codes of fixed length."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ggjax import gennorm
from ggjax._internal import mesh, trees
from ggjax.baselines._reparameterization import Frozen, Mask, beside, check_whole, flatten
from ggjax.gennorm._fit import fit_leaves


def gg_compand(params: Any, bits: int, *, nu: float | None = None, mask: Mask = "kernels") -> Frozen:
    """Round weights to the 2^bits values that lose least under a fitted generalized Gaussian law.

    The density of the values is in proportion to the cube root of the weights' density (Bennett, 1948; Panter
    and Dite, 1951), which is best for many levels. Here this root is the density of the same law with the scale
    alpha 3^(1/nu), and F is its distribution function: cell k holds the weights with F from k / 2^bits to
    (k + 1) / 2^bits, and its value is where F is (k + 1/2) / 2^bits. All of this is ours but the cube root; it
    stands beside ``power_quant``, whose power is an approximation to F.

    For codes of fixed length only: under an entropy code uniform levels of the weights themselves are better.

    Args:
      params: a tree of arrays.
      bits: 1 to 16, a whole number.
      nu: the shape of the law, from 0.1 to 100; None to fit it to each leaf. The scale is fitted.
      mask: the leaves to round: "kernels", a tree of bools, a prefix of one, or a function to one.

    Returns:
      A ``Frozen``: weights, levels from 0 to 2^bits - 1, and 72 bits for each leaf (nu, alpha and the number of
      bits). An all-zero leaf stays zero.

    Raises:
      ValueError: bits or nu out of range, no floating leaf, a mask that does not fit, or a NaN or infinite
        weight (where it is known).

    >>> rounded = gg_compand({"w": jnp.array([[1.0, -1.0, 0.1]])}, 1)
    >>> rounded.levels["w"].tolist()
    [[1, 0, 1]]
    """
    check_whole("bits", bits, 1, 16)
    check_shape(nu)
    flat = flatten(params, mask)
    rounded = [_round(jnp.asarray(x), nu, bits=int(bits)) for x in flat.weights()]
    weights, levels = ([r[i] for r in rounded] for i in range(2))
    return Frozen(flat.replace(weights), beside(flat, levels), 72 * len(rounded))


def check_shape(nu: Any) -> None:
    """Raise ValueError unless nu is None or one number from 0.1 to 100 (traced numbers pass)."""
    if nu is None:
        return
    trees.check_positive("nu", nu)
    if np.ndim(nu):
        raise ValueError(f"nu must be one number, got an array of shape {np.shape(nu)}")
    if trees.is_concrete(nu) and not 0.1 <= nu <= 100:
        raise ValueError(f"nu must lie between 0.1 and 100, got {nu!r}")


def fitted(x: jax.Array, nu: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """nu and the scale of one leaf (float32), the scale by the second moment if nu is given."""
    law = fit_leaves([x])
    if nu is None:
        return law.nu, law.scale
    nu = jnp.asarray(nu).astype(jnp.float32)
    return nu, law.scale * gennorm.std(law.nu) / gennorm.std(nu)


@functools.partial(jax.jit, static_argnames="bits")
def _cells(nu: jax.Array, *, bits: int) -> tuple[jax.Array, jax.Array]:
    """The bounds between the cells, among which a search is exact in the tails too, and their values."""
    points = gennorm.ppf(np.arange(1, 2 ** (bits + 1), dtype=np.float32) / 2 ** (bits + 1), nu)
    return points[1::2], points[::2]


@functools.partial(jax.jit, static_argnames="bits")
def _round(x: jax.Array, nu: ArrayLike | None, *, bits: int) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    nu, scale = fitted(wide, nu)
    some = scale > 0
    unit = jnp.where(some, scale, 1) * 3 ** (1 / nu)
    bounds, values = _cells(nu, bits=bits)
    levels = mesh.elementwise(_search, wide / unit, bounds)
    decoded = mesh.elementwise(lambda q, v: v[q], levels, values)
    return jnp.where(some, decoded * unit, 0).astype(x.dtype), levels


def _search(x: jax.Array, bounds: jax.Array) -> jax.Array:
    return jnp.searchsorted(bounds, x, side="right").astype(jnp.int32)
