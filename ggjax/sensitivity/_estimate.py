"""The sensitivity of a model, from gradients at its own predictions."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees
from ggjax.sensitivity import _outputs, _state, _trials, _views
from ggjax.sensitivity._outputs import Output
from ggjax.sensitivity._state import Sensitivity


def estimate(
    apply: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    *,
    key: jax.Array,
    output: Output = "logits",
    groups: int | None = None,
    max_dim: int = _state.MAX_DIM,
    batch_axis: _views.BatchAxis = (),
    split: _views.Split | None = None,
    mask: trees.Mask = None,
    trials: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Sensitivity:
    """The sensitivity of a model's weights, from a few batches without labels.

    For every batch the gradient is taken of the summed log-likelihood of labels that are drawn from the model's
    own predictions (the true Fisher matrix), or of the outputs times normal noise (the Gauss-Newton matrix of
    half the squared error). One compiled program does a batch: a forward and a backward pass, and two products
    for every matrix.

    Args:
      apply: a function of (params, batch) that gives the outputs: one array or a tree of them, the first axis
        counting examples. For a Flax module ``model.apply``; for an nnx module
        ``lambda params, x: nnx.merge(graphdef, params)(x)``.
      params: the weights, a tree of arrays.
      batches: inputs of the model, as many as there are; arrays or trees, the fewer different shapes the
        better.
      key: a PRNG key, for the labels or the noise.
      output: "logits" if the last axis of the outputs holds the logits of one distribution, "values" if the
        outputs are numbers whose squared error matters.
      groups: take the gradient of each batch in so many parts. The examples of one gradient disturb each other,
        by terms that are zero only on average: smaller groups learn more from the same examples and take more
        time. The first axes of the batch must be divisible by it; None for the largest number up to 16 by which
        they are.
      max_dim, batch_axis, split, mask: as in ``init``.
      trials: round the kernels three times, by one half of the gradients, and measure what that costs on
        examples of the other half: predictions of calibrated roundings are corrected by it. It takes as many
        forward passes over up to ``HELD`` batches.
      progress: called after every batch with the number of batches so far.

    Returns:
      A ``Sensitivity``. With "logits" an example is one distribution (one position of a language model), so
      that predictions are in nats per distribution, as the usual mean loss is; with "values", one entry along
      the first axis of the outputs.

    Raises:
      ValueError: no batch, an output that is not one of the two, outputs without the axes that they need, a
        batch that ``groups`` does not divide, gradients that are not finite (the message names the leaf).

    >>> import jax, jax.numpy as jnp
    >>> from ggjax import sensitivity
    >>> params = {"kernel": jnp.eye(3)}
    >>> batches = [jax.random.normal(jax.random.key(i), (8, 3)) for i in range(4)]
    >>> s = sensitivity.estimate(lambda p, x: x @ p["kernel"], params, batches, key=jax.random.key(9))
    >>> rounded = {"kernel": jnp.round(params["kernel"] * 0.9, 1)}
    >>> bool(sensitivity.predict(params, rounded, s).total > 0)
    True
    """
    if output not in ("logits", "values"):
        raise ValueError(f'output must be "logits" or "values", got {output!r}')
    flat = trees.flatten(params, mask)
    state = _state.init(params, max_dim=max_dim, batch_axis=batch_axis, split=split, mask=mask)
    weights, others = flat.weights(), flat.other_arrays()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: Sensitivity, key: jax.Array, weights: list[Any], rest: list[Any], batch: Any
    ) -> Sensitivity:
        def add(state: Sensitivity, given: tuple[jax.Array, Any]) -> tuple[Sensitivity, None]:
            key, part = given
            grads, examples = _gradient(lambda w: apply(flat.rebuilt(w, rest), part), weights, key, output)
            return _state.update(state, dict(zip(flat.weight_names(), grads, strict=True)), examples), None

        number = _number_of_groups(batch, groups)
        if number == 1:
            return add(state, (key, batch))[0]
        parts = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), batch)
        return jax.lax.scan(add, state, (jax.random.split(key, number), parts))[0]

    @jax.jit
    def divergences(weights: list[Any], new: list[Any], rest: list[Any], batch: Any) -> jax.Array:
        before, after = (_outputs.floating(apply(flat.rebuilt(w, rest), batch)) for w in (weights, new))
        return _outputs.divergences(before, after, output)

    def cost(tree: Any) -> np.ndarray:
        """How far the outputs of other weights diverge, for every example that is held."""
        new = trees.flatten(tree, mask).weights()
        return np.concatenate([np.asarray(divergences(weights, new, others, x)) for x in held])

    done = updates = 0
    held: list[Any] = []
    for batch in batches:
        batch = jax.tree.map(jnp.asarray, batch)
        number = _number_of_groups(batch, groups)
        if trials and len(held) < HELD and number + updates % _state.HALVES > 1:
            held.append(_of_second_half(batch, number, updates))
        state = step(state, jax.random.fold_in(key, done), weights, others, batch)
        done, updates = done + 1, updates + number
        if progress is not None:
            progress(done)
    if not done:
        raise ValueError("batches is empty, expected at least one batch")
    _check_finite(state)
    return _trials.tried(params, state, cost) if held else state


def _gradient(
    outputs_of: Callable[[list[Any]], Any], weights: list[Any], key: jax.Array, output: Output
) -> tuple[list[jax.Array], int]:
    """(the gradient of a random objective whose covariance is the Fisher or Gauss-Newton matrix, examples)."""

    def objective(weights: list[Any]) -> tuple[jax.Array, int]:
        leaves = _outputs.floating(outputs_of(weights))
        total = jnp.zeros((), jnp.float32)
        for x, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
            if output == "logits":
                label = jax.random.categorical(k, jax.lax.stop_gradient(x))
                chosen = jnp.take_along_axis(jax.nn.log_softmax(x), label[..., None], -1)
                total += chosen.sum()
            else:
                total += jnp.sum(x * jax.random.normal(k, x.shape, jnp.float32))
        return total, _outputs.examples_of(leaves, output)

    return jax.grad(objective, has_aux=True)(weights)


MOST_GROUPS = 16
"""By default. On a small language model, 10 batches of 16 examples taken one by one were worth as much as 200
batches taken whole."""


HELD = 8
"""From so many batches the examples of the second half are held for the trial roundings."""


def _of_second_half(batch: Any, number: int, updates: int) -> Any:
    """The examples of a batch, in so many groups, whose gradients go to the second half."""
    if number == 1 and updates % _state.HALVES:
        return batch
    groups = slice(1 - updates % _state.HALVES, None, _state.HALVES)
    return jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:])[groups].reshape(-1, *x.shape[1:]), batch)


def _number_of_groups(batch: Any, groups: int | None) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if groups is None:
        examples = math.gcd(*(x.shape[0] if x.ndim else 1 for _, x in leaves)) or 1
        return next(g for g in range(MOST_GROUPS, 0, -1) if examples % g == 0)
    for path, x in leaves:
        if groups > 1 and (x.ndim == 0 or x.shape[0] % groups):
            raise ValueError(
                f"leaf {trees.leaf_name(path)!r} of a batch has shape {x.shape}, expected a first axis that is "
                f"divisible by groups={groups}"
            )
    return groups


def _check_finite(state: Sensitivity) -> None:
    """Raise ValueError naming a leaf whose gradients were not finite."""
    sums = jax.device_get({n: (f.rows.sum(), f.columns.sum()) for n, f in state.factors.items()})
    for name, values in sums.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"leaf {name!r}: expected finite gradients whose squares float32 can hold: the model gives "
                "NaN or infinities, or its gradients overflow in their dtype"
            )
