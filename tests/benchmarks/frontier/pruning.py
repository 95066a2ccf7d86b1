"""How many weights can be set to zero: by magnitude, and by what the sensitivity predicts of each.

A share of all kernel weights of a network together is set to zero, the rest stays as it is. By magnitude those
nearest to zero go; by sensitivity those with the least w^2 times the mean second derivative of the loss by them
(the product of the diagonals of both factors), which is what ``sensitivity.predict`` says of each alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import masks, sensitivity
from ggjax._internal import trees
from ggjax.sensitivity._state import diagonal
from tests.benchmarks.frontier import methods as known_methods
from tests.benchmarks.frontier import plan, rounding, runs
from tests.benchmarks.frontier.methods import Run
from tests.benchmarks.frontier.problems import Problem, kernels_of
from tests.benchmarks.frontier.runs import Bench
from tests.benchmarks.frontier.training import weights_of

SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
METHODS = ("adam", "adamw", "backslash")
WAYS = {"magnitude": "by magnitude", "sensitivity": "by sensitivity"}


def best(bench: Bench, name: str, steps: int, trials: int) -> Run:
    """The trial with the lowest loss, on the validation split, of 50 % pruned by magnitude, or of less."""
    found = list(plan.tried(bench, name, steps, trials))
    losses = [curve(bench, r, "magnitude", "validation")["loss"] for r in found]
    half = SHARES.index(0.5)
    return found[int(np.argmin([x[half] for x in losses]))]


def curve(bench: Bench, run: Run, by: str, split: Any = "test") -> dict[str, Any]:
    """{"loss", "accuracy"} at every share."""

    def make() -> dict[str, Any]:
        trained = runs.trained(bench, run)
        params = weights_of(trained.latent, known_methods.METHODS[run.method])
        scores = scores_of(bench.problem, params, trained.rest, by)
        found = [bench.problem.judge(pruned(params, scores, s), trained.rest, split) for s in SHARES]
        return {what: [q[what] for q in found] for what in ("loss", "accuracy")}

    return bench.once(bench.key(run) | {"prune": by, "split": split}, make)


def scores_of(problem: Problem, params: Any, rest: Any, by: str) -> dict[str, Any]:
    """What each weight is worth, by leaf."""
    kernels = kernels_of(params)
    if by == "magnitude":
        return {n: jnp.abs(x) for n, x in kernels.items()}
    known = rounding.known_of(problem, params, rest, trials=False)
    return {n: worth(x, known.factors[n]) for n, x in kernels.items()}


def worth(x: jax.Array, f: sensitivity.Factors) -> jax.Array:
    """w^2 times the second derivative by each weight, up to a factor that is the same for all leaves."""
    rows, columns, trace = f.summed(slice(None))
    columns = diagonal(columns) / jnp.where(trace > 0, trace, 1)[:, None]
    return f.view.leaf(f.view.matrices(x) ** 2 * diagonal(rows)[:, :, None] * columns[:, None, :])


def pruned(params: Any, scores: dict[str, Any], share: float) -> Any:
    """The tree with this share of its kernel weights at zero, those of the lowest scores."""
    every = np.concatenate([np.ravel(s) for s in scores.values()])
    number = round(share * every.size)
    if not number:
        return params
    bound = np.partition(every, number - 1)[number - 1]
    flat = trees.flatten(params, masks.kernels)
    kernels = kernels_of(params)
    return flat.with_named({n: jnp.where(s <= bound, 0, kernels[n]) for n, s in scores.items()})
