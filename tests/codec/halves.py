"""Files read in pieces, as several processes read them."""

import math

import numpy as np

from ggjax.codec.container import _placed, _sources
from ggjax.codec.container._dtypes import has_arrays


def halves_of(path, max_bytes):
    """{name: array} of the leaves of a file, each read in two halves along its first axis that has any.

    Small leaves, which are never read in pieces, and empty ones are left out.
    """
    out = {}
    with _sources.opened(path) as checkpoint:
        _sources.check_size(checkpoint, checkpoint.leaves, max_bytes)
        for name, sources in checkpoint.leaves.items():
            shape = sources[0].full
            if sources[0].small or not math.prod(shape) or not has_arrays(sources[0].dtype, shape):
                continue
            axis = next((a for a, n in enumerate(shape) if n > 1), None)
            pieces = []
            for begin, end in (
                [(0, 1)] if axis is None else [(0, shape[axis] // 2), (shape[axis] // 2, shape[axis])]
            ):
                box = [slice(0, n) for n in shape]
                if axis is not None:
                    box[axis] = slice(begin, end)
                ((_, x),) = _placed.read(sources, [tuple(box)])
                pieces.append(x)
            out[name] = np.concatenate(pieces, axis) if axis is not None else pieces[0]
    return out
