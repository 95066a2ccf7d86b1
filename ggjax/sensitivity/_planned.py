"""Leaves that are to be rounded: their levels by a constant of the tree, and what these should cost."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import mesh, trees
from ggjax.sensitivity import _plans
from ggjax.sensitivity._levels import Levels, round_leaf, spread_of
from ggjax.sensitivity._predict import rise
from ggjax.sensitivity._state import HALVES, Factors, Sensitivity, leaf_of

BOTH, FIRST, SECOND = slice(None), slice(0, 1), slice(1, 2)
TINY = 1e-6
"""A constant at which steps are so fine that they do not depend on the weights."""


class Planned(NamedTuple):
    """Leaves that are to be rounded, and how."""

    leaves: dict[str, Any]
    factors: dict[str, Factors]
    examples: np.ndarray  # of both halves of the gradients
    spreads: dict[str, Any]  # of the matrices of the leaves
    measured: Any  # what was measured of trial roundings, as the state has it
    dampings: dict[str, float]  # of the leaves
    is_tuned: bool  # whether these are what is wanted, not only where to begin
    sides: _plans.Sides = "both"

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(x.size for x in self.leaves.values())


def planned(leaves: dict[str, Any], state: Sensitivity, damping: float | None = None) -> Planned:
    """What is to be known of some leaves, by name; of a damping, or of one that is to be tuned for each leaf.

    ValueError as ``round_to`` has it.
    """
    examples = checked(leaves, state)
    factors = {n: jax.tree.map(mesh.local, state.factors[n]) for n in leaves}
    spreads = {n: spread_of(mesh.local(x), factors[n].view) for n, x in leaves.items()}
    dampings = dict.fromkeys(leaves, 1.0 if damping is None else damping)
    return Planned(leaves, factors, examples, spreads, state.measured, dampings, damping is not None)


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


def rounded(known: Planned, constant: float, cap: float, which: slice = BOTH) -> dict[str, Levels]:
    """The levels by a constant and a cap, from both halves of the gradients or the first.

    Errors are carried from weight to weight, so that a leaf is gathered from its shards for its rounding, one
    at a time; the levels of all leaves lie on one device.
    """
    return {
        n: round_leaf(mesh.local(x), plan_of(known, n, constant, which), cap, known.factors[n].view)
        for n, x in known.leaves.items()
    }


def plan_of(known: Planned, name: str, constant: float, which: slice = BOTH) -> _plans.Plan:
    """The plan for a leaf."""
    used = np.zeros(HALVES, np.float32)
    used[which] = known.examples[which]
    return _plans.plan(
        known.factors[name], used, constant, known.spreads[name], known.dampings[name], sides=known.sides
    )


def typical(known: Planned) -> float:
    """The constant at which steps are about a standard deviation, by the geometric mean over all weights."""
    logs = [
        x.size
        * math.log2(
            max(float(jnp.std(trees.wide(mesh.local(x)))), 1e-30)
            / min(float(plan_of(known, n, TINY).step) / TINY, 1e30)
        )
        for n, x in known.leaves.items()
    ]
    return 2.0 ** (sum(logs) / known.size)


def changes(known: Planned, levels: dict[str, Levels]) -> dict[str, Any]:
    """What rounding adds to every leaf."""
    return {n: trees.wide(q.values) - trees.wide(mesh.local(known.leaves[n])) for n, q in levels.items()}


def values_of(levels: dict[str, Levels], leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The weights of levels, sharded like the leaves."""
    return {n: mesh.placed_like(q.values, leaves[n]) for n, q in levels.items()}


def rises_of(known: Planned, errors: dict[str, Any], which: slice = BOTH) -> dict[str, float]:
    """The predicted rise of every leaf, by both halves of the gradients or one."""
    examples = float(known.examples[which].sum())
    return {n: max(float(rise(known.factors[n], e, which)), 0.0) / examples for n, e in errors.items()}
