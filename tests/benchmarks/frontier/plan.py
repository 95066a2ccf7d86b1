"""Which settings are tried, how the best of them are chosen, and what is tested.

Every method gets the same number of trials, with seed 0, judged on the validation split by the way of plain
rounding that suits the problem (or the method's own). In this order, so that the first few are a search too:

  1, 2  first weights of a quarter of Glorot's variance, and of all of it, with the first own number
  3, 4  the better of these with the two other own numbers
  5, 6  the best so far with an eighth and a half of the variance
  7, 8  the best so far with weight decay 0.1 and 0.3; of AdamW, with half and twice the learning rate

The score of a trial, the lower the better, is the mean over the rises of the logarithm of its bits, where a
rise that it does not reach counts as ``UNREACHED`` bits. While trials are chosen, rises are those over the best
float loss of the first four trials of Adam.

Then, for every method and way of rounding, the trial with the fewest bits at each rise is trained with fresh
seeds and looked at on the test split. Calibrated rounding is done of the trials that plain rounding chose.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ggjax.app import _measuring
from tests.benchmarks.frontier import rounding
from tests.benchmarks.frontier.methods import METHODS, Run, Setting
from tests.benchmarks.frontier.problems import Problem
from tests.benchmarks.frontier.runs import Bench

UNREACHED = 16.0
MOST_TRIALS = 8
FIRST = 4
"""Trials of Adam that the level is taken from while trials are chosen."""


def main_way(problem: Problem, name: str) -> str:
    """The way of rounding by which trials of a method are chosen."""
    ways = rounding.ways_of(name)
    return problem.plain if "uniform" in ways else ways[0]


def bits(curve: dict[str, Any], problem: Problem, level: float) -> list[float]:
    """Bits at the rises over a loss, infinite where they are not reached.

    They are read from the point of the least loss on, towards fewer bits: finer points are beaten by it on both
    counts. A loss that falls again where bits are fewer counts for nothing, which is luck.
    """
    points = sorted(curve["points"], key=lambda p: -p["bits"])
    points = points[int(np.argmin([p["loss"] for p in points])) :]
    worst, found = max(p["loss"] for p in points), []
    for rise in problem.rises:
        at = (1 + rise) * level
        b = _measuring.bits_at(points, at)
        # Beyond the coarsest point its bits are known to do.
        found.append(b if b is not None else points[-1]["bits"] if at > worst else math.inf)
    return found


def score(curve: dict[str, Any], problem: Problem, level: float) -> float:
    """The mean logarithm of the bits at the rises."""
    return float(np.mean(np.log2(np.minimum(bits(curve, problem, level), UNREACHED))))


def level_of(bench: Bench, steps: int, trials: int = FIRST) -> float:
    """The best float loss of the first trials of Adam on the validation split."""
    return min(_losses(bench, steps, trials))


def best_adam(bench: Bench, steps: int, trials: int) -> Run:
    """The trial of Adam with the best float loss on the validation split."""
    runs = list(tried(bench, "adam", steps, trials))
    return runs[int(np.argmin(_losses(bench, steps, trials)))]


def _losses(bench: Bench, steps: int, trials: int) -> list[float]:
    way = main_way(bench.problem, "adam")
    return [bench.curve(r, way, "validation")["loss"] for r in tried(bench, "adam", steps, trials)]


def tried(bench: Bench, name: str, steps: int, trials: int) -> Iterator[Run]:
    """The trials of a method, each measured before the next is chosen."""
    method, way = METHODS[name], main_way(bench.problem, name)
    first, *others = method.values
    scores: list[tuple[float, Setting]] = []

    def best() -> Setting:
        return min(scores, key=lambda x: x[0])[1]

    for i in range(trials):
        if i < 2:
            setting = Setting(first, variance=(0.25, 1.0)[i])
        elif i < 4:
            setting = best()._replace(own=others[i - 2])
        elif i < 6:
            setting = best()._replace(variance=(0.125, 0.5)[i - 4])
        else:
            change = {"rate": (0.5, 2.0)[i - 6]} if method.tunes == "decay" else {"decay": (0.1, 0.3)[i - 6]}
            setting = best()._replace(**change)
        run = Run(name, setting, 0, steps)
        curve = bench.curve(run, way, "validation")
        if i + 1 < trials:
            # Adam's own first trials come before there is a level: its settings are chosen by the float loss.
            if name == "adam":
                value = curve["loss"]
            else:
                value = score(curve, bench.problem, level_of(bench, steps, min(FIRST, trials)))
            scores.append((value, setting))
        yield run


def chosen(bench: Bench, name: str, way: str, steps: int, trials: int) -> list[Run]:
    """For every rise the trial with the fewest bits on the validation split, by a way of plain rounding."""
    runs = list(tried(bench, name, steps, trials))
    level = min(_losses(bench, steps, trials))
    by = main_way(bench.problem, name) if way == "calibrated" else way
    table = np.array([bits(bench.curve(r, by, "validation"), bench.problem, level) for r in runs])
    return [runs[i] for i in np.argmin(table, 0)]


def ways_of(name: str) -> tuple[str, ...]:
    """All ways of rounding that a method is measured by: weights that go on to a grid are calibrated there."""
    plain = rounding.ways_of(name)
    return plain if METHODS[name].grid else (*plain, "calibrated")


def factorial(steps: int) -> Iterator[Run]:
    """The experiment of arms: first weights of two laws and four variances, and seven ways to train."""
    for nu in (2.0, 1.0):
        for variance in (1.0, 0.5, 0.25, 0.125):
            for name in ("adam", "adamw", "backslash", "backslash_1", "backslash_2"):
                for own in METHODS[name].values if name == "adamw" else METHODS[name].values[:1]:
                    yield Run(name, Setting(own, variance=variance, nu=nu), 0, steps)
