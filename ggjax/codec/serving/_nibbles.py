"""Two whole numbers from -8 to 7 in a byte: neighbours along one axis, the first one in the low half."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LOWEST, HIGHEST = -8, 7


def pack(levels: Any, axis: int) -> Any:
    """uint8, half as long along the axis. NumPy or JAX; the length there must be even."""
    first, second = (every_second(levels, axis, i).astype(np.uint8) for i in (0, 1))
    return first & 15 | second << 4


def unpack(packed: jax.Array, axis: int) -> jax.Array:
    """int8, twice as long along the axis."""
    first, second = halves(packed)
    return interleaved(first.astype(jnp.int8), second.astype(jnp.int8), axis)


def halves(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and the second neighbours, int32."""
    wide = lax.bitcast_convert_type(packed, jnp.int8).astype(jnp.int32)
    return wide << 28 >> 28, wide >> 4


def every_second(x: Any, axis: int, start: int) -> Any:
    """The first (start = 0) or the second neighbours."""
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, None, 2),)]


def interleaved(first: jax.Array, second: jax.Array, axis: int) -> jax.Array:
    """The array of its first and its second neighbours."""
    axis %= first.ndim
    both = jnp.stack([first, second], axis + 1)
    return both.reshape([2 * n if a == axis else n for a, n in enumerate(first.shape)])
