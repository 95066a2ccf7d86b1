"""The steps of rows and columns as bytes: small numbers about a centre, in exponential Golomb code."""

from typing import Any

import numpy as np

from ggjax.codec.entropy import _golomb

_PIECE = 1 << 16
"""Numbers that are read at a time: as Python's, they take far more memory than as bytes."""


def pack(steps: Any, rows: int) -> bytes:
    """Four bytes and then bits: for the steps of rows, which come first, and for those of columns their centre
    (int8) and the order of the code; the numbers are the steps less their centre. None for no steps."""
    steps = np.asarray(steps)
    if not steps.size:
        return b""
    head, text = [], ""
    for some in (steps[:rows].astype(np.int64), steps[rows:].astype(np.int64)):
        centre = int(np.median(some))
        order, bits = _golomb.write(_golomb.counted(some - centre))
        head += [centre % 256, order]
        text += bits
    return bytes(head) + _golomb.to_bytes(text)


def unpack(data: bytes, rows: int, columns: int) -> np.ndarray:
    """The steps, int8, of so many rows and columns.

    Raises:
      ValueError: these are not so many steps.
    """
    if len(data) < 4:
        raise ValueError(f"{len(data)} bytes, expected 4 and more")
    bits, place, out = _golomb.of_bytes(data[4:]), 0, []
    if len(bits) < rows + columns:
        raise ValueError(f"{len(bits)} bits, expected one or more for each of {rows + columns} steps")
    for number, centre, order in ((rows, *data[:2]), (columns, *data[2:4])):
        for i in range(0, number, _PIECE):
            values, place = _golomb.read(bits, place, min(_PIECE, number - i), order)
            steps = np.array(values, np.int64) + ((centre + 128) % 256 - 128)
            if (np.abs(steps) > 127).any():
                raise ValueError("a step beyond 127 eighths of an octave")
            out.append(steps.astype(np.int8))
    _golomb.check_end(bits, place)
    return np.concatenate(out)
