"""Trainings that end on the grid of calibrated rounding, by ``ggjax.train.on_grid``.

After five sixths of its steps, with the learning rate not yet at its end, a training with BackSlash is rounded
by its sensitivity to a number of bits, and goes on with those steps kept, with BackSlash as before. The
learning rate is raised to half its peak or all of it, and falls to zero in a straight line: weights have
further to go between levels than they usually go at the end of a training. The optimizer is Adam, where Muon
came before it too: on the grid Muon is slower, and no better. No step is added. A point of the frontier takes
the last sixth of a training of its own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ggjax
from ggjax import sensitivity
from tests.benchmarks.frontier import methods, training
from tests.benchmarks.frontier.methods import METHODS, Run
from tests.benchmarks.frontier.problems import Problem, Split
from tests.benchmarks.frontier.rounding import bits_of, known_of
from tests.benchmarks.frontier.training import Trained

BITS = (3.2, 2.4, 2.1, 1.85, 1.6, 1.4, 1.1, 0.85)
"""That the rounding is asked for; a frontier ends where the loss has risen by the problem's worst rise."""

WARM_UP = 20
"""Steps with a lower learning rate, while the new moments of Adam settle."""


def frontier(problem: Problem, run: Run, trained: Trained, split: Split) -> dict[str, Any]:
    """{"loss", "accuracy", "points"}: of the best point, and all points, each with "bits" too."""
    params, rest = trained.latent, trained.rest
    known = known_of(problem, params, rest)
    points: list[dict[str, Any]] = []
    for bits in BITS:
        rounded = sensitivity.round_to(params, known, bits=bits)
        found, rest_then = trained_on(problem, run, rounded, rest)
        point = {"bits": bits_of(params, ggjax.compress(found))}
        points.append(point | problem.judge(found.params, rest_then, split))
        if points[-1]["loss"] > (1 + problem.worst) * min(p["loss"] for p in points):
            break
    best = min(points, key=lambda p: p["loss"])
    return {"loss": best["loss"], "accuracy": best["accuracy"], "points": points}


def trained_on(
    problem: Problem, run: Run, rounded: sensitivity.Rounded, rest: Any
) -> tuple[sensitivity.Rounded, Any]:
    """The rest of a training, on a grid: what it ends in, and what is neither trained nor rounded."""
    method, steps = METHODS[run.method], run.steps
    first = training.last_step(method, steps)
    grid = ggjax.train.on_grid(rounded)

    def optimizer(hyper: methods.Hyper) -> optax.GradientTransformationExtraArgs:
        def learning_rate(count: Any) -> jax.Array:
            left = 1 - count / (steps - first)
            return method.peak * jnp.minimum(left, (count + 1) / WARM_UP) * hyper["learning_rate"]

        return methods.with_schedule(method._replace(muon=False), hyper, learning_rate, steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, keys: jax.Array, hyper: methods.Hyper) -> Any:
        latent, rest, state = carry
        batch = problem.batch(keys[0])
        grads, rest = jax.grad(lambda w: problem.loss(grid.apply(w), rest, batch), has_aux=True)(latent)
        updates, state = optimizer(hyper).update(grads, state, latent)
        return optax.apply_updates(latent, updates), rest, state

    hyper = training.hyper_of(problem, method, run.setting, rounded.params)
    latent, rest = jax.tree.map(jnp.array, (rounded.params, rest))  # donated: the frontier keeps its own
    carry = latent, rest, optimizer(hyper).init(latent)
    for i in range(first, steps):
        carry = step(carry, training.keys_of(run.seed, i), hyper)
    return grid.freeze(carry[0]), carry[1]
