"""Trial roundings: what the quadratic model says of them, and what they really cost.

Factors are a coarse picture of what the weights do together, and a rounding that follows them closely costs
more than they say. How much more depends on the model and on how coarse the levels are, so it is measured: some
roundings by one half of the gradients, on examples of the other half.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ggjax import masks
from ggjax._internal import trees
from ggjax.sensitivity import _planned, _search
from ggjax.sensitivity._state import Sensitivity
from ggjax.sensitivity._tuning import tuned

STEPS = (1 / 6, 0.4, 1.0)
"""The typical step of the roundings that are tried, in standard deviations of the weights."""

DOUBT = 0.3
"""How far, in natural logarithms, measurements and predictions differ as a rule: a measurement counts the less
the larger its own standard error is beside that."""


def tried(params: Any, state: Sensitivity, cost: Callable[[Any], np.ndarray]) -> Sensitivity:
    """The state with what was measured of trial roundings.

    Args:
      params: the weights.
      state: their sensitivity.
      cost: of a tree like ``params``, the divergence from it for each of some examples of the second half.
    """
    flat = trees.flatten(params, masks.kernels, needs_weights=False)
    pairs = zip(flat.weight_names(), flat.weights(), strict=True)
    chosen = {n: x for n, x in pairs if n in state.factors and _is_rounded(x)}
    if not chosen or not np.asarray(state.examples).all():
        return state
    known = _planned.planned(chosen, state)
    typical = _planned.typical(known)
    known = tuned(known, typical * STEPS[1], _search.CAP)
    found = []
    for step in STEPS:
        levels = _planned.rounded(known, typical * step, _search.CAP, _planned.FIRST)
        predicted = sum(_planned.rises_of(known, _planned.changes(known, levels), _planned.SECOND).values())
        measured = cost(flat.with_named(_planned.values_of(levels, chosen)))
        mean = float(measured.mean(dtype=np.float64))
        if predicted > 0 and mean > 0 and math.isfinite(mean):
            error = float(measured.std(dtype=np.float64)) / mean / math.sqrt(measured.size)
            trust = DOUBT**2 / (DOUBT**2 + error**2)
            found.append((predicted, predicted * (mean / predicted) ** trust))
    found.sort()
    return state._replace(measured=np.asarray(found, np.float32).reshape(-1, 2))


def _is_rounded(x: Any) -> bool:
    return x.size >= _search.MIN_SIZE and jnp.result_type(x) in (jnp.float32, jnp.bfloat16, jnp.float16)
