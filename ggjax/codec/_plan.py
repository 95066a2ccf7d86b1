"""The plan for a tree: how each leaf is coded, so that all together take the bits, or lose what is asked.

One step for all leaves loses the least at given bits: with steps that differ, a bit moved from the leaf of the
finer step to that of the coarser one would lower the error of both together (reverse water-filling). A leaf
whose exact form takes no more than rounding it to that step is coded exactly.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ggjax.codec._options import Options, kept_losslessly
from ggjax.codec._survey import Leaf
from ggjax.codec.quantize import _rates
from ggjax.codec.quantize._steps import MOST_LEVELS, Want, usable
from ggjax.codec.quantize._uniform import LARGEST, SMALLEST

FINEST, COARSEST = 2.0**-24, 4.0
"""The range of steps that are looked at, in units of the largest weight of a leaf: the least one of all leaves
for the finest step, the largest for the coarsest."""

PRECISION = 2e-4
"""Steps are found to so much of an octave."""


class Plan(NamedTuple):
    """How each leaf is coded; None: it is kept as it is."""

    options: list[Options | None]
    bits: list[float]  # what each leaf will take in all, as predicted


def plan(leaves: Sequence[Leaf], given: Options, room: Sequence[float]) -> Plan:
    """The plan that is the finest within the room, or the coarsest that loses no more than asked.

    Args:
      leaves: of the tree.
      given: ``bits`` or ``snr_db`` is wanted.
      room: with ``bits``, those that all leaves together may take, one number; with ``per="leaf"`` one for each
        leaf.
    """
    if given.per == "leaf":
        alone = [_group([x], given, r) for x, r in zip(leaves, room, strict=True)]
        return Plan([p.options[0] for p in alone], [p.bits[0] for p in alone])
    return _group(leaves, given, room[0])


def least_bits(leaves: Sequence[Leaf], given: Options) -> float:
    """What the leaves take in all when every weight that is rounded becomes 0."""
    step = COARSEST * max((x.largest for x in leaves if x.sample), default=0.0)
    return sum(_bits(x, given, step) for x in leaves)


def _group(leaves: Sequence[Leaf], given: Options, room: float) -> Plan:
    """The plan for leaves that share a step."""
    step = step_of(leaves, given, room)
    options = [_options(x, given, step) for x in leaves]
    return Plan(options, [_bits(x, given, step) for x in leaves])


def step_of(leaves: Sequence[Leaf], given: Options, room: float) -> float:
    """The step of those leaves that are rounded, a float32; arguments as for ``plan``, but one room for all."""
    rounded = [x for x in leaves if x.sample is not None]
    scales = [x.largest for x in rounded if x.largest]
    step, largest = 1.0, max(scales, default=0.0)
    if scales:
        finest, coarsest = min(scales) * FINEST, largest * COARSEST
        finest = max(finest, min(SMALLEST, largest * FINEST))
        if given.want.bits is not None:
            others = sum(x.exact.bits * x.size for x in leaves if x.sample is None)
            step = _coarser_until(
                lambda step: others + sum(_bits(x, given, step) for x in rounded) <= room, finest, coarsest
            )
        else:
            step = _step_of_noise(rounded, given, finest, coarsest)
        name = max(rounded, key=lambda x: x.largest).name
        step = float(usable(name, step, largest))
    return step


def _step_of_noise(rounded: Sequence[Leaf], given: Options, finest: float, coarsest: float) -> float:
    """The coarsest step that loses no more than asked: less than the finest one that loses more.

    Leaves that come out exact at a step do not count there: the power of a mask of -1e9 would allow any error
    in the others. So it is looked for from the fine end, where more are exact.

    A sample does not have the rarest of the large weights: so the step is bounded by what it would lose if the
    error were spread evenly over it.
    """
    share = 10 ** (-given.want.snr_db / 10)  # type: ignore[operator]

    def lossy(step: float) -> list[Leaf]:
        return [x for x in rounded if not _is_exact(x, given, step)]

    def is_too_coarse(step: float) -> bool:
        some = lossy(step)
        return sum(_noise(x, given, step) for x in some) > share * sum(x.size * x.power for x in some)

    low, high = finest, min(finest * 16, coarsest)
    while high < coarsest and not is_too_coarse(high):
        low, high = high, min(high * 16, coarsest)
    step = _coarser_until(is_too_coarse, low, high) * 2.0**-PRECISION
    some = lossy(step) or rounded
    noise = share * sum(x.size * x.power for x in some) / sum(x.size for x in some)
    return min(step, 4 * (12 * noise) ** 0.5)


def _coarser_until(reached: Callable[[float], bool], finest: float, coarsest: float) -> float:
    """About the finest step that reaches what only coarse steps do; the coarsest if none does."""
    low, high = np.log2(finest), np.log2(coarsest)
    if reached(finest):
        return finest
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(2.0**middle) else (middle, high)
    return float(2.0**high)


def _rounded_bits(x: Leaf, given: Options, step: float) -> float:
    """Bits per weight of a leaf that is rounded."""
    assert x.sample is not None
    if x.largest / step >= MOST_LEVELS:
        return np.inf
    return _rates.bits_of(x.sample, min(step, LARGEST), given.dead_zone)


def _bits(x: Leaf, given: Options, step: float) -> float:
    """The bits that a leaf takes in all."""
    bits = x.exact.bits if x.sample is None else min(x.exact.bits, _rounded_bits(x, given, step))
    return x.size * bits


def _is_exact(x: Leaf, given: Options, step: float) -> bool:
    return x.exact.bits <= _rounded_bits(x, given, step)


def _noise(x: Leaf, given: Options, step: float) -> float:
    """The squared error in all of a leaf that is rounded."""
    assert x.sample is not None
    return x.size * _rates.noise_of(x.sample, step, given.dead_zone, given.centroids)


def _options(x: Leaf, given: Options, step: float) -> Options | None:
    if x.sample is not None and not _is_exact(x, given, step):
        return given._replace(want=Want(step=float(np.float32(max(step, SMALLEST)))))
    if x.exact.kind is None:
        return None
    if x.exact.kind == "uniform":
        return Options("uniform", Want(step=x.exact.step), coder=given.coder)
    return kept_losslessly(given)
