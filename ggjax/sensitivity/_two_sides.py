"""Rounding with feedback on both sides: every error is made good by later rows and by later columns.

With M_L^T M_L and M_R^T M_R the factors of rows and columns, the cost of an error E is |M_L E M_R^T|^2. Element
(i, j) of that product is made of the errors at i' <= i and j' <= j. With u_ij what the rows above owe (divided
by the diagonal of M_L), Z = E + u, and v_ij what the elements of Z to the left owe (divided by that of M_R), it
is M_L,ii M_R,jj (E_ij + u_ij + v_ij), so that weight (i, j) is rounded to make that sum small.
(What ``_feedback`` does with one factor; the Kronecker product of two is YAQA's, arXiv 2505.22988.)

Elements on an antidiagonal do not depend on each other. A matrix is cut into blocks, and these into tiles:
blocks owe each other what two products of matrices say, and a tile is worked through by its antidiagonals.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

TILE = 32
BLOCK = 8
"""Tiles along each side of a block: of tiles of 16 to 128 and blocks of 1 to 32 tiles the fastest on a CPU."""

Snap = Callable[[jax.Array], jax.Array]


class _Part(NamedTuple):
    """A part of a matrix of r rows and c columns, padded to whole tiles."""

    weights: jax.Array  # (r, c)
    steps: jax.Array  # (r, c)
    above: jax.Array  # (r, c), what the rows above the part owe
    left: jax.Array  # (r, c), what the columns to its left owe
    rows: jax.Array  # (r, r), the factor of its rows below its diagonal, divided by it
    columns: jax.Array  # (c, c)


class _Done(NamedTuple):
    """A part after rounding, each (r, c)."""

    levels: jax.Array
    errors: jax.Array  # E
    sums: jax.Array  # Z


def round_both(
    w: jax.Array, rows: jax.Array, columns: jax.Array, steps: jax.Array, snap: Snap = jnp.round
) -> jax.Array:
    """The levels of a matrix.

    Args:
      w: weights, float32 (m, n).
      rows, columns: lower triangular (m, m) and (n, n), as ``_feedback.factor_of`` gives them.
      steps: (m, n), above 0.
      snap: from numbers, in steps, to the levels that there are: whole numbers, or others. 0 is a level.

    Returns:
      Levels as float32 (m, n).
    """
    m, n = w.shape
    if not w.size:
        return w
    (high, pad_m), (wide, pad_n) = _blocks(m), _blocks(n)
    around = ((0, pad_m), (0, pad_n))
    # Where nothing is left to round: weights of 0 beside unit factors.
    padded = jnp.pad(w, around)
    nothing = jnp.zeros_like(padded)
    whole = _Part(
        padded,
        jnp.pad(steps, around, constant_values=1.0),
        nothing,
        nothing,
        _below(rows, pad_m),
        _below(columns, pad_n),
    )
    sizes = [(high, wide), (TILE, TILE)]
    return _in_parts(whole, sizes[padded.shape == sizes[0] :], snap).levels[:m, :n]


def _blocks(size: int) -> tuple[int, int]:
    """(length of a block, what is missing to a whole number of blocks): about equal, each of whole tiles."""
    tiles = max(-(-size // TILE), 1)
    length = -(-tiles // -(-tiles // BLOCK)) * TILE
    return length, -size % length


def _below(triangle: jax.Array, padding: int) -> jax.Array:
    """A factor below its diagonal, each row divided by its element there."""
    return jnp.pad(jnp.tril(triangle, -1) / jnp.diagonal(triangle)[:, None], ((0, padding), (0, padding)))


def _in_parts(part: _Part, sizes: list[tuple[int, int]], snap: Snap) -> _Done:
    """A part in smaller parts of the first size, these in parts of the next; tiles at last."""
    if not sizes:
        return _tile(part, snap)
    (high, wide), *smaller = sizes
    r, c = part.weights.shape

    def of_rows(errors: jax.Array, i: jax.Array) -> tuple[jax.Array, _Done]:
        def cut(x: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(x, i, high)

        factor = cut(part.rows)
        own = part._replace(
            weights=cut(part.weights),
            steps=cut(part.steps),
            above=cut(part.above) + factor @ errors,
            left=cut(part.left),
            rows=lax.dynamic_slice_in_dim(factor, i, high, 1),
        )
        done = _of_columns(own, wide, smaller, snap)
        return lax.dynamic_update_slice_in_dim(errors, done.errors, i, 0), done

    _, done = lax.scan(of_rows, jnp.zeros((r, c), jnp.float32), jnp.arange(0, r, high))
    return _Done(*(x.reshape(r, c) for x in done))


def _of_columns(part: _Part, wide: int, smaller: list[tuple[int, int]], snap: Snap) -> _Done:
    """Rows of parts, one part after the other."""
    r, c = part.weights.shape

    def of_columns(sums: jax.Array, j: jax.Array) -> tuple[jax.Array, _Done]:
        def cut(x: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(x, j, wide, 1)

        factor = lax.dynamic_slice_in_dim(part.columns, j, wide)
        own = part._replace(
            weights=cut(part.weights),
            steps=cut(part.steps),
            above=cut(part.above),
            left=cut(part.left) + sums @ factor.T,
            columns=cut(factor),
        )
        done = _in_parts(own, smaller, snap)
        return lax.dynamic_update_slice_in_dim(sums, done.sums, j, 1), done

    _, done = lax.scan(of_columns, jnp.zeros((r, c), jnp.float32), jnp.arange(0, c, wide))
    return _Done(*(x.swapaxes(0, 1).reshape(r, c) for x in done))


def _tile(part: _Part, snap: Snap) -> _Done:
    """A tile of b rows and columns, one antidiagonal after the other.

    Its rows are turned upside down, so that antidiagonal t is at row k = b - 1 - i and column j = t - i =
    t - (b - 1) + k: with b - 1 columns of padding in front, the diagonal of the slice that begins at column t.
    """
    b = len(part.weights)
    weights, above, left = (_by_antidiagonals(x) for x in (part.weights, part.above, part.left))
    steps = 1 + _by_antidiagonals(part.steps - 1)  # 1 outside of the tile
    rows = part.rows[::-1, ::-1].T  # (k', k)
    columns = jnp.pad(part.columns.T, ((0, 0), (b - 1, b - 1)))  # (j', j)
    diagonal = jnp.eye(b, dtype=bool)
    distance = jnp.arange(b)[:, None] - jnp.arange(b)[None, :]

    def antidiagonal(t: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        errors, sums, levels = state  # (k, padded j), (j, k), (t, k)
        near = lax.dynamic_slice(errors, (0, t), (b, b))
        u = above[t] + (rows * near).sum(0)
        v = left[t] + (lax.dynamic_slice(columns, (0, t), (b, b)) * sums).sum(0)
        level = snap((weights[t] - u - v) / steps[t])
        error = level * steps[t] - weights[t]
        errors = lax.dynamic_update_slice(errors, jnp.where(diagonal, error[None], near), (0, t))
        sums = jnp.where(distance == t - (b - 1), (error + u)[None], sums)
        return errors, sums, levels.at[t].set(level)

    start = (
        jnp.zeros((b, 3 * b - 2), jnp.float32),
        jnp.zeros((b, b), jnp.float32),
        jnp.zeros((2 * b - 1, b), jnp.float32),
    )
    errors, sums, levels = lax.fori_loop(0, 2 * b - 1, antidiagonal, start)
    return _Done(_by_rows(levels), errors[::-1, b - 1 : 2 * b - 1], sums.T[::-1])


def _by_antidiagonals(x: jax.Array) -> jax.Array:
    """(2 b - 1, b) from (b, b): element (i, j) at (i + j, b - 1 - i), 0 where there is none."""
    b = len(x)
    flat = jnp.pad(x, ((0, 0), (0, b))).reshape(-1)[: b * (2 * b - 1)]  # each row a column further on
    return flat.reshape(b, 2 * b - 1)[::-1].T


def _by_rows(x: jax.Array) -> jax.Array:
    """The way back."""
    b = x.shape[1]
    return jnp.pad(x.T[::-1].reshape(-1), (0, b)).reshape(b, 2 * b)[:, :b]
