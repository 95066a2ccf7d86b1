"""Weights as whole numbers with steps."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import shared, trees
from ggjax.codec.serving import _floats_needed, _matrices, _nibbles, _patches
from ggjax.codec.serving._matrices import Groups, Matrices
from ggjax.codec.serving._patches import Patches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LevelArray(_floats_needed.Small):
    """Whole numbers (levels) and their steps: a pytree, which passes through jit, vmap, scan and checkpoints.

    A weight is level times row step times column step. ``codec.dot`` and ``codec.einsum`` multiply with it as
    it is; ``decode`` gives the weights as floats, which takes four times its memory and more. Leading axes can
    be indexed, and mapped or scanned over where the steps have them too.

    Invariants:

    - levels: int8 or int16, of the shape of the array; or uint8, half as long along the axis ``packed``, two
      levels from -8 to 7 in a byte: neighbours along that axis, the first one in the low half.
    - row_steps, column_steps: float32, of as many dimensions as the array, each of the size that it has there,
      or of size 1 where all weights share a step.
    - patches: weights that are kept as float32 beside the levels, by their places along the last two axes;
      None where there are none. Their levels are 0.
    - dtype: static; the floating dtype of ``decode``.
    - packed: static; a negative axis, or None.
    """

    levels: jax.Array
    row_steps: jax.Array
    column_steps: jax.Array
    patches: Patches | None = None
    dtype: Any = dataclasses.field(default=jnp.dtype("float32"), metadata={"static": True})
    packed: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        shape = self.levels.shape
        if self.packed is None:
            return shape
        at = self.packed % len(shape)
        return (*shape[:at], 2 * shape[at], *shape[at + 1 :])

    @property
    def sharding(self) -> Any:
        """The sharding of the levels."""
        return self.levels.sharding

    def decode(self, dtype: Any = None) -> jax.Array:
        """The weights, in their own dtype or another floating one."""
        return _decoded(self, jnp.dtype(self.dtype if dtype is None else dtype))

    def unpacked(self) -> "LevelArray":
        """The same with a byte or more for every level."""
        if self.packed is None:
            return self
        return dataclasses.replace(self, levels=_nibbles.unpack(self.levels, self.packed), packed=None)

    def grouped(self, *groups: tuple[int, ...]) -> Matrices:
        """The array as matrices, see ``Matrices``."""
        return _grouped(self, groups)

    def __getitem__(self, index: Any) -> "LevelArray":
        return _indexed(self, index)


@functools.partial(jax.jit, static_argnums=1)
def _decoded(q: LevelArray, dtype: Any) -> jax.Array:
    levels = q.unpacked().levels.astype(jnp.float32)
    x = levels * (q.row_steps * q.column_steps)
    return _patches.put_in(x, q.patches).astype(dtype)


def _grouped(q: LevelArray, groups: Groups) -> Matrices:
    shape = q.shape
    scales = _matrices.scales((q.row_steps, q.column_steps), shape, groups)
    if scales is None:  # rows and columns of the product are not those of the steps
        weights = _matrices.reshaped(q.decode(jnp.float32), groups)
        return Matrices((weights,), None, None, None, _matrices.as_they_are, None, False)
    patches = _patches.regrouped(q.patches, shape, groups)
    axis = None if q.packed is None else q.packed % q.ndim
    if axis is not None and axis not in groups[1]:
        q, axis = q.unpacked(), None
    cut = None if axis is None else _matrices.cut_of(shape, groups[1], axis)
    decode = _decode_bytes if axis is not None else _matrices.as_they_are
    levels = _matrices.reshaped(q.levels, groups)
    return Matrices((levels,), *scales, patches, decode, cut, levels.dtype.itemsize == 1)


def _decode_bytes(levels: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(x.astype(jnp.float32) for x in _nibbles.halves(levels))


def _indexed(q: LevelArray, index: Any) -> LevelArray:
    entries = index if isinstance(index, tuple) else (index,)
    if q.patches is not None and not _is_leading(entries, q.ndim - 2):
        raise IndexError(
            f"a LevelArray of shape {q.shape} with patches can be indexed along its leading axes only, got "
            f"{index!r}: decode() it first"
        )
    if q.packed is not None and not _is_leading(entries, q.packed % q.ndim):
        q = q.unpacked()
    rows, columns = (s[shared.index_of(s.shape, index)] for s in (q.row_steps, q.column_steps))
    patches = None if q.patches is None else jax.tree.map(lambda a: a[index], q.patches)
    return LevelArray(q.levels[index], rows, columns, patches, q.dtype, q.packed)


def _is_leading(entries: tuple[Any, ...], axes: int) -> bool:
    """Whether an index takes some of so many first axes and leaves the others alone."""
    return len(entries) <= axes and not any(
        e is None or e is Ellipsis or getattr(e, "dtype", None) == np.bool_ for e in entries
    )


def check_form(q: LevelArray, name: str) -> None:
    """Raise TypeError or ValueError unless the fields of a LevelArray fit together."""
    levels = getattr(q.levels, "dtype", type(q.levels).__name__)
    if levels != np.uint8 if q.packed is not None else levels not in (np.int8, np.int16):
        raise TypeError(
            f"{name}: levels must be int8 or int16, or uint8 where two are packed in a byte, got {levels}"
        )
    if not trees.is_weight_dtype(q.dtype):
        raise TypeError(f"{name}: dtype must be a floating one of at least 8 bits, got {q.dtype}")
    if q.packed is not None and not -q.ndim <= q.packed < 0:
        raise ValueError(f"{name}: packed must be a negative axis of shape {q.levels.shape}, got {q.packed}")
    for what, steps in (("row_steps", q.row_steps), ("column_steps", q.column_steps)):
        if not jnp.issubdtype(getattr(steps, "dtype", np.int32), np.floating):
            raise TypeError(f"{name}: {what} must be float32, got {getattr(steps, 'dtype', steps)}")
        shape = steps.shape
        if len(shape) != q.ndim or any(s not in (1, n) for s, n in zip(shape, q.shape, strict=True)):
            raise ValueError(
                f"{name}: {what} of shape {shape} do not fit weights of shape {q.shape}: expected as many "
                "dimensions, each of the same size or of size 1"
            )
