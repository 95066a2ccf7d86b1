"""QuEST's quantizer with the grid of a generalized Gaussian law: training with few levels."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import trees
from ggjax.baselines._compander import fitted
from ggjax.baselines._mse_clip import mse_clip, traced_clip
from ggjax.baselines._reparameterization import Frozen, Mask, Reparameterization, beside, check_whole, flatten


class QuestLatent(NamedTuple):
    """What is trained: the weights before rounding."""

    weights: Any  # tree like the parameters


def quest(
    bits: int,
    *,
    nu: float | None = 2.0,
    hadamard: int | None = None,
    axis: int = -2,
    mask: Mask = "kernels",
) -> Reparameterization:
    """Weights on 2^bits levels in training, with gradients only where rounding can be trusted.

    After QuEST (arXiv 2502.05003), for weights. Of the paper's:

    - Along an axis, with r the root mean square there: the levels are the odd multiples of half a step from -c
      to c = G r, with G the clip of the least squared error for a Gaussian (``mse_clip``).
    - The gradient passes where rounding changes a weight by at most half a step, that is everywhere but beyond
      c + step / 2. (This is a custom gradient, not that of clipping, which would end at c.)
    - With hadamard=128, weights are first multiplied by orthonormal Hadamard matrices of that size along the
      axis, and multiplied back after rounding.

    Ours: nu other than 2, the clip of a generalized Gaussian law; nu=None, which fits it to each leaf; where
    the size of the axis is no multiple of ``hadamard``, the largest power of two that divides both.

    Zero is no level, so this is for codes of fixed length: it suits no entropy code at few bits.

    Args:
      bits: 1 to 8, a whole number.
      nu: the shape of the law, from 0.2 to 20, or None.
      hadamard: the size of the matrices, a power of two; None for no transform.
      axis: the axis of r and of the transform; -2 is that of the inputs in Flax's kernels (the last axis of a
        leaf with fewer axes than that needs).
      mask: the leaves to round: "kernels", a tree of bools, a prefix of one, or a function to one.

    Returns:
      A ``Reparameterization`` with latents ``QuestLatent``. The rate is the number of bits. ``freeze`` gives
      levels -2^(bits - 1), ..., 2^(bits - 1) - 1 (level k is (k + 1/2) step, under the Hadamard transform if
      there is one), and counts 16 bits for each step.

    Raises:
      ValueError: bits, nu or hadamard out of range; by ``init``, no floating leaf, a mask that does not fit, or
        a NaN or infinite weight (where it is known).

    >>> method = quest(1)
    >>> latent = method.init({"w": jnp.array([[3.0], [-1.0]])})
    >>> [round(float(v), 4) for v in method.apply(latent)["w"].ravel() / jnp.sqrt(5)]
    [0.7979, -0.7979]
    """
    check_whole("bits", bits, 1, 8)
    clip = None if nu is None else mse_clip(bits, nu)
    if hadamard is not None:
        check_whole("hadamard", hadamard, 1, 2**14)
        if hadamard & (hadamard - 1):
            raise ValueError(f"hadamard must be a power of two, got {hadamard!r}")

    def init(params: Any) -> QuestLatent:
        flatten(params, mask)
        return QuestLatent(params)

    def quantized(x: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The rounded values and the levels, both under the transform and with the axis last, and the steps."""
        x = jnp.asarray(x)
        h = _rotate(_axis_last(x.astype(jnp.float32), axis), hadamard)
        if not h.size:
            return h, h.astype(jnp.int32), jnp.zeros((*h.shape[:-1], 1), jnp.float32)
        known = lax.stop_gradient(h)
        g = traced_clip(bits, fitted(known, None)[0]) if clip is None else clip
        step = 2 * g / (2**bits - 1) * jnp.sqrt(jnp.mean(known * known, -1, keepdims=True))
        safe = jnp.where(step > 0, step, 1)
        half = 2 ** (bits - 1)
        levels = jnp.clip(jnp.floor(known / safe), -half, half - 1)
        trusted = jnp.abs(known) <= half * step
        return _trust((levels + 0.5) * step, h, trusted), levels.astype(jnp.int32), step

    def apply(latent: QuestLatent, key: jax.Array | None = None) -> Any:
        del key
        flat = flatten(latent.weights, mask)
        values = [_axis_back(_rotate(quantized(x)[0], hadamard), x, axis) for x in flat.weights()]
        return flat.replace(v.astype(x.dtype) for v, x in zip(values, flat.weights(), strict=True))

    def rate(latent: QuestLatent, key: jax.Array | None = None) -> jax.Array:
        del latent, key
        return jnp.asarray(bits, jnp.float32)

    def freeze(latent: QuestLatent) -> Frozen:
        flat = flatten(latent.weights, mask)
        parts = [quantized(x) for x in flat.weights()]
        levels = [_axis_back(q, x, axis) for (_, q, _), x in zip(parts, flat.weights(), strict=True)]
        return Frozen(apply(latent), beside(flat, levels), 16 * trees.size([step for *_, step in parts]))

    return Reparameterization(init, apply, rate, freeze)


def _trust(value: jax.Array, h: jax.Array, trusted: jax.Array) -> jax.Array:
    """The value, with the gradient of h where it is trusted and none elsewhere."""
    return lax.stop_gradient(value) + jnp.where(trusted, h - lax.stop_gradient(h), 0)


def _axis_last(x: jax.Array, axis: int) -> jax.Array:
    return jnp.moveaxis(jnp.atleast_1d(x), _axis_of(x, axis), -1)


def _axis_back(y: jax.Array, x: Any, axis: int) -> jax.Array:
    return jnp.moveaxis(y, -1, _axis_of(x, axis)).reshape(x.shape)


def _axis_of(x: Any, axis: int) -> int:
    return axis if -x.ndim <= axis < x.ndim else -1


def _rotate(x: jax.Array, block: int | None) -> jax.Array:
    """Blocks of the last axis times the Hadamard matrix, which is its own inverse."""
    if block is None or not x.size:
        return x
    block = math.gcd(block, x.shape[-1])
    parts = x.reshape(*x.shape[:-1], -1, block)
    return jnp.einsum("...i,ij->...j", parts, jnp.asarray(_hadamard(block))).reshape(x.shape)


@functools.cache
def _hadamard(n: int) -> np.ndarray:
    from scipy.linalg import hadamard  # scipy comes with jax

    return (hadamard(n) / math.sqrt(n)).astype(np.float32)
