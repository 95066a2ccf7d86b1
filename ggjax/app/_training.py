"""The demo's trainings: what is trained, for how long, and by which optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ggjax
from ggjax import gennorm, rate
from ggjax.app import _lm
from ggjax.app._progress import Report

FINE, MIDDLE = 2.0**-13, 2.0**-8
"""Two of the quantization steps of the table; the finer one is DeepShape's grid too."""


class Settings(NamedTuple):
    """The size of a run. Two runs with the same settings on one machine give the same numbers."""

    steps: int = 2400  # of each of the two trainings
    post_steps: int = 300  # after DeepShape
    batch: int = 16
    context: int = 64  # bytes
    test_windows: int = 1024  # of `context` bytes
    width: int = 128
    depth: int = 3
    heads: int = 4
    learning_rate: float = 2e-3  # at its peak
    gg_shape: float = 2.0  # nu of the init of both trainings: Gaussian
    xi: float = 0.25  # its variance, as a share of Glorot's: chosen for plain Adam by tests/benchmarks/arms.py
    strength: float = 0.02  # of BackSlash, chosen likewise
    fine_tune: float = 0.3  # the share of the steps, at the end, that run without BackSlash
    post_learning_rate: float = 1e-4
    calibrated: int = 4  # points of the frontier of each calibrated model, at most so many
    seed: int = 0


FULL = Settings()
QUICK = Settings(  # a stronger pull, as there are few steps
    steps=200, post_steps=40, test_windows=128, strength=0.12, calibrated=3
)


def train_all(text: _lm.Text, s: Settings, report: Report) -> dict[str, Any]:
    """The parameters of the four models of the table, by name."""
    model, models = model_of(s), {}
    models["adam"] = train(model, adam(s), _lm.init(model, s.seed), text, s, s.steps, report, "Adam")
    tx = adam_backslash(s)
    models["backslash"] = train(model, tx, _lm.init(model, s.seed), text, s, s.steps, report, "BackSlash")

    models["deepshape"], _ = ggjax.deepshape(models["backslash"], step=FINE)
    tx = optax.adam(optax.cosine_decay_schedule(s.post_learning_rate, s.post_steps))
    start = jax.tree.map(jnp.copy, models["deepshape"])  # training consumes what it is given
    post = train(model, tx, start, text, s, s.post_steps, report, "post-training", batches=1)
    models["post_trained"] = post
    return models


def model_of(s: Settings) -> _lm.Model:
    """The model of both trainings, with the initializer that they share."""
    init = ggjax.gg_init(shape=s.gg_shape, xi=s.xi, mode="fan_avg")
    return _lm.Model(width=s.width, depth=s.depth, heads=s.heads, kernel_init=init)


def schedule(s: Settings) -> optax.Schedule:
    """The learning rate of both trainings: a short rise, then a cosine to 0."""
    return optax.warmup_cosine_decay_schedule(0.0, s.learning_rate, min(100, s.steps // 10), s.steps)


def adam(s: Settings) -> optax.GradientTransformationExtraArgs:
    """The optimizer of the first training."""
    return optax.with_extra_args_support(optax.adam(schedule(s)))


def adam_backslash(s: Settings) -> optax.GradientTransformationExtraArgs:
    """The optimizer of the second training: BackSlash after Adam, and off while fine-tuning at the end."""
    backslash = ggjax.backslash(
        strength=s.strength, learning_rate=until_fine_tuning(schedule(s), s), clamp=True
    )
    return optax.chain(optax.adam(schedule(s)), backslash)


def until_fine_tuning(learning_rate: optax.Schedule, s: Settings) -> optax.Schedule:
    """The learning rate as BackSlash sees it: 0 in the last steps, which are plain fine-tuning."""
    last = round((1 - s.fine_tune) * s.steps)
    return lambda count: jnp.where(jnp.asarray(count) < last, learning_rate(count), 0.0)


def train(
    model: _lm.Model,
    tx: optax.GradientTransformationExtraArgs,
    params: Any,
    text: _lm.Text,
    s: Settings,
    steps: int,
    report: Report,
    stage: str,
    *,
    batches: int = 0,
) -> Any:
    """Train for a number of steps, reporting about every second; consumes ``params``.

    Which bytes each step sees depends on the seed, and on ``batches``, the number of the series of batches.
    """
    state = tx.init(params)
    key = jax.random.fold_in(jax.random.key(s.seed), batches)
    done = 0
    while done < steps:
        goal = min(done + 50, steps)
        sizes = {"batch": s.batch, "context": s.context}
        params, state, loss = _lm.train_steps(model, tx, params, state, text.train, key, done, goal, **sizes)
        done = goal
        bits = rate.bits(params, MIDDLE)
        report(stage, done, loss=float(loss) / np.log(2), nu=float(gennorm.fit(params).nu), bits=float(bits))
    return params


def size(params: Any) -> int:
    """How many parameters there are."""
    return sum(x.size for x in jax.tree.leaves(params))
