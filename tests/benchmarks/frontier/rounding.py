"""The ways to round a trained model, and the frontier of each: bits against loss as steps grow.

Bits are those of the codec (rANS), per weight of the kernels: coded levels with their tables, and what a file
needs beside them. The other leaves, which every way keeps as they are, do not count. A kernel of fewer than
1024 weights counts 32 bits a weight.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ggjax
from ggjax import baselines, masks, sensitivity
from ggjax._internal import trees
from ggjax.baselines import Frozen
from tests.benchmarks.calibrated import arms as calibrated_arms
from tests.benchmarks.calibrated import measure
from tests.benchmarks.calibrated.subject import Subject, bits_per_weight
from tests.benchmarks.frontier.loop import LoopLatent
from tests.benchmarks.frontier.methods import METHODS, Method
from tests.benchmarks.frontier.problems import Problem, Split, kernels_of
from tests.benchmarks.frontier.training import Trained, form_of, weights_of

WAYS = {
    "uniform": "one step for all",
    "leaf": "a step for each leaf",
    "own": "as the method rounds",
    "calibrated": "calibrated",
    "grid": "calibrated, then trained on its grid",
    "power_quant": "PowerQuant",
    "gg_compand": "GG compander",
    "mse_clip": "grid of least squared error",
    "entquant": "EntQuant",
}
DATA_FREE = ("power_quant", "gg_compand", "mse_clip", "entquant")
"""Kin that only round; the weights are those of Adam."""

BATCHES = 10
"""To calibrate on."""

MOST_BITS = 8


def ways_of(name: str) -> tuple[str, ...]:
    """The ways to round the weights of a method, but for calibrated rounding of what it ends in."""
    if METHODS[name].grid:
        return ("grid",)
    if METHODS[name].form is not None or METHODS[name].bitwave:
        return ("own",)
    return ("uniform", "leaf", *DATA_FREE) if name == "adam" else ("uniform", "leaf")


def frontier(problem: Problem, name: str, own: float, trained: Trained, way: str, split: Split) -> Any:
    """{"loss", "accuracy", "points"} of one model, each point with "bits", "loss" and "accuracy".

    Steps grow from where the loss has hardly risen to where it has risen by ``problem.worst``.
    """
    params = weights_of(trained.latent, METHODS[name])
    whole = problem.judge(params, trained.rest, split)
    if way == "own":  # what was trained is the rounded network
        start = _own(METHODS[name], own, trained)(1.0)[0]
        whole = min(whole, problem.judge(start, trained.rest, split), key=lambda q: q["loss"])
    judge = measure.Judge(lambda q: q["loss"] / whole["loss"] - 1, (0.003, problem.worst), 1.0)
    rounded, first, ratio = _rounding(problem, name, own, trained, way)
    known: dict[float, Any] = {}

    def point(constant: float) -> measure.Point:
        weights, bits = rounded(constant)
        if bits not in known:  # whole numbers of bits end somewhere
            known[bits] = {"bits": bits, **problem.judge(weights, trained.rest, split)}
        return known[bits]

    points = measure.walk(point, judge, first, ratio)
    return whole | {"points": [p for i, p in enumerate(points) if p not in points[:i]]}


Rounding = Callable[[float], tuple[Any, float]]
"""From a number that makes steps coarser to weights and their bits."""


def _rounding(
    problem: Problem, name: str, own: float, trained: Trained, way: str
) -> tuple[Rounding, float, float]:
    """(the rounding, its first constant, the ratio of constants)."""
    params = weights_of(trained.latent, METHODS[name])
    kernels = kernels_of(params)
    if way == "own":
        bit_by_bit = name in ("quest", "bitpruning", "quantum", "bitwave")
        return _own(METHODS[name], own, trained), 1.0, 2.0 if bit_by_bit else measure.RATIO
    if way == "uniform":
        spread = float(np.sqrt(np.mean(np.concatenate([np.ravel(x) for x in kernels.values()]) ** 2)))
        return lambda c: _plain(params, step=c), 0.3 * spread, measure.RATIO
    if way == "leaf":
        return lambda c: _plain(params, step_per_std=c), 0.3, measure.RATIO
    if way == "calibrated":
        return _calibrated(problem, params, trained.rest)
    if way == "entquant":
        return lambda c: coded(baselines.entquant(params, c)), 0.03, 2.0
    kin = {"power_quant": baselines.power_quant, "gg_compand": baselines.gg_compand, "mse_clip": _mse_clip}[way]
    return lambda c: coded(kin(params, _whole(c, 2))), 2.0**-4, 2.0


def _whole(constant: float, least: int) -> int:
    return int(np.clip(round(-float(np.log2(constant))), least, MOST_BITS))


def _mse_clip(params: Any, bits: int) -> Frozen:
    method = baselines.quest(bits, nu=None)
    return method.freeze(method.init(params))


def _plain(params: Any, **asked: Any) -> tuple[Any, float]:
    small = ggjax.compress(params, mask=masks.kernels, **asked)
    return ggjax.decompress(small), bits_of(params, small)


def bits_of(params: Any, small: ggjax.Compressed, side_bits: float = 0.0) -> float:
    return bits_per_weight(small, {n: x.size for n, x in kernels_of(params).items()}, side_bits)


def coded(frozen: Frozen) -> tuple[Any, float]:
    """Weights and their bits: levels as the codec takes them, and the side information."""
    levels = jax.tree.map(lambda q: jnp.asarray(q, jnp.float32), frozen.levels)
    small = ggjax.compress(levels, step=1.0, mask=None)
    return frozen.weights, bits_of(levels, small, frozen.side_bits)


def _own(method: Method, own: float, trained: Trained) -> Rounding:
    """The grid of the method, made coarser: steps times a constant, or as many bits fewer."""
    latent = trained.latent
    if method.bitwave:
        lengths = {n: jnp.full(1, trained.told["bits"], jnp.float32) for n in kernels_of(latent)}
        flat = trees.flatten(latent, masks.kernels)
        rows = flat._replace(leaves=[None] * len(flat.leaves)).with_named(lengths)
        latent, form = baselines.BitsLatent(latent, rows), baselines.learned_bits("mantissa")
    else:
        form = form_of(method, own)
        assert form is not None

    def at(constant: float) -> tuple[Any, float]:
        log = float(np.log(constant))
        if isinstance(latent, (baselines.EPRLatent, LoopLatent)):
            changed = latent._replace(log_steps=jax.tree.map(lambda s: s + log, latent.log_steps))
            return coded(form.freeze(changed))
        if isinstance(latent, baselines.BitsLatent):
            fewer = log / float(np.log(2))
            return coded(
                form.freeze(latent._replace(lengths=jax.tree.map(lambda n: n - fewer, latent.lengths)))
            )
        other = baselines.quest(_whole(constant * 2.0**-own, 1))
        return coded(other.freeze(latent))

    return at


def known_of(problem: Problem, params: Any, rest: Any, *, trials: bool = True) -> sensitivity.Sensitivity:
    """The sensitivity of the kernels, of ``BATCHES`` batches."""
    return sensitivity.estimate(
        lambda weights, inputs: problem.apply(weights, rest, inputs),
        params,
        problem.inputs(BATCHES),
        key=jax.random.key(0),
        mask=masks.kernels(params),
        trials=trials,
    )


def _calibrated(problem: Problem, params: Any, rest: Any) -> tuple[Rounding, float, float]:
    """Feedback on both sides and steps of rows and columns, as ``compress`` has it for a sensitivity."""

    def apply(weights: Any, inputs: Any) -> jax.Array:
        return problem.apply(weights, rest, inputs)

    known, mask = known_of(problem, params, rest), masks.kernels(params)
    subject = Subject(problem.name, params, apply, "logits", problem.inputs, lambda *_: {}, mask)
    both = calibrated_arms.calibrated(subject, "both", known)

    def at(constant: float) -> tuple[Any, float]:
        found = both(constant)
        return found.params, found.bits

    return at, calibrated_arms.start_of(subject, 0.01 * problem.unit), measure.RATIO
