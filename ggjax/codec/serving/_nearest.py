"""Weights rounded to the nearest level, with a step for every output channel: what needs no calibration."""

import functools

import jax
import jax.numpy as jnp

from ggjax.codec.serving import _nibbles
from ggjax.codec.serving._array import LevelArray
from ggjax.sensitivity._views import View


@functools.partial(jax.jit, static_argnames=("bits", "view", "is_table"))
def nearest(x: jax.Array, bits: int, view: View, is_table: bool) -> LevelArray:
    """The array on levels of 8 or 4 bits.

    The largest weight of every column (of a table: of every row, which is looked up by itself) has the level
    127 or 7. 4 bits take an even number of rows: others, and tables, get 8.
    """
    axes = view.columns if is_table else view.rows
    axis = (view.rows or (x.ndim - 1,))[-1]
    packed = bits == 4 and not is_table and x.shape[axis] % 2 == 0
    most = 7 if packed else 127
    size = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True, initial=0)
    steps = jnp.where(size > 0, size / most, 1)
    levels = jnp.clip(jnp.round(x.astype(jnp.float32) / steps), -most, most).astype(jnp.int8)
    levels = _nibbles.pack(levels, axis) if packed else levels
    one = jnp.ones([n if a in view.batch else 1 for a, n in enumerate(x.shape)], jnp.float32)
    rows, columns = (steps, one) if is_table else (one, steps)
    return LevelArray(levels, rows, columns, dtype=jnp.dtype(x.dtype), axis=axis - x.ndim)
