"""BackSlash: rate-regularised training as a gradient transformation (arXiv 2504.16968, ICML 2025)."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ggjax import gennorm
from ggjax._internal import trees
from ggjax._internal.power import power
from ggjax.gennorm import _density, _fit

NO_PARAMS = (
    "backslash works on the parameters and got none: call update(updates, state, params), and put "
    "backslash after the optimizer in optax.chain"
)


_LARGE = 1 << 16
"""From this size on a leaf is worth the longer program of ``power``: quicker to run, slower to compile."""


class BackSlashState(NamedTuple):
    """State of ``backslash``; the scalars are replicated, whatever the sharding of the parameters.

    With ``per_leaf`` the fields gg_shape and bits are trees like the parameters, of one such scalar a leaf.
    """

    count: jax.Array  # updates so far, int32 ()
    gg_shape: Any  # nu in use, float32 (); 0 before the first update
    rate_weight: jax.Array  # lambda in use, float32 ()
    bits: Any  # differential entropy of the fitted law, bits per parameter, float32 ()


def backslash(
    rate_weight: chex.Numeric | optax.Schedule,
    *,
    eps: chex.Numeric = 1.0,
    gg_shape: chex.Numeric | None = None,
    estimate_every: int = 1,
    per_leaf: bool = False,
    clamp: bool = False,
    mask: trees.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Lower the coded size of the weights while they train. Goes after the optimizer in ``optax.chain``.

    With u the optimizer's update, theta' = theta + u the weights it leads to, n the number of selected
    weights and nu the shape of the generalized Gaussian fitted to them, every update becomes

        u - s,    s = (lambda nu / n) sign(theta') (|theta'| + eps)^(nu - 1)

    which descends lambda/n sum (|theta| + eps)^nu, the rate of the weights under that law up to constants. The
    step is not scaled by the learning rate. nu is fitted to the weights before the update.

    Choosing ``rate_weight`` (lambda). With eps = 1 and small weights s is nearly the constant lambda nu / n:
    compare it with the optimizer's own step, which for Adam is about the learning rate. The papers use
    lambda = 2e3 for some 10^8 weights, a step of 2e-5; that number on 10^5 weights destroys the model in ten
    updates. Begin with lambda = 0.02 * learning_rate * n and raise it while the loss holds. We recommend
    ``follow_learning_rate`` and ``clamp=True``: at equal loss after quantization they take fewer bits than a
    constant weight does.

    Notes:
      * Each selected leaf counts, so ``optax.masked(backslash(...), m)`` and ``mask=m`` both fit nu and count n
        on the leaves that m selects.
      * ``optax.MultiSteps(optax.chain(adam, backslash), k)`` takes one step every k mini-batches;
        ``optax.chain(optax.MultiSteps(adam, k), backslash)`` takes one every mini-batch.
      * On bfloat16 and float16 weights a step below half an ulp vanishes when it is added: keep float32 master
        weights, or add updates with ``ggjax.apply_updates_stochastic``.
      * With ``optax.inject_hyperparams`` name the static arguments, and keep the others in float32:
        ``optax.inject_hyperparams(backslash, static_args=("estimate_every", "per_leaf", "clamp"),
        hyperparam_dtype=jnp.float32)(rate_weight=100.0)``.

    Args:
      rate_weight: lambda, a non-negative number, scalar array or schedule of the update count. A schedule that
        ends in 0 switches BackSlash off for fine-tuning.
      eps: positive number added to |theta'|. 1 is the papers' value; near the quantization step it gives the
        rate's true gradient, which pulls small weights harder.
      gg_shape: fixes nu instead of fitting it (1 gives an L1 penalty, 2 an L2 one: the papers' ablations).
      estimate_every: fit nu at every so many updates and keep it in between.
      per_leaf: fit one nu to every leaf instead of one to all; n stays the number of all selected weights.
      clamp: stop a weight at zero rather than let the step carry it across.
      mask: tree of bools, prefix of one, or a function from params to one: the leaves to act on, as in
        ``optax.masked``. Leaves that are not floating are never touched.

    Returns:
      A gradient transformation whose ``update`` needs ``params`` and ignores unknown extra arguments. Updates
      keep their dtype; the arithmetic is float32 or wider. State: ``BackSlashState``, read by
      ``optax.tree.get(state, "gg_shape")``. Its ``bits`` is h / log(2), for the rate of weights quantized at a
      fine step D subtract log2(D); it is -inf for all-zero weights.

    Raises:
      ValueError: eps or gg_shape is not positive, rate_weight is negative, estimate_every is below 1; in
        ``init``, a tree without floating leaves; in ``update``, params missing.
      TypeError: per_leaf or clamp is not a bool.

    Example:
      >>> import jax.numpy as jnp, optax, ggjax
      >>> tx = optax.chain(optax.sgd(1e-2), ggjax.backslash(rate_weight=1e-5, clamp=True))
      >>> params = {"w": jnp.array([0.5, -0.25, 0.0])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.zeros(3)}, state, params)
      >>> bool((jnp.abs(optax.apply_updates(params, updates)["w"]) <= jnp.abs(params["w"])).all())
      True

    References:
      Wu et al., BackSlash: Rate Constrained Optimized Training of Large Language Models, ICML 2025.
    """
    trees.check_positive("eps", eps)
    if gg_shape is not None:
        trees.check_positive("gg_shape", gg_shape)
    if not callable(rate_weight):
        trees.check_not_negative("rate_weight", rate_weight)
    if trees.is_concrete(estimate_every) and (estimate_every != int(estimate_every) or estimate_every < 1):
        raise ValueError(f"estimate_every must be a whole number of at least 1, got {estimate_every!r}")
    for name, flag in (("per_leaf", per_leaf), ("clamp", clamp)):
        if not isinstance(flag, bool):
            raise TypeError(
                f"{name} must be a bool, got {flag!r} (under optax.inject_hyperparams name it in static_args)"
            )

    def weight_at(count: jax.Array) -> jax.Array:
        return jnp.asarray(rate_weight(count) if callable(rate_weight) else rate_weight, jnp.float32)

    def fit(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, second = _fit.abs_moments(leaves)
        law = _fit.from_moments(first, second, float(trees.size(leaves)))
        nu = law.nu if gg_shape is None else jnp.asarray(gg_shape, law.nu.dtype)
        scale = law.scale * gennorm.std(law.nu) / gennorm.std(nu)
        bits = _density.entropy_unchecked(nu, scale) / jnp.log(2.0)
        # So a fixed nu waits for the moments too, and XLA updates the weights in place: no copy to read from.
        nu = jnp.where(jnp.isnan(bits), jnp.nan, nu)
        return nu.astype(jnp.float32), bits.astype(jnp.float32)

    def init_fn(params: optax.Params) -> BackSlashState:
        flat = trees.flatten(params)

        def zeros() -> Any:  # every scalar an array of its own, so that the state can be donated
            leaves = [jnp.zeros([], jnp.float32) for _ in (flat.leaves if per_leaf else [None])]
            return flat.treedef.unflatten(leaves) if per_leaf else leaves[0]

        count = jnp.zeros([], jnp.int32)
        return BackSlashState(count, zeros(), jnp.array(weight_at(count)), zeros())

    def update_fn(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, BackSlashState]:
        del extra
        if params is None:
            raise ValueError(NO_PARAMS)
        flat = trees.flatten(params)
        steps = flat.treedef.flatten_up_to(updates)
        chosen = [s and u is not None for s, u in zip(flat.selected, steps, strict=True)]
        flat = flat._replace(selected=chosen)
        weights = flat.weights()
        scopes = [[w] for w in weights] if per_leaf else [weights]

        def estimate() -> tuple[list[jax.Array], list[jax.Array]]:
            fits = [fit(scope) for scope in scopes]
            return [nu for nu, _ in fits], [bits for _, bits in fits]

        def keep() -> tuple[list[jax.Array], list[jax.Array]]:
            if not per_leaf:
                return [state.gg_shape], [state.bits]
            old = flat.treedef.flatten_up_to(state.gg_shape), flat.treedef.flatten_up_to(state.bits)
            return flat._replace(leaves=old[0]).weights(), flat._replace(leaves=old[1]).weights()

        if trees.is_concrete(estimate_every) and estimate_every == 1:
            nus, bits = estimate()
        else:
            nus, bits = lax.cond(state.count % estimate_every == 0, estimate, keep)

        weight = weight_at(state.count)
        share = weight / float(max(trees.size(weights), 1))
        each = nus if per_leaf else nus * len(weights)
        pairs = zip(weights, flat._replace(leaves=steps).weights(), each, strict=True)
        fixed = float(np.asarray(gg_shape)) if gg_shape is not None and trees.is_concrete(gg_shape) else None
        new = [_shrink(theta, u, nu, share, eps, fixed, clamp) for theta, u, nu in pairs]

        def scalars(old: Any, values: list[jax.Array]) -> Any:
            return (
                flat._replace(leaves=flat.treedef.flatten_up_to(old)).replace(values) if per_leaf else values[0]
            )

        new_state = BackSlashState(
            jnp.asarray(optax.safe_increment(state.count)),
            scalars(state.gg_shape, nus),
            weight,
            scalars(state.bits, bits),
        )
        return flat._replace(leaves=steps).replace(new), new_state

    inner = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return inner if mask is None else optax.masked(inner, mask)


@functools.partial(jax.jit, static_argnames=("fixed", "clamp"))  # traced once for all leaves that are alike
def _shrink(
    theta: jax.Array,
    u: jax.Array,
    nu: jax.Array,
    share: jax.Array,
    eps: chex.Numeric,
    fixed: float | None,
    clamp: bool,
) -> jax.Array:
    """u - (share nu) sign(theta + u) (|theta + u| + eps)^(nu - 1), one elementwise expression."""
    dtype = trees.wide_dtype(jnp.result_type(theta), jnp.result_type(u))
    nu, share, eps = (jnp.asarray(v, dtype) for v in (nu, share, eps))
    wide_u = jnp.asarray(u, dtype)
    new = jnp.asarray(theta, dtype) + wide_u
    size = jnp.abs(new)
    if fixed == 1:
        slope = jnp.ones_like(size)
    elif fixed == 2:
        slope = size + eps
    elif size.size < _LARGE:
        slope = jnp.exp((nu - 1) * jnp.log(size + eps))
    else:
        slope = power(size + eps, nu - 1)
    step = share * nu * slope
    if clamp:
        step = jnp.minimum(step, size)
    return (wide_u - jnp.sign(new) * step).astype(jnp.result_type(u))
