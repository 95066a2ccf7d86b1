"""What is known of every floating leaf before any is coded: enough to choose steps for a whole tree."""

from typing import Any, NamedTuple

import numpy as np

from ggjax.codec._shards import host_blocks_of
from ggjax.codec.quantize import _exact, _rates, _steps, _summary
from ggjax.codec.quantize._exact import Exact
from ggjax.codec.quantize._quantizers import is_codable

SAMPLES = 1 << 22
"""Weights of all samples together, about: they are held while steps are chosen."""

LEAST_SAMPLE = 1 << 13


class Leaf(NamedTuple):
    """What is known of a leaf."""

    name: str
    size: int
    exact: Exact  # its cheapest form that loses nothing
    sample: _rates.Sorted | None  # of a leaf that is to be rounded
    largest: float = 0.0
    power: float = 0.0  # mean square
    std: float = 0.0


def survey(name: str, leaf: Any, *, rounded: bool, lossless: bool, leaves: int, least: float = 0.0) -> Leaf:
    """What is known of a leaf.

    Args:
      name: of the leaf, for messages.
      leaf: array; of one whose shards lie in several processes, all of these call this at the same time.
      rounded: whether it is to be rounded.
      lossless: whether it may be coded losslessly otherwise.
      leaves: how many there are, which share the memory for samples.
      least: what the largest weight of one to be rounded must be at least.

    Raises:
      Unfit: a weight to be rounded is not finite, or beyond float32, or all are smaller than that.
    """
    size = int(np.prod(leaf.shape, dtype=object))
    kept = Exact(8.0 * np.dtype(leaf.dtype).itemsize, None)
    everywhere = not getattr(leaf, "is_fully_addressable", True)
    rounded = rounded and is_codable(leaf, "uniform")
    if not rounded and (everywhere or not lossless or not is_codable(leaf, "lossless")):
        return Leaf(name, size, kept, None)
    blocks = [x for _, x in host_blocks_of(leaf)]
    if not rounded:
        return Leaf(name, size, _exact.cheapest(blocks, steps=False), None)
    most = min(max(SAMPLES // leaves, LEAST_SAMPLE), _summary.SAMPLE)
    s = _summary.summary_of_all(blocks) if everywhere else _summary.summarize(blocks, most)
    _steps.check_range(name, s, blocks, least)
    exact = kept if everywhere else _exact.cheapest(blocks, steps=True)
    std = float(s.spread / s.size) ** 0.5
    return Leaf(name, size, exact, _rates.sort(s.sample, size), s.largest, s.power, std)
