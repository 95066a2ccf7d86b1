"""Gradients against the exact Gram matrices of the layers' inputs, on the two models where these are at hand.

Methods with hooks into a model take X^T X, over the inputs X of a layer, for the factor of the axis that it
multiplies, and tell nothing of the other axis. Here both are given the same tokens, and the same weight among
the layers (the trace of the gradients' factors), and errors are made good along the inputs in both.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ggjax.sensitivity import Factors, Sensitivity
from tests.benchmarks.calibrated import encoder
from tests.benchmarks.calibrated.subject import Subject

Inputs = dict[str, jax.Array]
"""By the name of a kernel, what it multiplies, (tokens, features)."""

SUBJECTS = ("encoder", "lm-adam", "lm-backslash", "lm-small")

ARMS = {
    "gradient_rows": "gradients, factor of the inputs only",
    "gram_rows": "exact Gram matrices, the same",
    "gradient_both": "gradients, feedback along the inputs, steps of both axes",
    "gram_both": "exact Gram matrices along the inputs, gradients for the other axis",
}


def lm_inputs(subject: Subject, batch: Any) -> Inputs:
    """Of the language model's dense layers."""
    found: Inputs = {}

    def see(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            found[f"{context.module.name}/kernel"] = args[0].reshape(-1, args[0].shape[-1])
        return call(*args, **kwargs)

    with nn.intercept_methods(see):
        subject.apply(subject.params, batch)
    return found


def encoder_inputs(subject: Subject, batch: encoder.Tokens) -> Inputs:
    """Of the encoder's layers; 0 after the end of a text."""
    found: Inputs = {}

    def see(name: str, x: jax.Array) -> None:
        found[f"{name}.weight"] = jnp.where(batch.live[..., None], x, 0).reshape(-1, x.shape[-1])

    encoder.apply(subject.params, batch, see)
    return found


def grams(subject: Subject, name: str, batches: int) -> dict[str, np.ndarray]:
    """X^T X of every kernel over so many batches, (2, features, features): one for each half of the examples.

    The halves are those of ``estimate`` with a group for each example.
    """
    inputs = encoder_inputs if name == "encoder" else lm_inputs

    @jax.jit
    def of_batch(batch: Any) -> dict[str, jax.Array]:
        halves = [jax.tree.map(lambda x, h=h: x[h::2], batch) for h in range(2)]
        both = [inputs(subject, half) for half in halves]
        return {n: jnp.stack([x[n].T @ x[n] for x in both]) for n in both[0]}

    total: dict[str, np.ndarray] = {}
    for batch in subject.batches(batches):
        for leaf, x in of_batch(jax.tree.map(jnp.asarray, batch)).items():
            total[leaf] = total.get(leaf, 0) + np.asarray(x, np.float64)
    return total


def state_of(arm: str, state: Sensitivity, exact: dict[str, np.ndarray], name: str) -> Sensitivity:
    """The sensitivity that an arm sees; leaves without inputs of their own keep their factors."""
    inputs_are_columns = name == "encoder"  # whose matrices have the outputs first
    factors = dict(state.factors)
    for leaf, gram in exact.items():
        f = factors[leaf]
        own, other = (f.columns, f.rows) if inputs_are_columns else (f.rows, f.columns)
        trace = jnp.trace(own, axis1=2, axis2=3)  # (2, 1)
        if arm.startswith("gram"):
            share = trace / jnp.asarray(np.trace(gram, axis1=1, axis2=2), jnp.float32)[:, None]
            own = jnp.asarray(gram, jnp.float32)[:, None] * share[:, :, None, None]
        # A diagonal of the other axis leaves the inputs' axis for the feedback.
        diagonal = jnp.diagonal(other, axis1=2, axis2=3)
        if arm.endswith("rows"):
            diagonal = jnp.broadcast_to(diagonal.mean(-1, keepdims=True), diagonal.shape)
        rows, columns = (diagonal, own) if inputs_are_columns else (own, diagonal)
        factors[leaf] = Factors(rows, columns, f.view)
    return state._replace(factors=factors)
