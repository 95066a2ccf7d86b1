"""Steps of rows and columns of a matrix: powers of 2^(1/8), the same numbers on every machine.

Weight (i, j) has the step ``step 2^(k / 8)`` with k = min(row_steps_i + column_steps_j, limit), all of them
whole numbers. A table has the step of every k there is: what is looked up there is not computed anew.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

FINENESS = 8
"""Steps are powers of 2^(1/8): at most 4.4 % from what they would be."""

LOWEST, HIGHEST = -256, 254
"""The range of k: that of a sum of two int8."""

SMALLEST, LARGEST = 2.0**-88, 2.0**68
"""The range of ``step``: every step of the table then lies from 2^-120 to 2^100, far from subnormal numbers."""

EIGHTHS = np.array([2.0 ** (i / FINENESS) for i in range(FINENESS)], np.float32)

_POWERS = np.arange(LOWEST, HIGHEST + 1)


def table_of(step: Any) -> Any:
    """The steps of k = -256, ..., 254, float32 (511,): one rounding each. NumPy or JAX."""
    powers = np.exp2(_POWERS // FINENESS).astype(np.float32)  # exact
    return step * EIGHTHS[_POWERS % FINENESS] * powers


def place_of(row_steps: Any, column_steps: Any, limit: Any) -> Any:
    """Where the step of every weight stands in the table, int32 (b, m, n).

    Args:
      row_steps, column_steps: int8 (b, m) and (b, n).
      limit: int32 (b,).
    """
    xp = np if isinstance(row_steps, np.ndarray) else jnp
    k = row_steps.astype(np.int32)[:, :, None] + column_steps.astype(np.int32)[:, None, :]
    return xp.minimum(k, limit[:, None, None]) - LOWEST
