"""Entropy penalized reparameterization: steps and prior are trained with the weights."""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import trees
from ggjax._internal.gradients import straight_through
from ggjax.baselines._priors import gg_bits, logistic_bits
from ggjax.baselines._reparameterization import (
    Frozen,
    Mask,
    Reparameterization,
    beside,
    flatten,
    split,
    values_of,
)
from ggjax.gennorm._fit import fit_leaves

Prior = Literal["logistic", "gg", "log_penalty"]


class EPRLatent(NamedTuple):
    """What is trained: latents in the units of the weights, and per leaf a step and a prior."""

    weights: Any  # tree like the parameters (kernels under the DFT, where that is asked for)
    log_steps: Any  # the same tree: float32 (), or (h, w, 1, 1) under the DFT; None for leaves not rounded
    priors: Any  # the same tree: float32 (k,): (log scale,) or (log nu, log scale), scale in steps


def epr(
    *,
    prior: Prior = "logistic",
    step: float = math.exp(-4),
    scale: float | None = None,
    dft: bool = False,
    alpha: float = 0.01,
    mask: Mask = "kernels",
) -> Reparameterization:
    """Weights that are multiples of a trained step, and cheap under a trained prior.

    After Oktay, Ballé, Singh and Shrivastava, Scalable Model Compression by Entropy Penalized
    Reparameterization, ICLR 2020 (arXiv 1906.06624), in the form of TensorFlow Model Optimization. Of theirs:

    - The task sees step * round(w / step), with the step exp(log_step) trained, one for each leaf; the
      gradient of w passes through the rounding.
    - The rate sees w / step plus noise from -1/2 to 1/2: -log2 of the mass that the prior has in the bin of
      width 1 around it, the mean over all rounded weights. Add ``weight * rate(latent, key)`` to the loss.
    - The prior is a logistic law about 0 with a trained scale for each leaf, at first exp(2.5) steps; the
      first step is exp(-4).
    - prior="log_penalty" is FastEPR (arXiv 2201.02664): no prior, the mean of log((|w / step| + alpha) / alpha)
      with alpha = 0.01, without noise, for codes such as Elias gamma. It is in no unit.
    - dft=True: convolution kernels (of four axes, the first two being space, as in Flax) have their latents
      under a real Fourier transform of these axes, with a trained step for each frequency.

    Ours: prior="gg", a generalized Gaussian law with trained shape and scale, at first the fit to the leaf; the
    Fourier coefficients in one array of the kernel's own shape, by the orthonormal basis of cosines and sines
    of each axis; without a key, the rate of the rounded latents, which is what a coder with this prior takes.
    Not here: the paper's learned non-parametric prior and its trained affine decoder.

    Args:
      prior: "logistic", "gg" or "log_penalty".
      step: the first step of every leaf, in the units of the weights.
      scale: the first scale of the prior, in steps; None for exp(2.5) of the logistic law, and for the fit of
        the generalized Gaussian.
      dft: whether kernels of four axes are transformed.
      alpha: of the log penalty, positive.
      mask: the leaves to round: "kernels", a tree of bools, a prefix of one, or a function from params to one.

    Returns:
      A ``Reparameterization`` with latents ``EPRLatent``. The levels of ``freeze`` are those of the latents; a
      step is counted as 32 bits in its ``side_bits``, and so is each number of the prior.

    Raises:
      ValueError: an unknown prior, a step, scale or alpha that is not positive; by ``init``, no floating leaf,
        a mask that does not fit, or a NaN or infinite weight (where it is known).

    >>> method = epr(step=0.25)
    >>> latent = method.init({"w": jnp.array([[0.3, -0.6]])})
    >>> method.apply(latent)["w"].tolist(), method.freeze(latent).levels["w"].tolist()
    ([[0.25, -0.5]], [[1, -2]])
    """
    if prior not in get_args(Prior):
        raise ValueError(f'prior must be "logistic", "gg" or "log_penalty", got {prior!r}')
    for name, value in (("step", step), ("alpha", alpha), *([("scale", scale)] if scale is not None else [])):
        trees.check_positive(name, value)
        if np.ndim(value):
            raise ValueError(f"{name} must be one number, got an array of shape {np.shape(value)}")

    def init(params: Any) -> EPRLatent:
        flat = flatten(params, mask)
        latents = [_transformed(x) if _is_transformed(x, dft) else x for x in flat.weights()]
        log_steps = [jnp.full(_steps_shape(x, dft), math.log(step), jnp.float32) for x in latents]
        priors = [_first_prior(prior, x, step, scale) for x in latents]
        return EPRLatent(flat.replace(latents), beside(flat, log_steps), beside(flat, priors))

    def leaves_of(latent: EPRLatent) -> tuple[trees.Flat, list[tuple[jax.Array, jax.Array]]]:
        """The leaves with their steps, float32 both."""
        flat = flatten(latent.weights, mask)
        pairs = zip(flat.weights(), values_of(flat, latent.log_steps), strict=True)
        return flat, [(jnp.asarray(x).astype(jnp.float32), jnp.exp(s)) for x, s in pairs]

    def rounded(flat: trees.Flat, leaves: list[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
        values = [_rounded(x, s) for x, s in leaves]
        back = [_back(x) if _is_transformed(x, dft) else x for x in values]
        return [x.astype(w.dtype) for x, w in zip(back, flat.weights(), strict=True)]

    def apply(latent: EPRLatent, key: jax.Array | None = None) -> Any:
        del key
        flat, leaves = leaves_of(latent)
        return flat.replace(rounded(flat, leaves))

    def rate(latent: EPRLatent, key: jax.Array | None = None) -> jax.Array:
        flat, leaves = leaves_of(latent)
        total = jnp.zeros((), jnp.float32)
        trained = values_of(flat, latent.priors)
        for (x, s), p, k in zip(leaves, trained, split(key, flat), strict=True):
            x = x / s
            if prior == "log_penalty":
                total = total + jnp.sum(jnp.log1p(jnp.sign(x) * x / alpha))
                continue
            if k is None:
                x = straight_through(jnp.round(x), x)
            else:
                x = x + jax.random.uniform(k, x.shape, jnp.float32) - 0.5
            bits = logistic_bits(x, jnp.exp(p[0])) if prior == "logistic" else gg_bits(x, *jnp.exp(p))
            total = total + jnp.sum(bits)
        return total / float(max(trees.size([x for x, _ in leaves]), 1))

    def freeze(latent: EPRLatent) -> Frozen:
        flat, leaves = leaves_of(latent)
        levels = [jnp.round(x / s).astype(jnp.int32) for x, s in leaves]
        numbers = sum(s.size for _, s in leaves) + len(leaves) * _numbers(prior)
        weights = flat.replace(lax.stop_gradient(rounded(flat, leaves)))
        return Frozen(weights, beside(flat, levels), 32 * numbers)

    return Reparameterization(init, apply, rate, freeze)


def _rounded(x: jax.Array, step: jax.Array) -> jax.Array:
    """The nearest multiples of the step; round(x / step) has the gradient of x / step."""
    return step * straight_through(jnp.round(x / step), x / step)


def _first_prior(prior: Prior, x: Any, step: float, scale: float | None) -> jax.Array:
    if prior == "log_penalty":
        return jnp.zeros(0, jnp.float32)
    if prior == "logistic":
        return jnp.full(1, 2.5 if scale is None else math.log(scale), jnp.float32)
    law = fit_leaves([jnp.asarray(x).astype(jnp.float32)])
    fitted = jnp.where(law.scale > 0, law.scale / step, 1) if scale is None else jnp.float32(scale)
    return jnp.log(jnp.stack([law.nu, fitted]).astype(jnp.float32))


def _numbers(prior: Prior) -> int:
    """How many numbers a prior has."""
    return {"logistic": 1, "gg": 2, "log_penalty": 0}[prior]


def _is_transformed(x: Any, dft: bool) -> bool:
    return dft and x.ndim == 4


def _steps_shape(x: Any, dft: bool) -> tuple[int, ...]:
    return (*x.shape[:2], 1, 1) if _is_transformed(x, dft) else ()


def _transformed(x: Any) -> jax.Array:
    """The kernel (h, w, in, out) in the real Fourier basis of its first two axes."""
    h, w = (jnp.asarray(_basis(n)) for n in x.shape[:2])
    return jnp.einsum("fh,gw,hwio->fgio", h, w, jnp.asarray(x).astype(jnp.float32)).astype(x.dtype)


def _back(x: jax.Array) -> jax.Array:
    h, w = (jnp.asarray(_basis(n)) for n in x.shape[:2])
    return jnp.einsum("fh,gw,fgio->hwio", h, w, x)


def _basis(n: int) -> np.ndarray:
    """The orthonormal real Fourier basis of n points: a constant, then cosines and sines by frequency."""
    at = 2 * np.pi * np.arange(n) / max(n, 1)
    rows = [np.ones(n)]
    for k in range(1, n // 2 + 1):
        rows += [np.cos(k * at), np.sin(k * at)][: 1 if 2 * k == n else 2]
    return np.array([r / np.linalg.norm(r) for r in rows[:n]], np.float32).reshape(n, n)
