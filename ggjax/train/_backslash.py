"""BackSlash: rate-regularised training as a gradient transformation (arXiv 2504.16968, ICML 2025)."""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ggjax._internal import pack, trees
from ggjax.train import _arguments, _law, _packs, _select, _step


class BackSlashState(NamedTuple):
    """State of ``backslash``; the scalars are replicated, whatever the sharding of the parameters.

    With ``per_leaf`` the fields shape_in_use and bits are vectors, with an entry for every leaf of the
    parameters in the order of ``jax.tree.leaves``, 0 for those that are not selected. The names differ from
    those of the arguments, and from Adam's mu and nu, so that ``optax.tree.get`` finds one value of each.
    """

    count: jax.Array  # updates so far, int32 ()
    shape_in_use: jax.Array  # nu of the pull, float32 (); 0 before the first update and if nothing is fitted
    rate_weight_in_use: jax.Array  # lambda, float32 (); with strength= it is strength * learning rate * n
    bits: jax.Array  # differential entropy of the fitted law, bits per parameter, float32 ()
    fitted: jax.Array  # which of the leaves could be fitted, bool (leaves,)

    @property
    def gg_shape(self) -> jax.Array:
        """The shape nu in use."""
        return self.shape_in_use

    @property
    def rate_weight(self) -> jax.Array:
        """The rate weight lambda in use."""
        return self.rate_weight_in_use


def backslash(
    rate_weight: chex.Numeric | optax.Schedule | None = None,
    *,
    strength: chex.Numeric | optax.Schedule | None = None,
    learning_rate: chex.Numeric | optax.Schedule | None = None,
    eps: chex.Numeric = 1.0,
    gg_shape: chex.Numeric | None = None,
    estimate_every: chex.Numeric = 1,
    per_leaf: bool = False,
    clamp: bool = False,
    move_idle: bool = False,
    axis_name: _law.AxisName = None,
    mask: trees.Mask | Literal["kernels"] = "kernels",
) -> optax.GradientTransformationExtraArgs:
    """Lower the coded size of the weights while they train. Goes after the optimizer in ``optax.chain``.

    With u the optimizer's update, theta' = theta + u the weights it leads to, n the number of selected
    weights and nu the shape of the generalized Gaussian fitted to them, every update becomes

        u - s,    s = (lambda / n) nu sign(theta') (|theta'| + eps)^(nu - 1)

    which descends lambda/n sum (|theta| + eps)^nu: a smoothed form of the rate of the weights under that law,
    close to it, up to a factor and a constant, where eps is small beside the weights. nu is fitted to the
    weights before the update; 2 is taken for a larger one, of weights more even than a Gaussian's, since that
    would pull at large weights harder than in proportion to their size, and gather weights at one size.

    How strong? Say it in one of two ways:

      * ``strength`` and ``learning_rate`` (recommended): lambda / n = strength * learning_rate(count). The step
        then is a fixed share of the optimizer's own, about strength * nu of it for Adam, whatever the size of
        the model. ``backslash(strength=0.02, learning_rate=schedule, clamp=True)`` is a good start; raise the
        strength while the loss holds. Give the schedule that the optimizer has.
      * ``rate_weight``: lambda itself, as in the papers; the learning rate does not scale it. Its right
        value grows with the number of weights: 2e3 suits about 10^8 of them (a step of 2e-5), and destroys a
        model of 10^5 weights in ten updates. See also ``follow_learning_rate``.

    Which weights? By default those that ``ggjax.masks.kernels`` selects: nu is fitted to them, n counts them,
    and they alone are moved. The code published with the paper takes every parameter of the model, biases and
    the scales of normalization layers too. Those are few and do not follow the law of the kernels (scales lie
    around 1), so they spoil the fit, and a pull to zero harms them; ``mask=None`` selects all floating leaves,
    as that code does. Among the selected ones

      * only weights that the optimizer moves are moved: one whose update is exactly zero stays. So weights
        frozen by ``optax.set_to_zero`` stay, all weights between the steps of ``optax.MultiSteps`` or at a
        learning rate of 0, and also those that never had a gradient, such as the embeddings of tokens that do
        not occur. ``move_idle=True`` moves these too, as the published code does; with weight decay
        (``optax.adamw``) they have an update and move anyway. All of them count in the fit and in n.
      * a leaf that cannot be fitted is not moved and counts in neither: one that holds a NaN, an infinity, or
        numbers whose squares overflow float32 or vanish in it, such as an attention mask kept among the
        parameters.

    Notes:
      * ``optax.masked(backslash(...), m)`` fits and counts within the leaves that m selects.
      * ``optax.MultiSteps(optax.chain(adam, backslash), k)`` keeps BackSlash's count of updates that of Adam,
        as a schedule needs it. In ``optax.chain(optax.MultiSteps(adam, k), backslash)`` it runs k times as
        fast.
      * On bfloat16 and float16 weights a step below half an ulp vanishes when it is added: keep float32 master
        weights, or add updates with ``ggjax.apply_updates_stochastic``.
      * With ``optax.inject_hyperparams`` keep the numbers in float32: ``optax.inject_hyperparams(backslash,
        hyperparam_dtype=jnp.float32)(strength=0.02, learning_rate=schedule)``. A mask that is a function has to
        be named in its ``static_args``.
      * Inside ``jax.shard_map``, where a device sees only its part of the weights, pass ``axis_name``. Arrays
        that are sharded under ``jax.jit`` need nothing.

    Args:
      rate_weight: lambda, a non-negative number, scalar array or schedule of the update count. A schedule that
        ends in 0 switches BackSlash off for fine-tuning.
      strength: the step in units of the learning rate, instead of rate_weight; of the same kinds.
      learning_rate: the optimizer's learning rate, a number or a schedule; with strength.
      eps: positive number added to |theta'|. 1 is the papers' value; near the quantization step it gives the
        rate's true gradient, which pulls small weights harder.
      gg_shape: fixes nu instead of fitting it (1 gives an L1 penalty, 2 an L2 one: the papers' ablations).
      estimate_every: fit nu at every so many updates and keep it in between.
      per_leaf: fit one nu to every leaf instead of one to all; n stays the number of all selected weights.
      clamp: stop a weight at zero rather than let the step carry it across: added by ``optax.apply_updates``,
        the update gives exactly 0, never a weight of the other sign. (If updates have fewer digits than the
        weights, what is left of such a weight is below their rounding.)
      move_idle: move weights whose update is exactly zero, too.
      axis_name: the mesh axis, or a sequence of them, over which the weights are split inside
        ``jax.shard_map``; nu and n then are those of the whole.
      mask: the leaves to act on: "kernels", a tree of bools, a prefix of one, or a function from params to one;
        None for all floating leaves. Leaves that are not floating are never touched.

    Returns:
      A gradient transformation whose ``update`` needs ``params`` and ignores unknown extra arguments.
      Updates keep their dtype; the arithmetic is float32 or wider. State: ``BackSlashState``, read by
      ``optax.tree.get(state, "shape_in_use")``. Its ``bits`` is the differential entropy of the law in bits:
      subtract log2(D) for the rate of weights that are rounded to multiples of a fine step D. It is -inf for
      all-zero weights. A tree without floating leaves passes through unchanged.

    Raises:
      ValueError: not exactly one of rate_weight and strength; strength without learning_rate; eps or gg_shape
        is not positive, a weight, strength or learning rate is negative, estimate_every is below 1; in
        ``update``, params missing, or weights split over a mesh axis that axis_name does not name.
      TypeError: per_leaf, clamp or move_idle is not a bool, or mask is a number.

    Example:
      >>> import jax.numpy as jnp, optax, ggjax
      >>> rate = 1e-2  # or a schedule
      >>> shrink = ggjax.backslash(strength=0.02, learning_rate=rate, clamp=True)
      >>> tx = optax.chain(optax.sgd(rate), shrink)
      >>> params = {"kernel": jnp.array([[0.5, -0.25], [0.0, 1e-5]]), "bias": jnp.array([0.1])}
      >>> grads = {"kernel": jnp.full((2, 2), 1e-4), "bias": jnp.array([0.0])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> new = optax.apply_updates(params, updates)["kernel"]
      >>> bool((jnp.abs(new) <= jnp.abs(params["kernel"])).all()), float(new[1, 1])
      (True, 0.0)

    References:
      Wu et al., BackSlash: Rate Constrained Optimized Training of Large Language Models, ICML 2025.
    """
    flags = {"per_leaf": per_leaf, "clamp": clamp, "move_idle": move_idle}
    _arguments.check(rate_weight, strength, learning_rate, eps, gg_shape, estimate_every, mask, **flags)
    at_every_update = not isinstance(estimate_every, jax.Array) and estimate_every == 1
    form = {"clamp": clamp, "move_idle": move_idle, "special_nu": _arguments.special(gg_shape)}

    def weight_and_rate(count: chex.Numeric, n: chex.Numeric) -> tuple[jax.Array, jax.Array]:
        """lambda and lambda / n."""
        if strength is None:
            weight = _arguments.at(rate_weight, count)
            return weight, weight / n
        rate = _arguments.at(strength, count) * _arguments.at(learning_rate, count)
        return rate * n, rate

    def init_fn(params: optax.Params) -> BackSlashState:
        flat = trees.flatten(params, mask, needs_weights=False)
        shape = (len(flat.leaves),) if per_leaf else ()
        count = jnp.zeros([], jnp.int32)
        weight, _ = weight_and_rate(count, float(max(trees.size(flat.weights()), 1)))
        # Every field is an array of its own, so that the state can be donated.
        nu, bits = (jnp.zeros(shape, jnp.float32) for _ in range(2))
        return BackSlashState(count, nu, jnp.array(weight), bits, jnp.zeros(len(flat.leaves), bool))

    def update_fn(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, BackSlashState]:
        del extra
        flat, steps = _select.select(params, updates, mask)
        weights = flat.weights()
        count = jnp.asarray(optax.safe_increment(state.count))
        if not weights:
            return updates, state._replace(count=count)

        axes = _law.shard_axes(flat.weight_names(), weights, axis_name)
        alone = pack.one_device() and not any(axes)
        packing = _packs.plan(weights, steps.weights(), allowed=alone)
        thetas, us = packing.pack(weights), packing.pack(steps.weights())
        how = {"packing": packing, "axes": axes, "per_leaf": per_leaf}
        if at_every_update:
            law = _law.fit(thetas, gg_shape, **how)
        else:
            where = np.flatnonzero(flat.selected)  # of the vectors in the state, one entry for every leaf
            fields = (state.shape_in_use, state.bits, state.fitted)
            old = _law.Law(*(x[where] if x.ndim else x for x in fields))
            law = _law.fit_if_due(old, state.count, estimate_every, thetas, gg_shape, **how)

        weight, rate = weight_and_rate(state.count, _law.size(law.fitted, packing.shapes, axes))
        nus = packing.spread(jnp.broadcast_to(law.nu, len(weights)))
        leaves = zip(thetas, us, nus, packing.spread(law.fitted), strict=True)
        new = [_step.shrink(theta, u, nu, rate, eps, moves, **form) for theta, u, nu, moves in leaves]

        nu = _select.kept(flat, state.shape_in_use, law.nu)
        bits = _select.kept(flat, state.bits, law.bits)
        fitted = _select.kept(flat, state.fitted, law.fitted)
        new_state = BackSlashState(count, nu, weight, bits, fitted)
        return steps.replace(packing.unpack(new)), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
