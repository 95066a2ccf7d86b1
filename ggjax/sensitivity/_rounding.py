"""Calibrated rounding of a whole tree: for a number of bits, or for a rise of the loss."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import masks
from ggjax._internal import step_grid, trees
from ggjax.sensitivity import _counting, _feedback, _plans
from ggjax.sensitivity._predict import rise
from ggjax.sensitivity._state import Factors, Sensitivity, leaf_of
from ggjax.sensitivity._views import View

DAMPING = 0.1
"""Of 0.001, 0.01 and 0.1 the best on a small language model, from 10 to 200 batches: less trusts factors of few
examples too far."""

CAP = 1.5
"""No step is larger than this many standard deviations of its leaf, unless so few bits are asked that some must
be: a larger one would erase whole rows that few examples happened to touch."""

TRIES = 12
"""Roundings of the whole tree at most, to come within TOLERANCE of what is asked."""

TOLERANCE = 0.005
GRAIN = 512
"""Constants are powers of 2^(1/512): a sum that a device rounds otherwise seldom leads to another one."""

CAPS = 6
"""How often the cap is doubled, where what is asked lies beyond it."""

NEAR = 0.25
"""How far, in bits or in doublings of the rise, the best of the tries may lie from what is asked: at few bits
both jump, as whole rows become zero."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
    """A rounded leaf: whole numbers, and the steps that they are multiples of."""

    levels: jax.Array  # int32 (b, m, n): the leaf as b matrices of m rows and n columns
    row_steps: jax.Array  # int8 (b, m), in eighths of a power of two
    column_steps: jax.Array  # int8 (b, n)
    step: jax.Array  # float32 (), the step of a weight whose row and column have 0
    limit: jax.Array  # int32 (b,), in eighths of a power of two: no step is larger
    view: View = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def steps(self) -> jax.Array:
        """The step of every weight, float32 (b, m, n): step 2^(k / 8) with k the smaller of row_steps_i +
        column_steps_j and limit."""
        return step_grid.table_of(self.step)[step_grid.place_of(self.row_steps, self.column_steps, self.limit)]

    @property
    def values(self) -> jax.Array:
        """The weights: levels times steps, in the shape and dtype of the leaf."""
        return self.view.leaf(self.levels.astype(jnp.float32) * self.steps).astype(self.dtype)


class Rounded(NamedTuple):
    """A tree after calibrated rounding."""

    params: Any  # the tree, its rounded leaves as weights again
    levels: dict[str, Levels]  # of every rounded leaf, by name
    bits: float  # per rounded weight, by entropy, everything that a decoder needs counted
    rises: dict[str, float]  # predicted for each leaf, in nats per example (or half the squared error)

    @property
    def rise(self) -> float:
        """Predicted for all leaves together."""
        return sum(self.rises.values())


def round_to(
    params: Any,
    state: Sensitivity,
    *,
    bits: float | None = None,
    loss_rise: float | None = None,
    damping: float = DAMPING,
    cap: float = CAP,
    mask: trees.Mask = masks.kernels,
) -> Rounded:
    """Round the weights of a tree so that the loss rises least for the bits that they take.

    Every row and column of a matrix gets a step by what the sensitivity says of it, and every rounding error is
    made good, as far as it can be, by the rows (or columns) that come after it. One constant for the whole tree
    is then searched for what is asked.

    Args:
      params: the weights, a tree of arrays.
      state: their sensitivity.
      bits: the average bits per rounded weight, by entropy in classes of known width, the steps of rows and
        columns and the tables counted.
      loss_rise: the rise of the loss by the quadratic model, in nats per example (see ``estimate``). It is
        predicted from one half of the gradients for weights that are rounded by the other; the weights that are
        returned are rounded by both.
      damping: how far to distrust the factors: added to their diagonals, relative to the mean.
      cap: the largest step, in standard deviations of the leaf; doubled where fewer bits, or a larger rise,
        are asked than that allows.
      mask: which leaves to round; by default the kernels. The others stay as they are.

    Returns:
      A ``Rounded``.

    Raises:
      ValueError: not just one of bits and loss_rise, or one that is not positive; fewer bits than the steps
        alone take, or a rise that no step reaches; weights that are not finite; a leaf that the state does not
        cover, or covers in another shape. The message names the leaf.
    """
    if (bits is None) == (loss_rise is None):
        raise ValueError(f"give one of bits and loss_rise, got bits={bits!r} and loss_rise={loss_rise!r}")
    what, asked = ("bits", bits) if loss_rise is None else ("loss_rise", loss_rise)
    trees.check_positive(what, asked)
    asked = float(asked)  # type: ignore[arg-type]
    flat = trees.flatten(params, mask)
    chosen = {n: x for n, x in zip(flat.weight_names(), flat.weights(), strict=True) if x.size}
    known = planned(chosen, state, damping)
    found = to_bits(known, asked, cap=cap) if bits is not None else to_rise(known, asked, cap=cap)
    levels = found.levels
    new = flat.replace(
        levels[n].values if n in levels else x for n, x in zip(flat.weight_names(), flat.weights(), strict=True)
    )
    return Rounded(new, levels, _counting.bits_of(levels) / known.size, rises_of(known, found))


class Planned(NamedTuple):
    """Leaves that are to be rounded, and how."""

    leaves: dict[str, Any]
    factors: dict[str, Factors]
    examples: np.ndarray  # of both halves of the gradients
    plans: dict[str, _plans.Plan]  # by all gradients
    first: dict[str, _plans.Plan]  # by the first half only, to be judged by the second

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(x.size for x in self.leaves.values())


class Found(NamedTuple):
    """Levels, and the constant and the cap that gave them."""

    levels: dict[str, Levels]
    constant: float
    cap: float


def planned(leaves: dict[str, Any], state: Sensitivity, damping: float = DAMPING) -> Planned:
    """The plans for some leaves, by name. ValueError as ``round_to`` has it."""
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
    every, first = (
        {n: _plans.plan(state.factors[n], float(examples[which].sum()), damping, which) for n in leaves}
        for which in (slice(None), slice(0, 1))
    )
    return Planned(leaves, {n: state.factors[n] for n in leaves}, examples, every, first)


def to_bits(known: Planned, asked: float, *, cap: float = CAP, near: Found | None = None) -> Found:
    """The levels of so many bits per weight; ``near``: those of about as many, to begin with."""
    start = near.constant if near is not None else 2.0 ** (1 - asked) * _typical(known)

    def bits(constant: float, cap: float) -> float:
        return _counting.bits_of(_rounded(known, known.plans, constant, cap)) / known.size

    return _search(known, bits, start, near.cap if near is not None else cap, asked, slope=-1.0, name="bits")


def to_rise(known: Planned, asked: float, *, cap: float = CAP) -> Found:
    """The levels whose predicted rise is so large."""
    start = math.sqrt(24 * asked / known.size)  # every weight adds step^2 / 24 at high rates

    def total(constant: float, cap: float) -> float:
        return sum(rises_of(known, Found({}, constant, cap)).values())

    return _search(known, total, start, cap, asked, slope=2.0, name="loss_rise")


def rises_of(known: Planned, found: Found) -> dict[str, float]:
    """The predicted rise of every leaf, by the half of the gradients that neither steps nor levels saw."""
    levels = _rounded(known, known.first, found.constant, found.cap)
    rises = {
        n: rise(known.factors[n], trees.wide(q.values) - trees.wide(known.leaves[n]), slice(1, 2))
        for n, q in levels.items()
    }
    return {n: float(r) / float(known.examples[1]) for n, r in rises.items()}


def _rounded(known: Planned, plans: dict[str, _plans.Plan], constant: float, cap: float) -> dict[str, Levels]:
    return {
        n: _round_leaf(x, plans[n][1:], constant, cap, known.factors[n].view, plans[n].along_rows)
        for n, x in known.leaves.items()
    }


def _typical(known: Planned) -> float:
    """The constant at which steps are about a standard deviation, by the geometric mean over all weights."""
    logs = [
        x.size * math.log2(max(float(jnp.std(trees.wide(x))), 1e-30) / min(float(known.plans[n].step), 1e30))
        for n, x in known.leaves.items()
    ]
    return 2.0 ** (sum(logs) / known.size)


def _search(
    known: Planned,
    f: Callable[[float, float], float],
    start: float,
    cap: float,
    asked: float,
    *,
    slope: float,
    name: str,
) -> Found:
    """The levels at the constant where f is what is asked, by steps in the logarithms; f takes a cap too.

    f is about a power of the constant (the rise), or falls by one with every doubling of it (bits). Where the
    cap keeps it from going as far, the cap is raised.
    """
    nearest = 0.0
    for _ in range(CAPS):
        start = 2.0 ** (round(math.log2(start) * GRAIN) / GRAIN)
        low = high = None  # constants known to give too little rise (too many bits), and too much
        constant, best, last = start, (math.inf, start, 0.0), math.nan
        for _ in range(TRIES):
            value = f(constant, cap)
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
        if best[0] <= NEAR:
            return Found(_rounded(known, known.plans, best[1], cap), best[1], cap)
        cap, nearest = 2 * cap, best[2]
    raise ValueError(f"{name}={asked!r} cannot be reached: the nearest is {nearest:.4g}")


@functools.partial(jax.jit, static_argnames=("view", "along_rows"))
def _round_leaf(
    x: jax.Array, arrays: tuple[jax.Array, ...], constant: float, cap: float, view: View, along_rows: bool
) -> Levels:
    """A leaf rounded by its plan, the fields of which but the first are the arrays."""
    triangle, row_steps, column_steps, unit = arrays
    w = view.matrices(x.astype(jnp.float32))
    spread = jnp.std(w, axis=(1, 2))
    largest = cap * jnp.where(spread > 0, spread, jnp.maximum(jnp.abs(w).max((1, 2)), 1.0))
    # Where nothing is known, the unit is infinite: every step is the largest.
    step = jnp.clip(
        jnp.minimum(unit * constant, largest.min() * 2.0**30), step_grid.SMALLEST, step_grid.LARGEST
    )
    limit = jnp.floor(step_grid.FINENESS * jnp.log2(largest / step))
    limit = jnp.clip(limit, step_grid.LOWEST, step_grid.HIGHEST).astype(jnp.int32)
    sizes = step_grid.table_of(step)[step_grid.place_of(row_steps, column_steps, limit)]
    if triangle.shape[-1] != w.shape[1 if along_rows else 2]:  # a diagonal factor: no errors to make good
        levels = jnp.round(w / sizes)
    elif along_rows:
        levels = jax.vmap(_feedback.round_rows)(w, triangle, sizes)
    else:
        turned = jax.vmap(_feedback.round_rows)(w.swapaxes(1, 2), triangle, sizes.swapaxes(1, 2))
        levels = turned.swapaxes(1, 2)
    return Levels(levels.astype(jnp.int32), row_steps, column_steps, step, limit, view, jnp.dtype(x.dtype))
