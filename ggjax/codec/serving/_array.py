"""Weights as whole numbers with steps."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import shared, trees
from ggjax.codec._host import namespace_of
from ggjax.codec.serving import _floats_needed, _matrices, _nibbles, _patches
from ggjax.codec.serving._matrices import Groups, Matrices
from ggjax.codec.serving._patches import Patches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LevelArray(_floats_needed.Small):
    """Whole numbers (levels) and their steps: a pytree, which passes through jit, vmap, scan and checkpoints.

    A weight is its level times its step: row step times column step, or the limit where that is less.
    ``codec.dot`` and ``codec.einsum`` multiply with it as it is; ``decode`` gives the weights as floats, which
    take four times its memory and more. Leading axes can be indexed, and mapped or scanned over where the steps
    have them too.

    Invariants:

    - levels: int8 or int16, of the shape of the array; or uint8, half as long along ``axis``: two levels from
      -8 to 7 in a byte, neighbours along that axis, the first one in the low half.
    - row_steps, column_steps: float32, positive, of as many dimensions as the array, each of the size that it
      has there, or of size 1 where all weights share a step.
    - limit: likewise, or None where no step is limited.
    - patches: weights that are kept as float32 beside the levels, in slots along ``axis``; None where there are
      none. Their levels are 0.
    - dtype: static; the floating dtype of ``decode``.
    - axis: static, negative; the axis of rows.

    >>> w = LevelArray(jnp.array([[3, -1], [0, 2]], jnp.int8), jnp.array([[0.5], [1.0]]), jnp.ones((1, 2)))
    >>> w
    LevelArray(levels=int8(2, 2), row_steps=float32(2, 1), column_steps=float32(1, 2), dtype=float32, axis=-2)
    >>> w.decode().tolist(), w.nbytes
    ([[1.5, -0.5], [0.0, 2.0]], 20)
    """

    levels: jax.Array
    row_steps: jax.Array
    column_steps: jax.Array
    limit: jax.Array | None = None
    patches: Patches | None = None
    dtype: Any = dataclasses.field(default=jnp.dtype("float32"), metadata={"static": True})
    axis: int = dataclasses.field(default=-2, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        shape = list(self.levels.shape)
        if self.is_packed:
            shape[self.axis] *= 2
        return tuple(shape)

    @property
    def is_packed(self) -> bool:
        """Whether two levels share a byte."""
        return self.levels.dtype == np.uint8

    @property
    def sharding(self) -> Any:
        """The sharding of the levels."""
        return self.levels.sharding

    def decode(self, dtype: Any = None) -> jax.Array:
        """The weights, in their own dtype or another floating one."""
        return _decoded(self, jnp.dtype(self.dtype if dtype is None else dtype))

    def unpacked(self) -> "LevelArray":
        """The same with a byte or more for every level."""
        if not self.is_packed:
            return self
        return dataclasses.replace(self, levels=_nibbles.unpack(self.levels, self.axis))

    def grouped(self, *groups: tuple[int, ...]) -> Matrices:
        """The array as matrices, see ``Matrices``."""
        return _grouped(self, groups)

    def __getitem__(self, index: Any) -> "LevelArray":
        return _indexed(self, index)


def step_of(rows: Any, columns: Any, limit: Any) -> Any:
    """The steps of weights, by those of their rows and columns and what limits them. NumPy or JAX arrays."""
    step = rows * columns
    return step if limit is None else namespace_of(step).minimum(step, limit)


@functools.partial(jax.jit, static_argnums=1)
def _decoded(q: LevelArray, dtype: Any) -> jax.Array:
    x = q.unpacked().levels.astype(jnp.float32) * step_of(q.row_steps, q.column_steps, q.limit)
    return _patches.put_in(x, q.patches, q.axis % q.ndim).astype(dtype)


def _grouped(q: LevelArray, groups: Groups) -> Matrices:
    shape, axis = q.shape, q.axis % q.ndim
    steps = _matrices.scales((q.row_steps, q.column_steps), shape, groups)
    limit = None if q.limit is None else _matrices.one_each(q.limit, shape, groups)
    astray = q.patches is not None and axis not in groups[1]
    if steps is None or astray or (limit is None) != (q.limit is None):
        # Rows and columns of the product are not those of the steps.
        weights = _matrices.reshaped(q.decode(jnp.float32), groups)
        return Matrices((weights,), None, None, None, _matrices.as_they_are, None, exact=False)
    patches = _patches.regrouped(q.patches, shape, groups, axis)
    if axis not in groups[1]:
        q = q.unpacked()
    cut = _matrices.cut_of(shape, groups[1], axis) if q.is_packed else None
    levels = _matrices.reshaped(q.levels, groups)
    rows, columns = steps
    if limit is None:
        decode = _decode_bytes if q.is_packed else _matrices.as_they_are
        return Matrices((levels,), rows, columns, patches, decode, cut, exact=levels.dtype.itemsize == 1)
    b, m, n = (math.prod(shape[a] for a in group) for group in groups)
    rows = jnp.ones((b, m), jnp.float32) if rows is None else rows
    columns = jnp.ones((b, n), jnp.float32) if columns is None else columns
    rows = _matrices.apart(rows / limit[:, None], cut)  # (P, b, m / P)
    arrays = (levels, *(r[..., None] for r in rows), columns[:, None])
    decode = _decode_limited_bytes if q.is_packed else _decode_limited
    return Matrices(arrays, None, jnp.broadcast_to(limit[:, None], (b, n)), patches, decode, cut, exact=False)


def _decode_bytes(levels: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(x.astype(jnp.float32) for x in _nibbles.halves(levels))


def _decode_limited(levels: jax.Array, rows: jax.Array, columns: jax.Array) -> tuple[jax.Array]:
    """Levels (k, n), steps of rows (k, 1) and of columns (1, n), in units of the limit."""
    return (levels.astype(jnp.float32) * jnp.minimum(rows * columns, 1),)


def _decode_limited_bytes(levels: jax.Array, *steps: jax.Array) -> tuple[jax.Array, ...]:
    """The same with steps of the first neighbours, of the second ones, and of columns."""
    *rows, columns = steps
    halves = zip(_decode_bytes(levels), rows, strict=True)
    return tuple(x * jnp.minimum(r * columns, 1) for x, r in halves)


def _indexed(q: LevelArray, index: Any) -> LevelArray:
    entries = index if isinstance(index, tuple) else (index,)
    rows_are_whole = _floats_needed.is_leading(entries, q.axis % q.ndim)
    if q.patches is not None and not rows_are_whole:
        raise IndexError(
            f"a LevelArray of shape {q.shape} with patches can be indexed only along the axes before axis "
            f"{q.axis}, got {index!r}: decode() it first"
        )
    if not rows_are_whole:
        q = q.unpacked()

    def own(numbers: jax.Array) -> jax.Array:
        return numbers[shared.index_of(numbers.shape, index)]

    limit = None if q.limit is None else own(q.limit)
    patches = None if q.patches is None else Patches(*(a[index] for a in q.patches))
    levels = q.levels[index]
    axis = q.axis if levels.ndim + q.axis >= 0 else -1
    return LevelArray(levels, own(q.row_steps), own(q.column_steps), limit, patches, q.dtype, axis)


def check_form(q: LevelArray, name: str) -> None:
    """Raise TypeError or ValueError unless the fields of a LevelArray fit together."""
    levels = getattr(q.levels, "dtype", type(q.levels).__name__)
    if levels not in (np.int8, np.int16, np.uint8):
        raise TypeError(f"{name}: levels must be int8, int16, or uint8 for two in a byte, got {levels}")
    if not trees.is_weight_dtype(q.dtype):
        raise TypeError(f"{name}: dtype must be a floating one of at least 8 bits, got {q.dtype}")
    if not -q.levels.ndim <= q.axis < 0 and (q.is_packed or q.patches is not None):
        raise ValueError(f"{name}: axis must be a negative one of shape {q.levels.shape}, got {q.axis}")
    steps = {"row_steps": q.row_steps, "column_steps": q.column_steps}
    for what, numbers in (steps if q.limit is None else steps | {"limit": q.limit}).items():
        dtype = getattr(numbers, "dtype", type(numbers).__name__)
        if dtype != np.float32:
            raise TypeError(f"{name}: {what} must be float32, got {dtype}")
        shape = numbers.shape
        if len(shape) != q.ndim or any(s not in (1, n) for s, n in zip(shape, q.shape, strict=True)):
            raise ValueError(
                f"{name}: {what} of shape {shape} do not fit weights of shape {q.shape}: expected as many "
                "dimensions, each of the same size or of size 1"
            )
    if q.patches is not None:
        for what, numbers in zip(Patches._fields, q.patches, strict=True):
            want = list(q.shape)
            want[q.axis] = q.patches.rows.shape[q.axis] if q.patches.rows.ndim == q.ndim else 0
            if numbers.shape != tuple(want):
                raise ValueError(
                    f"{name}: patches.{what} of shape {numbers.shape} do not fit weights of shape {q.shape}: "
                    f"expected the same but along axis {q.axis}"
                )
