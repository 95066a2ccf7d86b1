"""Frontiers: bits against what they cost, at steps that grow until the cost is as high as it is asked for."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.calibrated.subject import Quality, Subject

Point = dict[str, Any]
"""The quality of a rounding, with its "bits" and "constant"."""

MOST_POINTS = 16
RATIO = 2.0**0.4
"""Of the steps of a point to those of the one before."""


class Judge(NamedTuple):
    """How a subject's roundings are compared."""

    cost: Callable[[Quality], float]  # what grows with the steps
    range: tuple[float, float]  # of the cost that the frontier must cover
    unit: float  # how much of what the sensitivity predicts is a cost of 1


def judge_of(subject: Subject) -> Judge:
    """Logits: the divergence as a share of the float loss on validation data. Values: noise to signal."""
    if subject.output == "logits":
        loss = subject.quality(subject.params, "validation")["loss"]
        return Judge(lambda q: q["kl"] / loss, (0.004, 0.06), loss * subject.share)
    power, examples = 0.0, 0
    apply = jax.jit(subject.apply)
    for batch in subject.batches(8):
        out = apply(subject.params, batch)
        power += float(jnp.square(out).sum())
        examples += len(out)
    # Half the squared error of an example, where the noise is as strong as the signal.
    return Judge(lambda q: 10 ** (-q["snr_db"] / 10), (0.004, 0.25), power / examples / 2)


def walk(point: Callable[[float], Point], judge: Judge, start: float, ratio: float = RATIO) -> list[Point]:
    """Points from the lowest cost that is asked for to the highest, by constants that grow by a ratio."""
    found = {0: point(start)}

    def covered(k: int, step: int) -> bool:
        cost = judge.cost(found[k])
        stuck = k - step in found and found[k]["bits"] == found[k - step]["bits"]
        low, high = judge.range
        return stuck or (cost <= low if step < 0 else cost >= high) or not math.isfinite(cost)

    for step in (-1, 1):
        k = 0
        while not covered(k, step) and len(found) < MOST_POINTS:
            k += step
            found[k] = point(start * ratio**k)
    return [found[k] for k in sorted(found)]


def bits_at(points: Iterable[Point], cost: Callable[[Point], float], target: float) -> float:
    """The fewest bits at which the cost is the target: linear in its logarithm between measured points.

    Where a point of more bits costs more than one of fewer bits, the dearer one counts for both. NaN where the
    points do not reach so far.
    """
    known = sorted((p["bits"], cost(p)) for p in points)
    bits = [b for b, _ in known]
    costs = np.maximum.accumulate([c for _, c in reversed(known)])[::-1]  # seen from the most bits down
    for i in range(len(bits) - 1, 0, -1):
        low, high = costs[i], costs[i - 1]
        if low <= target < high:
            share = math.log(target / max(low, 1e-12)) / math.log(high / max(low, 1e-12))
            return bits[i] + share * (bits[i - 1] - bits[i])
    return math.nan


def bits_at_all(
    points: Sequence[Point], cost: Callable[[Point], float], targets: Iterable[float]
) -> list[float]:
    """The same of several targets."""
    return [bits_at(points, cost, t) for t in targets]
