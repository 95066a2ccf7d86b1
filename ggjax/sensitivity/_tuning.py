"""How far each leaf is to distrust its factors, found by rounding with one half of the gradients."""

import math

from ggjax.sensitivity import _counting, _planned
from ggjax.sensitivity._planned import Planned

DAMPINGS = (0.3, 1.0, 3.0)
"""Multiples of what the two halves of a factor say of its noise. That is right for the factor itself; what is
right for its inverse depends on the model: a language model took 2 of it, a speller 0.3."""


def tuned(known: Planned, constant: float, cap: float) -> Planned:
    """The same with the damping of each leaf that costs least by the half that the rounding did not see.

    Of levels of other bits the cost is compared as if every bit halved the error (a quarter of the rise).
    """
    if known.is_tuned:
        return known
    best = dict.fromkeys(known.leaves, math.inf)
    chosen = dict(known.dampings)
    for damping in DAMPINGS:
        trial = known._replace(dampings=dict.fromkeys(known.leaves, damping))
        levels = _planned.rounded(trial, constant, cap, _planned.FIRST)
        rises = _planned.rises_of(trial, _planned.changes(trial, levels), _planned.SECOND)
        for n, q in levels.items():
            if rises[n] > 0:
                score = _counting.bits_of({n: q}) / q.levels.size + math.log2(rises[n]) / 2
                if score < best[n]:
                    best[n], chosen[n] = score, damping
    return known._replace(dampings=chosen, is_tuned=True)
