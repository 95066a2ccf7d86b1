"""Rounding with feedback: every rounding error is made good by the rows that come after it.

With H the factor of the rows and M lower triangular, M^T M = H, the cost of an error E is |M E|^2. Row i of M E
is M_ii times (error of row i + what the errors before it amount to there), so that the row is rounded to make
that sum small rather than its own error: the nearest-plane method of Babai, which is also what GPTQ computes
(arXiv 2210.17323, 2507.18553).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 64
"""Rows that are worked on one by one between two products of whole blocks."""


def factor_of(h: jax.Array, damping: jax.typing.ArrayLike) -> jax.Array:
    """The lower triangular M with M^T M = H + damping I, for a symmetric H (m, m) with a mean diagonal of 1."""
    damped = h + jnp.asarray(damping, h.dtype) * jnp.eye(len(h), dtype=h.dtype)
    # Cholesky's factor of the matrix turned by half a turn is the factor from the other end.
    return jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1].T


def round_rows(
    w: jax.Array, m: jax.Array, steps: jax.Array, snap: Callable[[jax.Array], jax.Array] = jnp.round
) -> jax.Array:
    """The levels of a matrix.

    Args:
      w: weights, float32 (rows, columns).
      m: lower triangular (rows, rows), as ``factor_of`` gives it.
      steps: (rows, columns) or what broadcasts to it, above 0.
      snap: from numbers, in steps, to the levels that there are: whole numbers, or others.

    Returns:
      Levels as float32 (rows, columns); a weight becomes level times step. Rows depend on those before them
      and columns not on each other, so that a matrix whose columns are sharded stays sharded.
    """
    rows, columns = w.shape
    padded = -rows % BLOCK
    # Where nothing is left to round: weights of 0 beside a unit factor.
    w, steps = (
        jnp.pad(x, ((0, padded), (0, 0)), constant_values=v) for x, v in ((w, 0.0), (_whole(steps, w), 1.0))
    )
    diagonal = jnp.pad(jnp.diagonal(m), (0, padded), constant_values=1.0)
    # Rows of M without their diagonal, each divided by it.
    before = jnp.pad(jnp.tril(m, -1), ((0, padded), (0, padded))) / diagonal[:, None]

    def block(errors: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = lax.dynamic_slice_in_dim(before, start, BLOCK)
        inside = lax.dynamic_slice_in_dim(own, start, BLOCK, 1)
        owed = own @ errors  # from the blocks before: the errors of this one are 0 so far
        weights, sizes = (lax.dynamic_slice_in_dim(x, start, BLOCK) for x in (w, steps))

        def row(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            found, levels = state
            target = weights[i] - owed[i] - inside[i] @ found
            level = snap(target / sizes[i])
            return found.at[i].set(level * sizes[i] - weights[i]), levels.at[i].set(level)

        zeros = jnp.zeros_like(weights)
        found, levels = lax.fori_loop(0, BLOCK, row, (zeros, zeros))
        return lax.dynamic_update_slice_in_dim(errors, found, start, 0), levels

    _, levels = lax.scan(block, jnp.zeros_like(w), jnp.arange(0, rows + padded, BLOCK))
    return levels.reshape(rows + padded, columns)[:rows]


def _whole(steps: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(steps, w.dtype), w.shape)
