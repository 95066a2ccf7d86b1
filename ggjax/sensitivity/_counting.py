"""How many bits levels take, coded in classes of known width."""

from typing import Any

import numpy as np

CLASSES = 12
TABLE = 400
"""About what the table of one class takes, in bits."""

STEP_BITS = 4.5
"""About what the step of a row or column takes, of which neighbours differ by little."""


def bits_of(levels: dict[str, Any]) -> float:
    """Bits of rounded leaves by entropy, tables and steps counted.

    A decoder knows every step, so that it knows how wide the levels of each weight scatter, up to the width of
    the weights of a row, which takes three bits a row. Weights of like width share a table.
    """
    return sum(_bits_of_leaf(leaf) for leaf in levels.values())


def _bits_of_leaf(leaf: Any) -> float:
    q, steps = np.asarray(leaf.levels), np.asarray(leaf.steps)
    size = np.abs(q * steps).mean(2, keepdims=True)
    size = np.exp2(np.round(2 * np.log2(np.maximum(size, 1e-30))) / 2)  # what the decoder is told
    width = np.log2(size / steps).ravel()
    side = sum(x.size * STEP_BITS for x in (leaf.row_steps, leaf.column_steps) if x.any()) + 3 * size.size
    classes = min(CLASSES, max(1, q.size // 2048))
    edges = np.quantile(width, np.arange(1, classes) / classes) if classes > 1 else np.zeros(0)
    which = np.searchsorted(edges, width)
    flat = q.ravel()
    return side + sum(_entropy(flat[which == k]) + TABLE for k in np.unique(which))


def _entropy(q: np.ndarray) -> float:
    counts = np.unique(q, return_counts=True)[1]
    return float(-(counts * np.log2(counts / q.size)).sum())
