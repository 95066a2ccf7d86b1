"""BackSlash that is asked for bits: its strength follows the rate of the weights."""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ggjax._internal import pack, trees
from ggjax.train import _arguments, _counted, _dual, _law, _measure, _packs, _select, _step, _steps


class BackSlashToRateState(NamedTuple):
    """State of ``backslash_to_rate``; the scalars are replicated, whatever the sharding of the parameters.

    With ``per_leaf`` shape_in_use is a vector, with an entry for every leaf of the parameters in the order of
    ``jax.tree.leaves``, 0 for those that are not selected. The names are those of ``BackSlashState``.
    """

    count: jax.Array  # updates so far, int32 ()
    shape_in_use: jax.Array  # nu of the pull, float32 (); 0 before the first update and if nothing is fitted
    rate_weight_in_use: jax.Array  # lambda: strength * learning rate * number of weights, float32 ()
    strength_in_use: jax.Array  # the pull in units of the learning rate, float32 ()
    bits: jax.Array  # of the weights before the update, per parameter at the step, float32 ()
    log_strength: jax.Array  # what the controller has summed up, float32 ()
    fitted: jax.Array  # which of the leaves could be fitted, bool (leaves,)
    correction: jax.Array  # of the bits, found at the last count of the rounded weights, float32 ()

    @property
    def gg_shape(self) -> jax.Array:
        """The shape nu in use."""
        return self.shape_in_use

    @property
    def rate_weight(self) -> jax.Array:
        """The rate weight lambda in use."""
        return self.rate_weight_in_use


def backslash_to_rate(
    target_bits: chex.Numeric | optax.Schedule,
    step: Any,
    *,
    learning_rate: chex.Numeric | optax.Schedule,
    start: chex.Numeric = 0.01,
    eps: chex.Numeric = 1.0,
    per_leaf: bool = False,
    move_idle: bool = False,
    axis_name: _law.AxisName = None,
    mask: trees.Mask | Literal["kernels"] = "kernels",
) -> optax.GradientTransformationExtraArgs:
    """``backslash`` that finds its own strength: ask for bits per parameter, not for a weight of the rate.

    Goes after the optimizer in ``optax.chain``. The pull on the weights is that of ``backslash(strength=c,
    learning_rate=..., clamp=True)``; c is a dual variable, raised while the weights, rounded to multiples of
    the step, take more bits than asked, and lowered while they take fewer. The bits are measured at every
    update in closed form, from sums over the weights that are taken in the same pass as BackSlash's own. What
    that form is off by (often 1 %, but 5 % at 8 bits, and more of weights that follow no such law) is found at
    every tenth update, by counting the rounded weights, and taken off until the next count. So the bits are the
    entropy that ``ggjax.rate.bits(params, step)`` counts, as long as the weights do not change much within ten
    updates. (With more than 1 % of the weights beyond 16,000 steps there is no count.)

    What can be asked? The step sets how finely the weights are rounded after the training, and with it the
    bits that they take without BackSlash: one bit less for a step twice as large. Ask for fewer bits than that
    and watch the loss; many bits fewer cost more loss than a larger step with a few bits fewer would. If asked
    for more bits than the weights take anyway, the pull dies away, and the training is that of the optimizer
    alone.

    The bits follow the learning rate: where that has gone to 0, nothing moves (the strength may, to no effect).
    The target is usually reached in the first half of a training, and then held. A training that is too short
    to reach it (weights move by about the learning rate at each update of Adam's) ends above it: look at
    ``bits`` in the state. Adam and its kin suit best, whose steps are about the learning rate. With another
    optimizer, pass the size of its typical steps instead of its learning rate, or see that the target is
    reached: the pull is never stronger than 10 times the learning rate. And with a learning rate that is not
    small beside the weights, and does not fall, the bits swing about the target.

    Args:
      target_bits: bits per parameter, positive; a number, scalar array or schedule of the update count.
      step: the quantization step, a positive number in the units of the weights. Or a tree of steps for
        weights that will be rounded by steps of their own: with a leaf for every weight leaf that is selected,
        of the same name, that broadcasts to its shape (``ggjax.sensitivity.row_steps`` makes one). The bits
        then are those of the weights over their steps, and the pull is the gradient of that rate.
      learning_rate: the optimizer's, a number or a schedule.
      start: the strength that the search begins with, positive.
      eps, move_idle, axis_name, mask: as in ``backslash``.
      per_leaf: a law for every leaf, as in ``backslash``, and the mean of the bits that each leaf takes with a
        code of its own, instead of one code for all. (A leaf of n weights takes log2(n) bits at most, counted
        so.)

    Returns:
      A gradient transformation whose ``update`` needs ``params`` and ignores unknown extra arguments. Updates
      keep their dtype. State: ``BackSlashToRateState``; log ``optax.tree.get(state, "bits")``,
      ``"strength_in_use"``, ``"rate_weight_in_use"`` and ``"shape_in_use"``. What ``backslash`` says of leaves
      that cannot be fitted, of low precision, ``optax.MultiSteps`` and ``inject_hyperparams`` holds here too.

    Raises:
      ValueError: target_bits, step, start or eps is not positive and finite, learning_rate is negative; in
        ``update``, params missing, a selected leaf without a step or with steps that do not broadcast to it, or
        weights split over a mesh axis that axis_name does not name.
      TypeError: per_leaf or move_idle is not a bool, or mask is a number.

    Example:
      >>> import jax, jax.numpy as jnp, optax, ggjax
      >>> rate = 1e-2  # or a schedule
      >>> tx = optax.chain(optax.sgd(rate), ggjax.backslash_to_rate(3.0, step=0.1, learning_rate=rate))
      >>> best = jax.random.normal(jax.random.key(0), (64, 64))  # takes 5.4 bits
      >>> params = {"kernel": 0.9 * best}
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def train_step(params, state):
      ...     grads = jax.tree.map(lambda w: w - best, params)
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(500):
      ...     params, state = train_step(params, state)
      >>> print(f"{optax.tree.get(state, 'bits'):.1f}, {ggjax.rate.bits(params, 0.1):.1f}")
      3.0, 3.0

    References:
      Wu et al., BackSlash: Rate Constrained Optimized Training of Large Language Models, ICML 2025. Asking for
      a rate, and the rate that is measured, are this package's own.
    """
    _arguments.check_to_rate(
        target_bits, step, learning_rate, start, eps, mask, per_leaf=per_leaf, move_idle=move_idle
    )

    def init_fn(params: optax.Params) -> BackSlashToRateState:
        flat = trees.flatten(params, mask, needs_weights=False)
        # Every field is an array of its own, so that the state can be donated.
        nu = jnp.zeros((len(flat.leaves),) if per_leaf else (), jnp.float32)
        weight, bits, correction = (jnp.zeros((), jnp.float32) for _ in range(3))
        strength = jnp.array(start, jnp.float32)
        log_start = jnp.log(strength)
        fitted = jnp.zeros(len(flat.leaves), bool)
        return BackSlashToRateState(
            jnp.zeros([], jnp.int32), nu, weight, strength, bits, log_start, fitted, correction
        )

    def update_fn(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        flat, steps = _select.select(params, updates, mask)
        weights = flat.weights()
        count = jnp.asarray(optax.safe_increment(state.count))
        if not weights:
            return updates, state._replace(count=count)

        axes = _law.shard_axes(flat.weight_names(), weights, axis_name)
        mean_step, relative = _steps.of_leaves(step, flat.weight_names(), weights, axes)
        packing = _packs.plan(
            weights, steps.weights(), allowed=relative is None and pack.one_device() and not any(axes)
        )
        thetas, us = packing.pack(weights), packing.pack(steps.weights())
        how = {"packing": packing, "axes": axes, "per_leaf": per_leaf}
        found = _measure.measure(thetas, relative, mean_step, **how)
        due = state.count % _counted.EVERY == 0
        correction = _counted.correction(
            state.correction, due, found.bits, thetas, relative, mean_step, found.fitted, **how
        )
        bits = found.bits + correction

        rate = _arguments.at(learning_rate, state.count)
        target = _arguments.at(target_bits, state.count)
        strength, log_strength = _dual.advance(
            state.log_strength,
            state.strength_in_use,
            bits=bits,
            target=target,
            learning_rate=rate,
            mean=found.mean,
        )
        pull = strength * rate

        nus = packing.spread(jnp.broadcast_to(found.nu, len(weights)))
        moves = packing.spread(found.fitted)
        new = []
        own = relative if relative is not None else [None] * len(thetas)
        for theta, u, nu, moved, r in zip(thetas, us, nus, moves, own, strict=True):
            size, offset = _steps.scaled(pull, jnp.asarray(eps, jnp.float32), nu, r)
            new.append(_step.shrink(theta, u, nu, size, offset, moved, clamp=True, move_idle=move_idle))

        n = _law.size(found.fitted, packing.shapes, axes)
        nu = _select.kept(flat, state.shape_in_use, found.nu)
        fitted = _select.kept(flat, state.fitted, found.fitted)
        new_state = BackSlashToRateState(count, nu, pull * n, strength, bits, log_strength, fitted, correction)
        return steps.replace(packing.unpack(new)), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
