"""The search for the constant of a tree: levels of so many bits, or of so large a rise of the loss."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees
from ggjax.sensitivity import _counting, _plans
from ggjax.sensitivity._levels import Levels, round_leaf, spread_of
from ggjax.sensitivity._predict import rise
from ggjax.sensitivity._state import HALVES, Factors, Sensitivity, leaf_of

DAMPING = 1.0

CAP = 1.5
CAPS = (1, 2, 4)
"""No step is larger than this many standard deviations of its leaf, or than these multiples: a larger one would
erase whole rows that few examples happened to touch, a smaller one spends bits on rows that do not matter."""

MIN_SIZE = 256
"""``codec.compress`` does not round smaller leaves: their steps and tables would take more than that saves."""

TRIES = 12
"""Roundings of the whole tree at most, to come within TOLERANCE of what is asked."""

TOLERANCE = 0.005
NEAR = 0.25
"""How far, in bits or in doublings of the rise, the best of the tries may lie from what is asked: at few bits
both jump, as whole rows become zero."""

MOST = 4.0
"""No measurement corrects a prediction by a larger factor."""

BOTH, FIRST = slice(None), slice(0, 1)
TINY = 1e-6
"""A constant at which steps are so fine that they do not depend on the weights."""

GRAIN = 512
"""Constants are powers of 2^(1/512): a sum that a device rounds otherwise seldom leads to another one."""


class Planned(NamedTuple):
    """Leaves that are to be rounded, and how."""

    leaves: dict[str, Any]
    factors: dict[str, Factors]
    examples: np.ndarray  # of both halves of the gradients
    spreads: dict[str, Any]  # of the matrices of the leaves
    measured: Any  # what was measured of trial roundings, as the state has it
    damping: float
    sides: _plans.Sides = "both"

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(x.size for x in self.leaves.values())


class Found(NamedTuple):
    """Levels, and what gave them."""

    levels: dict[str, Levels]
    rises: dict[str, float]  # predicted, of every leaf
    known: Planned  # with the plans that were followed
    cap: float
    constant: float


def planned(leaves: dict[str, Any], state: Sensitivity, damping: float = DAMPING) -> Planned:
    """What is to be known of some leaves, by name. ValueError as ``round_to`` has it."""
    examples = checked(leaves, state)
    factors = {n: state.factors[n] for n in leaves}
    spreads = {n: spread_of(x, factors[n].view) for n, x in leaves.items()}
    return Planned(leaves, factors, examples, spreads, state.measured, damping)


def checked(leaves: dict[str, Any], state: Sensitivity) -> np.ndarray:
    """How many examples each half of the state is a sum over, if it covers the leaves and these are finite."""
    trees.check_finite(list(leaves), list(leaves.values()))
    for name in leaves:
        if name not in state.factors:
            raise ValueError(f"leaf {name!r} is not in the sensitivity, which has {len(state.factors)} leaves")
        leaf_of(leaves, name, state.factors[name].view, "params")
    examples = np.asarray(state.examples)
    if not examples.all():
        raise ValueError(
            "the sensitivity knows too few gradients: expected two updates or more, one for each half"
        )
    return examples


def to_bits(known: Planned, asked: float, *, cap: float = CAP) -> Found:
    """The levels of so many bits per weight, by the plan and the cap that should cost least.

    ValueError where no step gives so few.
    """
    start = 2.0 ** (1 - asked) * typical(known)
    found = _of_all_ways(known, lambda k, c: bits_again(k, asked, cap=c, start=start), cap, "bits", asked)
    return min(found, key=lambda f: sum(f.rises.values()))


def bits_again(known: Planned, asked: float, *, cap: float, start: float) -> tuple[float, float, float]:
    """(how far it is from what is asked, the constant, the bits per weight) of one plan and cap."""

    def bits(constant: float) -> float:
        return _counting.bits_of(rounded(known, constant, cap)) / known.size

    return _nearest(bits, start, asked, slope=-1.0)


def to_rise(known: Planned, asked: float, *, cap: float = CAP) -> Found:
    """The levels whose predicted rise is so large, by the plan and the cap that take the fewest bits.

    ValueError where no step costs so much.
    """
    start = math.sqrt(24 * asked / known.size)  # every weight adds step^2 / 24 at high rates

    def rise_again(known: Planned, cap: float) -> tuple[float, float, float]:
        return _nearest(lambda c: sum(_rises(known, c, cap).values()), start, asked, slope=2.0)

    found = _of_all_ways(known, rise_again, cap, "loss_rise", asked)
    return min(found, key=lambda f: _counting.bits_of(f.levels))


def near(found: Found, asked: float) -> Found:
    """The levels of another predicted rise, by the plan and the cap of others."""

    def total(constant: float) -> float:
        return sum(_rises(found.known, constant, found.cap).values())

    start = found.constant * math.sqrt(asked / max(sum(found.rises.values()), 1e-30))
    return at(found.known, found.cap, _nearest(total, start, asked, slope=2.0)[1])


def at(known: Planned, cap: float, constant: float) -> Found:
    """The levels of a plan, a cap and a constant."""
    levels = rounded(known, constant, cap)
    return Found(levels, _rises(known, constant, cap), known, cap, constant)


def _of_all_ways(
    known: Planned,
    nearest: Callable[[Planned, float], tuple[float, float, float]],
    cap: float,
    name: str,
    asked: float,
) -> list[Found]:
    """What comes near enough to what is asked, of every cap, and of one step for all."""
    ways = [(known, c * cap) for c in CAPS]
    # The trial roundings followed the factors; one step for all does not, and costs about what is predicted.
    ways.append((known._replace(sides="none", measured=known.measured[:0]), CAPS[-1] * cap))
    tried = [(nearest(*way), way) for way in ways]
    found = [at(*way, constant) for (miss, constant, _), way in tried if miss <= NEAR]
    if not found:
        value = min(tried, key=lambda t: t[0][0])[0][2]
        raise ValueError(f"{name}={asked!r} cannot be reached: the nearest is {value:.4g}")
    return found


def _rises(known: Planned, constant: float, cap: float) -> dict[str, float]:
    """The predicted rise of every leaf.

    Levels by the first half of the gradients cost more by the second half (``unseen``) than by the first
    (``seen``), whose noise they follow; levels by both halves, of which twice as much is known, cost less than
    the one and more than the mean of the two. Three quarters of the way in the logarithm are close to what is
    measured. What was measured of other roundings corrects it.
    """
    errors = changes(known, rounded(known, constant, cap, FIRST))
    unseen, seen = (rises_of(known, errors, half) for half in (1, 0))
    factor = correction(known.measured, sum(unseen.values()))
    return {n: factor * max(u**0.75 * seen[n] ** 0.25, (u + seen[n]) / 2) for n, u in unseen.items()}


def changes(known: Planned, levels: dict[str, Levels]) -> dict[str, Any]:
    """What rounding adds to every leaf."""
    return {n: trees.wide(q.values) - trees.wide(known.leaves[n]) for n, q in levels.items()}


def rises_of(known: Planned, errors: dict[str, Any], half: int) -> dict[str, float]:
    """The predicted rise of every leaf, by one half of the gradients."""
    rises = {n: rise(known.factors[n], e, slice(half, half + 1)) for n, e in errors.items()}
    return {n: max(float(r), 0.0) / float(known.examples[half]) for n, r in rises.items()}


def correction(measured: Any, predicted: float) -> float:
    """The factor from a predicted rise to what should be measured: that of the trial roundings nearby."""
    found = np.asarray(measured, np.float64)
    if not len(found) or predicted <= 0:
        return 1.0
    ratios = np.clip(np.log(found[:, 1] / found[:, 0]), -math.log(MOST), math.log(MOST))
    return float(np.exp(np.interp(math.log(predicted), np.log(found[:, 0]), ratios)))


def rounded(known: Planned, constant: float, cap: float, which: slice = BOTH) -> dict[str, Levels]:
    """The levels by a constant and a cap, from both halves of the gradients or the first."""
    found = {}
    for n, x in known.leaves.items():
        f = known.factors[n]
        found[n] = round_leaf(x, plan_of(known, n, constant, which), cap, f.view)
    return found


def plan_of(known: Planned, name: str, constant: float, which: slice = BOTH) -> _plans.Plan:
    """The plan for a leaf."""
    used = np.zeros(HALVES, np.float32)
    used[which] = known.examples[which]
    return _plans.plan(
        known.factors[name], used, constant, known.spreads[name], known.damping, sides=known.sides
    )


def typical(known: Planned) -> float:
    """The constant at which steps are about a standard deviation, by the geometric mean over all weights."""
    logs = [
        x.size
        * math.log2(
            max(float(jnp.std(trees.wide(x))), 1e-30) / min(float(plan_of(known, n, TINY).step) / TINY, 1e30)
        )
        for n, x in known.leaves.items()
    ]
    return 2.0 ** (sum(logs) / known.size)


def _nearest(
    f: Callable[[float], float], start: float, asked: float, *, slope: float
) -> tuple[float, float, float]:
    """(how far the best is from what is asked, the constant there, f there), by steps in the logarithms.

    f is about a power of the constant (the rise), or falls by one with every doubling of it (bits).
    """
    low = high = None  # constants known to give too little rise (too many bits), and too much
    constant = 2.0 ** (round(math.log2(start) * GRAIN) / GRAIN)
    best, last = (math.inf, constant, 0.0), math.nan
    for _ in range(TRIES):
        value = f(constant)
        miss = math.log2(max(value, 1e-30) / asked) if slope > 0 else value - asked
        if abs(miss) < best[0]:
            best = (abs(miss), constant, value)
        if abs(value / asked - 1) <= TOLERANCE:
            break
        too_coarse = miss * slope > 0
        low, high = (low, constant) if too_coarse else (constant, high)
        if high is None and value == last:
            break  # the cap holds it
        last = value
        constant *= 2.0 ** (round(max(min(-miss / slope, 4), -4) * GRAIN) / GRAIN)
        if low is not None and high is not None and not low < constant < high:
            constant = low * 2.0 ** (round(math.log2(high / low) * GRAIN / 2) / GRAIN)
        if constant in (low, high):
            break
    return best
