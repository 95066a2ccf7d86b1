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
from ggjax.sensitivity._state import Sensitivity, leaf_of
from ggjax.sensitivity._views import View

DAMPING = 0.1
"""Of 0.001, 0.01 and 0.1 the best on a small language model, from 10 to 200 batches: less trusts factors of few
examples too far."""

CAP = 1.5
"""No step is larger than this many standard deviations of its leaf: a larger one would erase whole rows that
few examples happened to touch."""

TRIES = 12
"""Roundings of the whole tree at most, to come within TOLERANCE of what is asked."""

TOLERANCE = 0.005
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
      cap: the largest step, in standard deviations of the leaf.
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
    trees.check_finite(list(chosen), list(chosen.values()))
    for name in chosen:
        if name not in state.factors:
            raise ValueError(f"leaf {name!r} is not in the sensitivity, which has {len(state.factors)} leaves")
        leaf_of(chosen, name, state.factors[name].view, "params")
    examples = np.asarray(state.examples)
    if not examples.all():
        raise ValueError(
            "the sensitivity knows too few gradients: expected two updates or more, one for each half"
        )
    number = sum(x.size for x in chosen.values())

    def rounded(constant: float, plans: dict[str, _plans.Plan]) -> dict[str, Levels]:
        return {
            n: _round_leaf(x, plans[n][1:], constant, cap, state.factors[n].view, plans[n].along_rows)
            for n, x in chosen.items()
        }

    def planned(which: slice) -> dict[str, _plans.Plan]:
        share = float(examples[which].sum())
        return {n: _plans.plan(state.factors[n], share, damping, which) for n in chosen}

    def rises_at(constant: float) -> dict[str, float]:
        which = slice(1, 2)  # the half that these steps and levels were not fitted to
        rises = {
            n: rise(state.factors[n], trees.wide(q.values) - trees.wide(chosen[n]), which)
            for n, q in rounded(constant, first).items()
        }
        return {n: float(r) / float(examples[1]) for n, r in rises.items()}

    def bits_at(constant: float) -> float:
        return _counting.bits_of(rounded(constant, plans)) / number

    plans, first = planned(slice(None)), planned(slice(0, 1))
    if bits is not None:
        start = 2.0 ** (1 - asked) * _typical(chosen, plans)
        constant, taken = _search(bits_at, start, asked, slope=-1.0, name=what)
    else:
        start = math.sqrt(24 * asked / number)  # every weight adds step^2 / 24 at high rates
        constant, _ = _search(lambda c: sum(rises_at(c).values()), start, asked, slope=2.0, name=what)
        taken = bits_at(constant)
    levels = rounded(constant, plans)
    new = flat.replace(
        levels[n].values if n in levels else x for n, x in zip(flat.weight_names(), flat.weights(), strict=True)
    )
    return Rounded(new, levels, taken, rises_at(constant))


def _typical(chosen: dict[str, Any], plans: dict[str, _plans.Plan]) -> float:
    """The constant at which steps are about a standard deviation, by the geometric mean over all weights."""
    logs = [
        x.size * math.log2(max(float(jnp.std(trees.wide(x))), 1e-30) / min(float(plans[n].step), 1e30))
        for n, x in chosen.items()
    ]
    return 2.0 ** (sum(logs) / sum(x.size for x in chosen.values()))


def _search(
    f: Callable[[float], float], start: float, asked: float, *, slope: float, name: str
) -> tuple[float, float]:
    """(the constant at which f is what is asked, f there), by steps in the logarithms.

    f is about a power of the constant (the rise), or falls by one with every doubling of it (bits).
    """
    low = high = None  # constants known to give too little rise (too many bits), and too much
    constant, best = start, (math.inf, start, 0.0)
    for _ in range(TRIES):
        value = f(constant)
        miss = math.log2(max(value, 1e-30) / asked) if slope > 0 else value - asked
        if abs(miss) < best[0]:
            best = (abs(miss), constant, value)
        if abs(value / asked - 1) <= TOLERANCE:
            return constant, value
        too_coarse = miss * slope > 0
        low, high = (low, constant) if too_coarse else (constant, high)
        move = 2.0 ** max(min(-miss / slope, 4), -4)
        constant *= move
        if low is not None and high is not None and not low < constant < high:
            constant = math.sqrt(low * high)
    if best[0] > NEAR:
        raise ValueError(f"{name}={asked!r} cannot be reached: the nearest is {best[2]:.4g}")
    return best[1], best[2]


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
