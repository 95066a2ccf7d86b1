"""The ways to train that are compared, and what is tried of each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import ggjax
from ggjax import baselines
from ggjax.baselines import Reparameterization
from tests.benchmarks.frontier.loop import in_the_loop

FINE_TUNE = 0.3
"""The share of a training, at its end, without BackSlash, as in ``ggjax demo``."""


class Setting(NamedTuple):
    """What can be tuned of a training."""

    own: float  # the method's own number: see Method.values
    variance: float = 0.25  # of the first weights, as a share of Glorot's
    decay: float = 0.0  # weight decay, decoupled, in units of the learning rate
    rate: float = 1.0  # the learning rate, as a share of the problem's
    nu: float = 2.0  # the shape of the law of the first weights


class Run(NamedTuple):
    """What a training depends on, but for the problem."""

    method: str  # a name of METHODS
    setting: Setting
    seed: int
    steps: int


Hyper = dict[str, Any]
"""A setting as traced numbers, with "learning_rate" and for target rates "step"."""

After = Callable[[Hyper, optax.Schedule, int], optax.GradientTransformationExtraArgs]


class Method(NamedTuple):
    """A way to train."""

    title: str
    values: tuple[float, float, float]  # of its own number, the one that is tried first in front
    tunes: str = ""  # the field of a setting that its own number stands for, if it is one of them
    after: After | None = None  # what comes after the optimizer
    form: Callable[[float], Reparameterization] | None = None  # how weights are rounded in the forward pass
    fixed_form: bool = True  # whether the form is the same for every own number, which then weighs its rate
    side: float = 1.0  # learning rate of steps, lengths and priors, in those of the weights
    bitwave: bool = False
    target: bool = False  # whether its own number is a number of bits that is asked for
    muon: bool = False  # whether Muon comes before it, where all others have Adam
    grid: float = 0.0  # the share of the training, at its end, that is left for the grid of calibrated rounding
    peak: float = 0.5  # the learning rate that the grid begins with, as a share of the training's peak


def _backslash(
    hyper: Hyper, schedule: optax.Schedule, steps: int, nu: float | None = None, alone: float = FINE_TUNE
) -> Any:
    last = round((1 - alone) * steps)
    pulled = lambda count: jnp.where(count < last, schedule(count), 0.0)  # noqa: E731
    return ggjax.backslash(strength=hyper["own"], learning_rate=pulled, clamp=True, gg_shape=nu)


_backslash_to_the_end = functools.partial(_backslash, alone=0.0)
"""Where the grid follows: the pull goes on there."""


def _to_rate(hyper: Hyper, schedule: optax.Schedule, steps: int) -> Any:
    del steps
    return ggjax.backslash_to_rate(hyper["own"], hyper["step"], learning_rate=schedule)


STRENGTHS = (0.03, 0.1, 0.01)
"""Of BackSlash, in units of the learning rate."""

RATES = (0.03, 0.1, 0.01)
"""Weights of a rate in bits per weight, as shares of the problem's unit of loss."""

METHODS = {
    "adam": Method("Adam", (1.0, 0.5, 2.0), tunes="rate"),
    "adamw": Method("AdamW", (0.1, 0.3, 1.0), tunes="decay"),
    "backslash": Method("BackSlash, nu fitted", STRENGTHS, after=_backslash),
    "backslash_1": Method("BackSlash, nu = 1", STRENGTHS, after=lambda h, r, n: _backslash(h, r, n, 1.0)),
    "backslash_2": Method("BackSlash, nu = 2", STRENGTHS, after=lambda h, r, n: _backslash(h, r, n, 2.0)),
    "on_grid": Method(
        "BackSlash, then on the grid",
        (0.01, 0.03, 0.003),  # weaker than STRENGTHS: no stretch without a pull follows
        after=_backslash_to_the_end,
        grid=1 / 6,
    ),
    "muon": Method("Muon", (1.0, 0.5, 2.0), tunes="rate", muon=True),
    "muon_backslash": Method("Muon and BackSlash", STRENGTHS, after=_backslash, muon=True),
    "muon_on_grid": Method(
        "Muon and BackSlash, then on the grid",
        (0.1, 0.06, 0.03),  # after Muon more of it is borne
        after=_backslash_to_the_end,
        grid=1 / 6,
        peak=1.0,
        muon=True,
    ),
    "to_rate": Method("backslash_to_rate", (2.0, 1.5, 3.0), after=_to_rate, target=True),
    "epr": Method("EPR, logistic prior", RATES, form=lambda _: baselines.epr(), side=5.0),
    "epr_gg": Method("EPR, GG prior", RATES, form=lambda _: baselines.epr(prior="gg"), side=5.0),
    "fast_epr": Method("FastEPR", RATES, form=lambda _: baselines.epr(prior="log_penalty"), side=5.0),
    "bitpruning": Method("BitPruning", RATES, form=lambda _: baselines.learned_bits("uniform"), side=25.0),
    "quantum": Method(
        "Quantum Mantissa and Exponent",
        RATES,
        form=lambda _: baselines.learned_bits("float", start=(7.0, 5.0)),
        side=25.0,
    ),
    "loop": Method("rounding in the loop", RATES, form=lambda _: in_the_loop(), side=5.0),
    "loop_noise": Method("the same, noise for rounding", RATES, form=lambda _: in_the_loop("noise"), side=5.0),
    "loop_unseen": Method(
        "the same, weights seen unrounded, steps fixed",
        RATES,
        form=lambda _: in_the_loop("none", trained_steps=False),
    ),
    "loop_fixed": Method("the same, steps fixed", RATES, form=lambda _: in_the_loop(trained_steps=False)),
    "quest": Method("QuEST", (3.0, 4.0, 2.0), form=lambda b: baselines.quest(int(b)), fixed_form=False),
    "bitwave": Method("BitWave", (0.02, 0.0, 0.05), bitwave=True),
}


def optimizer(method: Method, hyper: Hyper, steps: int) -> optax.GradientTransformationExtraArgs:
    """Adam or Muon with decoupled weight decay on the kernels, and what the method has after it; under jit."""
    schedule = shape_of(steps)
    return with_schedule(
        method, hyper, lambda count: jnp.asarray(schedule(count)) * hyper["learning_rate"], steps
    )


def shape_of(steps: int) -> optax.Schedule:
    """The learning rate of a training as a share of its peak: a short warm-up, then a cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, max(min(100, steps // 10), 1), steps)


def with_schedule(
    method: Method, hyper: Hyper, learning_rate: optax.Schedule, steps: int
) -> optax.GradientTransformationExtraArgs:
    """The same with a learning rate of one's own."""
    parts = [
        _scale_by_muon() if method.muon else optax.scale_by_adam(),
        optax.add_decayed_weights(hyper["decay"], mask=ggjax.masks.kernels),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if method.after is not None:
        parts.append(method.after(hyper, learning_rate, steps))
    return optax.with_extra_args_support(optax.chain(*parts))


OUTER = ("embed", "head", "Conv_0", "Dense_0")
"""The first and the last layers, which Muon leaves to Adam."""


def _scale_by_muon() -> optax.GradientTransformation:
    """Muon (https://kellerjordan.github.io/posts/muon) for the kernels between the outer layers, else Adam.

    Updates are as large as is usual where both share a learning rate (arXiv 2502.16982: a root mean square of
    0.2), times two: after 600 steps of the language model that is better than one or four times.
    """

    def numbers(path: Any, x: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if x.ndim < 2 or any(name in jax.tree_util.keystr(path) for name in OUTER):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    muon = optax.contrib.muon(
        1.0,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(numbers, params),
    )
    return optax.chain(muon, optax.scale(-2.0))  # the sign: what comes after turns it again
