"""The ways of rounding that are compared, each from a number that makes the steps coarser to a compressed tree.

Every arm is judged by the bytes of the codec. Those between one step for all and what ``compress`` makes of a
sensitivity are built from the library's own pieces, with a part of what the factors say withheld.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import ggjax
from ggjax._internal import trees
from ggjax._internal.step_grid import FINENESS
from ggjax.codec import _calibrated
from ggjax.sensitivity import Factors, Levels, Sensitivity, _planned, _plans, _search
from ggjax.sensitivity._levels import round_leaf, spread_of
from ggjax.sensitivity._plans import Plan
from ggjax.sensitivity._tuning import tuned
from tests.benchmarks.calibrated.subject import Subject, bits_of

PLAIN = {
    "uniform": "one step for all",
    "uniform_classes": "one step for all, classes of rows and columns",
    "leaf_bits": 'equal bits for every leaf, per="leaf"',
}
"""Arms that know nothing of the loss."""

CALIBRATED = {
    "leaf": "step by leaf",
    "diagonal": "steps of rows and columns from the diagonals, no feedback",
    "feedback": "feedback, step by leaf",
    "rows": "feedback, steps along its axis",
    "rows_columns": "feedback, steps of rows and columns",
    "both": "feedback on both sides, steps of rows and columns",
}
"""Arms that round with feedback or by a sensitivity, as the library does, with a part of what it says."""

NO_CAP = 1e6


class Rounding(NamedTuple):
    """A tree after rounding."""

    params: Any
    bits: float  # per rounded weight, everything in the coded form counted
    coded: dict[str, Any] = {}  # leaves in that form, by name, where the arms made them


def chosen_of(subject: Subject) -> dict[str, Any]:
    """The leaves that are rounded, by name."""
    flat = trees.flatten(subject.params, subject.mask)
    pairs = zip(flat.weight_names(), flat.weights(), strict=True)
    return {n: x for n, x in pairs if x.size >= _search.MIN_SIZE}


def plain(subject: Subject, arm: str, constant: float) -> Rounding:
    """A tree rounded by an arm that knows nothing of the loss; the larger the constant, the coarser.

    It is the step, or for "leaf_bits" 2^-bits.
    """
    if arm == "uniform_classes":
        leaves = chosen_of(subject)
        flat = {n: _one_step(x) for n, x in leaves.items()}
        return _rounding(subject, leaves, {n: flat[n](constant) for n in leaves})
    options: dict[str, Any] = {"step": constant}
    if arm == "leaf_bits":
        options = {"bits": -float(np.log2(constant)), "per": "leaf"}
    small = ggjax.compress(subject.params, mask=subject.mask, **options)
    return Rounding(ggjax.decompress(small), bits_of(small, subject))


def _one_step(x: Any) -> Callable[[float], Levels]:
    view = ggjax.sensitivity.init({"x": x}).factors["x"].view
    f = Factors(jnp.zeros((2, 1, x.size)), jnp.zeros((2, 1, 1)), view)
    spread = spread_of(x, view)
    return lambda step: round_leaf(x, _plans.plan(f, np.ones(2), step, spread, 1.0, sides="none"), NO_CAP, view)


def calibrated(subject: Subject, arm: str, state: Sensitivity) -> Callable[[float], Rounding]:
    """A function from a constant to the tree rounded by an arm that knows a sensitivity.

    At high rates every weight adds constant^2 / 24 to the loss (or to half the squared error). How far each
    leaf trusts its factors was found once, with feedback on both sides.
    """
    leaves = chosen_of(subject)
    known = _planned.planned(leaves, state)
    known = tuned(known, 2.0**-2 * _planned.typical(known), _search.CAP)
    whole = {n: _planned.plan_of(known, n, 0.0) for n in leaves}
    parts = {n: part_of(known.factors[n], _rows_gain_more(known.factors[n], whole[n]), arm) for n in leaves}
    known = known._replace(factors={n: f for n, (f, _) in parts.items()})

    def at(constant: float) -> Rounding:
        levels = {}
        for n, x in leaves.items():
            f, sides = parts[n]
            plan = _planned.plan_of(known._replace(sides=sides), n, constant)
            levels[n] = round_leaf(x, _even(plan) if arm == "feedback" else plan, _search.CAP, f.view)
        return _rounding(subject, leaves, levels)

    return at


def start_of(subject: Subject, rise: float) -> float:
    """The constant of about such a rise, in nats per example (or half the squared error)."""
    return float(np.sqrt(24 * rise / sum(x.size for x in chosen_of(subject).values())))


def part_of(f: Factors, by_rows: bool, arm: str) -> tuple[Factors, _plans.Sides]:
    """What an arm uses of the factors of a leaf, and along which axes errors are made good."""
    sides: _plans.Sides = "rows" if by_rows else "columns"
    if arm == "both":
        return f, "both"
    if arm == "rows_columns":
        return f, sides
    if arm == "leaf":
        return Factors(_flat(f.rows), _flat(f.columns), f.view), sides
    if arm == "diagonal":
        return Factors(_diagonal(f.rows), _diagonal(f.columns), f.view), sides
    return (
        Factors(f.rows, _flat(f.columns), f.view) if by_rows else Factors(_flat(f.rows), f.columns, f.view)
    ), sides


def _rows_gain_more(f: Factors, plan: Plan) -> bool:
    """Whether feedback along the rows saves more bits than along the columns."""
    gains = []
    for x, triangle in ((f.rows, plan.rows), (f.columns, plan.columns)):
        if triangle.shape[-1] == 1:
            gains.append(0.0)
            continue
        alone = np.asarray(_diagonal(x).sum(0), np.float64)  # (b, k)
        made_good = np.asarray(jnp.diagonal(triangle, axis1=1, axis2=2), np.float64)
        alone = np.maximum(alone / np.maximum(alone.mean(1, keepdims=True), 1e-30), made_good**2)
        gains.append(float((np.log2(alone) / 2 - np.log2(made_good)).mean()))
    return gains[0] >= gains[1]


def _diagonal(x: Any) -> Any:
    return jnp.diagonal(x, axis1=2, axis2=3) if x.ndim == 4 else x


def _flat(x: Any) -> Any:
    """A diagonal factor that says of every row the same, with the trace of another factor."""
    d = _diagonal(x)
    return jnp.broadcast_to(d.mean(-1, keepdims=True), d.shape)


def _even(plan: Plan) -> Plan:
    """One step for each matrix, which costs as much at high rates as the steps of the plan."""
    steps = [np.exp2(np.asarray(x, np.float64) / FINENESS) for x in (plan.row_steps, plan.column_steps)]
    # The cost of a weight is in proportion to (step / step of the plan)^2.
    logs = sum(-0.5 * np.log2((x**-2).mean(1)) for x in steps)  # (b,)
    centre = float(np.mean(logs))
    own = np.round(FINENESS * (logs - centre)).astype(np.int8)[:, None]
    rows = jnp.asarray(np.broadcast_to(own, plan.row_steps.shape))
    return plan._replace(
        row_steps=rows, column_steps=jnp.zeros_like(plan.column_steps), step=plan.step * 2.0**centre
    )


def _rounding(subject: Subject, leaves: Mapping[str, Any], levels: dict[str, Levels]) -> Rounding:
    flat = trees.flatten(subject.params, subject.mask)
    coded = _calibrated.coded(dict(leaves), levels, dict.fromkeys(leaves, 0.0), "rans")
    names, weights = flat.weight_names(), flat.weights()
    bits = 8.0 * sum(coded[n].nbytes if n in coded else x.nbytes for n, x in zip(names, weights, strict=True))
    new = flat.with_named({n: q.values for n, q in levels.items()})
    return Rounding(new, bits / sum(x.size for x in weights), coded)
