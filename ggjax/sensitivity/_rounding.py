"""Calibrated rounding of a whole tree: for a number of bits, or for a rise of the loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ggjax import masks
from ggjax._internal import trees
from ggjax.sensitivity import _counting, _planned, _search
from ggjax.sensitivity._levels import Levels
from ggjax.sensitivity._search import CAP
from ggjax.sensitivity._state import Sensitivity


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
    damping: float | None = None,
    cap: float = CAP,
    mask: trees.Mask = masks.kernels,
) -> Rounded:
    """Round the weights of a tree so that the loss rises least for the bits that they take.

    Every row and column of a matrix gets a step by what the sensitivity says of it, and every rounding error is
    made good, as far as it can be, by the rows and columns that come after it. One constant for the whole tree
    is then searched for what is asked. How far each leaf is to trust its factors, and whether one step for all
    weights would do better, is decided by gradients that the rounding did not see: so a sensitivity of too few
    examples does little harm.

    Sharded leaves are gathered for their rounding one at a time; the levels of all lie on one device.

    Args:
      params: the weights, a tree of arrays.
      state: their sensitivity.
      bits: the average bits per rounded weight, by entropy in classes of known width, the steps of rows and
        columns and the tables counted.
      loss_rise: the rise of the loss by the quadratic model, in nats per example (see ``estimate``). It is
        predicted from one half of the gradients for weights that are rounded by the other, and corrected by
        what was measured of trial roundings; the weights that are returned are rounded by both.
      damping: how far to distrust the factors, as a multiple of what their halves say of their noise; None to
        find it for each leaf.
      cap: the largest step, in standard deviations of the weights of a matrix.
      mask: which leaves to round; by default the kernels. The others stay as they are.

    Returns:
      A ``Rounded``.

    Raises:
      ValueError: not just one of bits and loss_rise, or one that is not positive; fewer bits than the steps
        alone take, or a rise that no step reaches; weights that are not finite; a leaf that the state does not
        cover, or covers in another shape. The message names the leaf.
    """
    search, asked = asked_of(bits, loss_rise)
    flat = trees.flatten(params, mask)
    known = _planned.planned(chosen_of(flat), state, damping)
    found = search(known, asked, cap=cap)
    return rounded_tree(flat, found.levels, found.rises)


def chosen_of(flat: trees.Flat) -> dict[str, Any]:
    """The leaves that are to be rounded, by name."""
    return {n: x for n, x in zip(flat.weight_names(), flat.weights(), strict=True) if x.size}


def rounded_tree(flat: trees.Flat, levels: dict[str, Levels], rises: dict[str, float]) -> Rounded:
    """The tree with its leaves replaced by levels of all that are to be rounded."""
    size = sum(q.levels.size for q in levels.values())
    new = flat.with_named(_planned.values_of(levels, chosen_of(flat)))
    return Rounded(new, levels, _counting.bits_of(levels) / max(size, 1), rises)


def asked_of(bits: float | None, loss_rise: float | None) -> tuple[Callable[..., _search.Found], float]:
    """The search for what is asked, and how much that is; ValueError unless it is one of two and positive."""
    if (bits is None) == (loss_rise is None):
        raise ValueError(f"give one of bits and loss_rise, got bits={bits!r} and loss_rise={loss_rise!r}")
    what, asked = ("bits", bits) if loss_rise is None else ("loss_rise", loss_rise)
    trees.check_positive(what, asked)
    return (_search.to_bits if loss_rise is None else _search.to_rise), float(asked)  # type: ignore[arg-type]
