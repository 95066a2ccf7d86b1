"""``rate.report``: every leaf and the whole tree by several codes, as a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from ggjax._internal import steps, trees
from ggjax.rate import _codes, _count

_NAME_WIDTH = 40
"""Longer names of leaves lose their middle in the printed table."""


class Row(NamedTuple):
    """The rates of one leaf, or of the whole tree."""

    name: str
    size: int  # parameters
    nu: float  # shape of the fitted law
    std: float  # standard deviation of the weights, in their units
    levels: int  # distinct levels in use
    bits: dict[str, float]  # bits per parameter, by code


class Report(NamedTuple):
    """Rates of every leaf and of the whole tree; ``str()`` of it is an aligned table.

    In a leaf's row every code is fitted to this leaf alone (its range, histogram and law), in the total's row
    one code serves all leaves.
    """

    step: float
    rows: tuple[Row, ...]
    total: Row

    def nbytes(self, code: str) -> float:
        """Bytes that the whole tree takes with this code (the total row's)."""
        return self.total.bits[code] * self.total.size / 8

    def __str__(self) -> str:
        codes = list(self.total.bits)
        table = [["leaf", "size", "nu", "std", "levels", *codes]]
        for r in (*self.rows, self.total):
            bits = [f"{r.bits[c]:.3f}" for c in codes]
            table.append([_short(r.name), f"{r.size:,}", f"{r.nu:.2f}", f"{r.std:.3g}", f"{r.levels:,}", *bits])
        blank = [""] * 4
        table.append(["bytes of the total", *blank, *(f"{self.nbytes(c):,.0f}" for c in codes)])
        for name, width in (("float32", 32), ("bfloat16", 16)):
            ratios = [f"{width / b:.2f}x" if (b := self.total.bits[c]) > 0 else "-" for c in codes]
            table.append([f"smaller than {name}", *blank, *ratios])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table
        ]
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        head, body, total, foot = lines[0], lines[1:-4], lines[-4], lines[-3:]
        title = f"bits per parameter at step {self.step:.6g}"
        return "\n".join([title, head, rule, *body, rule, total, *foot])


def report(
    params: Any, step: ArrayLike, *, codes: Sequence[_codes.Code] = _codes.CODES, mask: trees.Mask = None
) -> Report:
    """Rates of every selected leaf and of the whole tree, by several codes.

    Args:
      params, step, mask: as in ``bits``, but not traced.
      codes: which codes to work out, in the order of the columns.

    Returns:
      A ``Report(step, rows, total)`` of Python numbers; ``print`` shows it as a table.

    Raises:
      ValueError: as in ``bits``, or traced values.

    >>> from ggjax import gennorm
    >>> w = gennorm.sample(jax.random.key(0), 1.0, (1000,))
    >>> r = report({"w": w}, 0.1, codes=["entropy", "huffman"])
    >>> [row.name for row in r.rows], r.total.bits["entropy"] <= r.total.bits["huffman"]
    (['w'], True)
    """
    for code in codes:
        _codes.check_code(code)
    flat = trees.flatten(params, mask)
    names, leaves = flat.weight_names(), flat.weights()
    steps.check_step(step, leaves)
    if not trees.is_concrete(step, *leaves):
        raise ValueError("rate.report needs concrete weights and a concrete step: call it outside jit")
    with jax.ensure_compile_time_eval():  # under jit, the arrays made on the way would be traced
        step = float(np.asarray(step))
        counted = _count.count_leaves(names, leaves, step)
        rows = [_row(name, c, step, codes) for name, c in zip(names, counted, strict=True)]
        return Report(step, tuple(rows), _row("total", _count.merge(counted), step, codes))


def _row(name: str, counted: _count.Counted, step: float, codes: Sequence[_codes.Code]) -> Row:
    nu, rates = _count.rates_of(counted, codes)
    std = step * (counted.summary.spread / max(counted.size, 1)) ** 0.5
    return Row(name, counted.size, nu, std, len(counted.levels), {c: rates[c] for c in codes})


def _short(name: str) -> str:
    """A name that fits its column: the two ends tell most."""
    if len(name) <= _NAME_WIDTH:
        return name
    end = (_NAME_WIDTH - 3) * 2 // 3
    return f"{name[: _NAME_WIDTH - 3 - end]}...{name[-end:]}"
