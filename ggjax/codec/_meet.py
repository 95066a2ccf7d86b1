"""Coding a tree in the bits that are asked: planned, coded, and coded again where the plan was wrong."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ggjax.codec import _plan
from ggjax.codec._options import Options
from ggjax.codec._survey import Leaf

MARGIN = 0.003
"""The share of the bits that is left free, since what comes out differs a little from the plan."""

SPARE = 0.01
"""If more than this share is left free in the end, it is tried again with a finer step."""

SPARE_BITS = 0.02
"""But not for less than so many bits per weight."""

ATTEMPTS = 8

MARGIN_OF_PROCESSES = 0.015
"""With several processes, none of which sees what all of it takes, there is one attempt."""


class Taken(NamedTuple):
    """What coding took, in bits."""

    leaves: list[float]
    rest: float = 0.0  # besides the leaves


def meet(leaves: Sequence[Leaf], given: Options, code: Callable[[list[Options | None]], Taken]) -> None:
    """Call ``code`` with options for every leaf, the last time with those that meet what is asked.

    Args:
      leaves: all that count.
      given: ``bits`` or ``snr_db`` is wanted.
      code: codes the leaves, and tells what they take.

    Raises:
      ValueError: the bits cannot be met, however coarse the step.
    """
    sizes = np.array([x.size for x in leaves], np.float64)
    if given.want.bits is None or not any(x.sample for x in leaves):  # no step could change what it takes
        code(_plan.plan(leaves, given, [0.0] * (len(leaves) or 1)).options)
        return
    whole = given.per == "tree"

    def grouped(values: Sequence[float] | np.ndarray, rest: float = 0.0) -> np.ndarray:
        return np.array([float(np.sum(values)) + rest]) if whole else np.asarray(values)

    counts = grouped(sizes)
    # Of the leaves by themselves only those that are rounded have a limit.
    limited = np.ones(1, bool) if whole else np.array([x.sample is not None for x in leaves], bool)
    limits = given.want.bits * counts
    if jax.process_count() > 1:
        code(_plan.plan(leaves, given, (limits * (1 - MARGIN_OF_PROCESSES)).tolist()).options)
        return
    surplus = MARGIN * limits  # what is taken beyond the plan, as far as is known
    tried: list[list[Options | None]] = []
    good: list[Options | None] | None = None
    for attempt in range(ATTEMPTS):
        made = _plan.plan(leaves, given, (limits - surplus).tolist())
        if made.options in tried:
            if good is not None:
                break
            surplus += SPARE * limits * 2.0**attempt
            continue
        tried.append(made.options)
        taken = grouped(*code(made.options)) if whole else grouped(code(made.options).leaves)
        over = np.where(limited, taken - limits, 0)
        if (over <= 0).all():
            good = made.options
            near = over >= -np.maximum(SPARE * limits, SPARE_BITS * counts)
            if near[limited].all() or attempt > 1:
                break
        wrong = taken - grouped(made.bits)
        push = np.where(over > 0, 0.001 * limits + over * attempt, 0.001 * limits)
        surplus = np.where(over > 0, np.maximum(wrong, surplus) + push, wrong + push)
    if good is None:
        raise ValueError(_too_few(leaves, given))
    if good != tried[-1]:
        code(good)


def _too_few(leaves: Sequence[Leaf], given: Options) -> str:
    size = sum(x.size for x in leaves)
    asked = f"bits={given.want.bits:g} cannot be met"
    if given.per == "leaf":
        return f"{asked} by every leaf: ask for more"
    kept = sum(x.size * x.exact.bits for x in leaves if x.sample is None) / size
    least = _plan.least_bits(leaves, given) / size
    return (
        f"{asked}: with all that is rounded at 0 the {size:,} weights take about {least:.3g} bits each, "
        f"{kept:.3g} of them for leaves that are kept as they are; "
        'ask for more, or say per="leaf" or step_per_std=, which '
        "do not count those"
    )
