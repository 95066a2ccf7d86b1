"""Leaves of the quantizer "scaled", made by hand."""

import numpy as np

from ggjax.codec import Compressed, _encode
from ggjax.codec.quantize._scaled import Scaled


def tree(coder="rans"):
    """Two leaves: one matrix, and a stack whose layers lie along its second axis; the same everywhere."""
    i = np.arange(6000)
    small = ((i * 7919) % 4096 - 2048) ** 3 // 2**29
    wide = small.reshape(60, 100) * (1 + np.arange(60) % 5)[:, None] // (1 + np.arange(100) % 3)
    stack = small[:1440].reshape(3, 8, 60)
    w, row_steps = leaf(wide[None], (60, 100), dtype="float32", coder=coder)
    v, _ = leaf(stack, (8, 3, 60), order=(1, 0, 2), dtype="bfloat16", coder=coder)
    assert row_steps.std() > 1
    return Compressed({"w": w, "v": v})


def pruned():
    """A leaf of levels most of which are 0, the others far apart."""
    i = np.arange(6000)
    levels = ((i * 7919) % 4096 - 2048) ** 3 // 2**17 * ((i * 7919) % 1013 % 10 < 3)
    return Compressed({"w": leaf(levels.reshape(1, 60, 100), (60, 100))[0]})


def leaf(levels, shape, *, order=(), dtype="float32", coder="rans"):
    """(a leaf of levels (b, m, n), its steps of rows)."""
    b, m, n = levels.shape
    levels = np.asarray(levels, np.int32)
    steps = ((np.arange(b * (m + n)) * 37) % 17 - 5).astype(np.int8)
    limits = tuple(int(k) for k in 12 - 3 * np.arange(b))
    params = Scaled(0.0123, limits, m, n, order, shape, rise=1.5e-3)
    tokens = _encode.tokens_of_levels(levels.astype(np.int32), steps, params, dtype)
    return _encode.finish([tokens], [], coder)[0], steps[: b * m]
