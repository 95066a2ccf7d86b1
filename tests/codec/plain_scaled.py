"""Steps of rows and columns for ``plain_decoder``, from ``FORMAT.md`` alone; numbers in brackets as there."""

import ml_dtypes  # NumPy then knows bfloat16 by its name, too
import numpy as np

SCALED_EIGHTHS = np.array(
    [1, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081], np.float32
)


def scaled_weights(levels, steps, params, shape, dtype):
    """[3] The weights of levels, (b m, n), whose rows and columns have steps in eighths of an octave."""
    b, m = len(params["limits"]), params["rows"]
    n = levels.shape[1]
    k = steps[: b * m].reshape(b, m, 1) + steps[b * m :].reshape(b, 1, n)
    k = np.minimum(k, np.array(params["limits"]).reshape(b, 1, 1))
    size = np.float32(params["step"]) * SCALED_EIGHTHS[k % 8]
    size = np.ldexp(size, (k // 8).astype(np.int32))
    with np.errstate(over="ignore", under="ignore"):
        largest = largest_of(dtype)
        weights = np.clip(levels.reshape(b, m, n).astype(np.float32) * size, -largest, largest).astype(dtype)
    order = params.get("order", list(range(len(shape))))
    return weights.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def largest_of(dtype):
    """[3] The largest weight of a dtype, as far as float32 reaches."""
    return np.float32(min(ml_dtypes.finfo(dtype).max.astype(np.float64), np.finfo(np.float32).max))
