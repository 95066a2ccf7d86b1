"""The search for the constant of a tree: levels of so many bits, or of so large a rise of the loss."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ggjax.sensitivity import _counting
from ggjax.sensitivity._levels import Levels
from ggjax.sensitivity._planned import FIRST, SECOND, Planned, changes, rises_of, rounded, typical
from ggjax.sensitivity._tuning import tuned

CAP = 4.0
"""No step is larger than this many standard deviations of its matrix."""

MIN_SIZE = 256
"""``codec.compress`` does not round smaller leaves: their steps and tables would take more than that saves."""

TRIES = 12
"""Roundings of the whole tree at most, to come within TOLERANCE of what is asked."""

TOLERANCE = 0.005
NEAR = 0.25
"""How far, in bits or in doublings of the rise, the best of the tries may lie from what is asked: at few bits
both jump, as whole rows become zero."""

FLATTERY = 2 / 3
"""Of the logarithm of what rises by the other half are larger, how much levels by both halves have of it."""

MOST = 4.0
"""No measurement corrects a prediction by a larger factor."""

GRAIN = 512
"""Constants are powers of 2^(1/512): a sum that a device rounds otherwise seldom leads to another one."""


class Found(NamedTuple):
    """Levels, and what gave them."""

    levels: dict[str, Levels]
    rises: dict[str, float]  # predicted, of every leaf
    known: Planned  # with the plans that were followed
    cap: float
    constant: float


def to_bits(known: Planned, asked: float, *, cap: float = CAP) -> Found:
    """The levels of so many bits per weight, with feedback or of one step, by what should cost less.

    ValueError where no step gives so few.
    """
    start = 2.0 ** (1 - asked) * typical(known)
    known = tuned(known, start, cap)
    found = _of_both_ways(known, lambda k: bits_again(k, asked, cap=cap, start=start), cap, "bits", asked)
    return min(found, key=lambda f: sum(f.rises.values()))


def bits_again(known: Planned, asked: float, *, cap: float, start: float) -> tuple[float, float, float]:
    """(how far it is from what is asked, the constant, the bits per weight) of one plan and cap."""

    def bits(constant: float) -> float:
        return _counting.bits_of(rounded(known, constant, cap)) / known.size

    return _nearest(bits, start, asked, slope=-1.0)


def to_rise(known: Planned, asked: float, *, cap: float = CAP) -> Found:
    """The levels whose predicted rise is so large, with feedback or of one step, by what takes fewer bits.

    ValueError where no step costs so much.
    """
    start = math.sqrt(24 * asked / known.size)  # every weight adds step^2 / 24 at high rates
    known = tuned(known, start, cap)

    def rise_again(known: Planned) -> tuple[float, float, float]:
        return _nearest(lambda c: rise_of(known, c, cap), start, asked, slope=2.0)

    found = _of_both_ways(known, rise_again, cap, "loss_rise", asked)
    return min(found, key=lambda f: _counting.bits_of(f.levels))


def rise_of(known: Planned, constant: float, cap: float) -> float:
    """The predicted rise of a constant, in all."""
    return sum(at(known, cap, constant).rises.values())


def near(found: Found, asked: float) -> Found:
    """The levels of another predicted rise, by the plan and the cap of others."""

    def again(constant: float) -> float:
        return rise_of(found.known, constant, found.cap)

    start = found.constant * math.sqrt(asked / max(sum(found.rises.values()), 1e-30))
    return at(found.known, found.cap, _nearest(again, start, asked, slope=2.0)[1])


def at(known: Planned, cap: float, constant: float) -> Found:
    """The levels of a plan, a cap and a constant."""
    levels = rounded(known, constant, cap)
    return Found(levels, _rises(known, constant, cap, levels), known, cap, constant)


def _of_both_ways(
    known: Planned,
    nearest: Callable[[Planned], tuple[float, float, float]],
    cap: float,
    name: str,
    asked: float,
) -> list[Found]:
    """What comes near enough to what is asked, of rounding by the sensitivity and of one step for all."""
    # The trial roundings followed the factors; one step for all does not, and costs about what is predicted.
    ways = [known, known._replace(sides="none", measured=known.measured[:0])]
    tried = [(nearest(way), way) for way in ways]
    found = [at(way, cap, constant) for (miss, constant, _), way in tried if miss <= NEAR]
    if not found:
        value = min(tried, key=lambda t: t[0][0])[0][2]
        raise ValueError(f"{name}={asked!r} cannot be reached: the nearest is {value:.4g}")
    return found


def _rises(known: Planned, constant: float, cap: float, levels: dict[str, Levels]) -> dict[str, float]:
    """The predicted rise of every leaf, for levels by both halves of the gradients.

    These follow the noise of the halves that they are judged by. How much that flatters them is seen at levels
    by the first half: they cost more by the second than by the first. With twice the gradients the difference
    is smaller: two thirds of it in the logarithm are close to what is measured. What was measured of other
    roundings corrects the rest.
    """
    first = changes(known, rounded(known, constant, cap, FIRST))
    seen, unseen = rises_of(known, first, FIRST), rises_of(known, first, SECOND)
    factor = correction(known.measured, sum(unseen.values()))
    own = rises_of(known, changes(known, levels))
    return {n: factor * r * (max(unseen[n] / max(seen[n], 1e-30), 1) ** FLATTERY) for n, r in own.items()}


def correction(measured: Any, predicted: float) -> float:
    """The factor from a predicted rise to what should be measured: that of the trial roundings nearby."""
    found = np.asarray(measured, np.float64)
    if not len(found) or predicted <= 0:
        return 1.0
    ratios = np.clip(np.log(found[:, 1] / found[:, 0]), -math.log(MOST), math.log(MOST))
    return float(np.exp(np.interp(math.log(predicted), np.log(found[:, 0]), ratios)))


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
