"""Grids: a matrix whose rows and columns have classes, cut into parts by both.

The weights of a row class and a column class stand at the crossings of these rows and columns. A part holds the
crossings of some pairs of classes: those where weights scatter alike, so that one model does for them.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec.entropy import _planes


class Grid(NamedTuple):
    """Which part the weights at each crossing belong to; hashable."""

    rows: tuple[int, ...]  # how many rows each row class has
    columns: tuple[int, ...]  # how many columns each column class has
    parts: tuple[int, ...]  # of every pair (row class, column class), the column class counted fastest

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return sum(self.rows), sum(self.columns)

    @property
    def sizes(self) -> list[int]:
        """How many weights every part has."""
        out = [0] * (max(self.parts) + 1)
        for (r, c), k in zip(itertools.product(self.rows, self.columns), self.parts, strict=True):
            out[k] += r * c
        return out

    @property
    def class_bits(self) -> tuple[int, int]:
        """The bits of the class of a row, and of a column."""
        return (len(self.rows) - 1).bit_length(), (len(self.columns) - 1).bit_length()

    @property
    def class_bytes(self) -> tuple[int, int]:
        """The bytes of the classes of all rows, and of all columns."""
        (m, n), (a, b) = self.shape, self.class_bits
        return _planes.nbytes(m, a), _planes.nbytes(n, b)


def of_classes(rows: np.ndarray, columns: np.ndarray, parts: Sequence[int]) -> Grid:
    """The grid of the class of every row and of every column."""
    return Grid(tuple(np.bincount(rows).tolist()), tuple(np.bincount(columns).tolist()), tuple(parts))


def pack(grid: Grid, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The classes of all rows, then of all columns, as bytes."""
    out = [np.zeros(0, np.uint8)]
    for classes, bits in zip((rows, columns), grid.class_bits, strict=True):
        numbers = np.zeros(_planes.padded(len(classes)), np.uint32)
        numbers[: len(classes)] = classes
        out += [_planes.pack(numbers, bits)] if bits else []
    return np.concatenate(out)


def unpack(grid: Grid, data: Any) -> tuple[Any, Any]:
    """(class of every row, class of every column), uint32. NumPy or JAX."""
    out, place = [], 0
    for number, bits, nbytes in zip(grid.shape, grid.class_bits, grid.class_bytes, strict=True):
        piece = data[place : place + nbytes]
        place += nbytes
        classes = _planes.unpack(piece, _planes.padded(number), bits)[:number] if bits else None
        out.append(np.zeros(number, np.uint32) if classes is None else classes)
    return out[0], out[1]


def crossings(grid: Grid) -> Iterator[tuple[int, int, int, int]]:
    """(part, row class, column class, place in the part) of every pair of classes, in order."""
    place = [0] * (max(grid.parts) + 1)
    pairs = itertools.product(range(len(grid.rows)), range(len(grid.columns)))
    for (a, b), k in zip(pairs, grid.parts, strict=True):
        yield k, a, b, place[k]
        place[k] += grid.rows[a] * grid.columns[b]


def cut(grid: Grid, rows: np.ndarray, columns: np.ndarray, matrix: np.ndarray) -> list[np.ndarray]:
    """The weights of every part, on the host."""
    at = _indices(grid, rows, columns)
    out: list[list[np.ndarray]] = [[] for _ in grid.sizes]
    for k, a, b, _ in crossings(grid):
        out[k].append(matrix[np.ix_(at[0][a], at[1][b])].reshape(-1))
    return [np.concatenate(x) for x in out]


def joined(grid: Grid, rows: np.ndarray, columns: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The matrix of the weights of all parts, on the host."""
    at = _indices(grid, rows, columns)
    out = np.empty(grid.shape, parts[0].dtype)
    for k, a, b, place in crossings(grid):
        m, n = grid.rows[a], grid.columns[b]
        out[np.ix_(at[0][a], at[1][b])] = parts[k][place : place + m * n].reshape(m, n)
    return out


def _indices(grid: Grid, *classes: np.ndarray) -> list[list[np.ndarray]]:
    counts = (grid.rows, grid.columns)
    return [[np.flatnonzero(c == k) for k in range(len(n))] for c, n in zip(classes, counts, strict=True)]


def joined_traced(grid: Grid, rows: jax.Array, columns: jax.Array, parts: Sequence[jax.Array]) -> jax.Array:
    """``joined`` under jit: the crossings side by side, then every row and column to its place."""
    bands: list[list[jax.Array]] = [[] for _ in grid.rows]
    for k, a, b, place in crossings(grid):
        m, n = grid.rows[a], grid.columns[b]
        bands[a].append(parts[k][place : place + m * n].reshape(m, n))
    matrix = jnp.concatenate([jnp.concatenate(band, 1) for band in bands])
    # Where each row stands among those sorted by class.
    row, column = (jnp.argsort(jnp.argsort(jnp.asarray(c), stable=True)) for c in (rows, columns))
    return matrix[row[:, None], column[None, :]]
