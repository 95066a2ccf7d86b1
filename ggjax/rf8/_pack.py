"""Many small leaves encoded together under jit.

XLA takes 0.1 s of one core and more to compile ``encode_array`` for one more shape. Here the leaves follow each
other in one array, in rows of their own, and only a copy in and two slices out are left for each of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.rf8 import _rounding
from ggjax.rf8._array import RF8Array
from ggjax.rf8._encode import bits_of
from ggjax.rf8._rounding import Rounding

MOST = 64
"""Leaves of one pack at most: the time that XLA takes rises with the square of the slices of one array."""

_ROW = 128
"""Weights of a row; the last row of a leaf is filled up with zeros."""


@functools.partial(jax.jit, static_argnames="rounding")
def encode_packed(leaves: list[jax.Array], *, rounding: Rounding) -> list[RF8Array]:
    """``encode_array`` of leaves of one dtype, each with one exponent."""
    dtype = leaves[0].dtype
    rows = [-(-x.size // _ROW) for x in leaves]
    pieces = [
        p for x, r in zip(leaves, rows, strict=True) for p in (x.ravel(), np.zeros(r * _ROW - x.size, dtype))
    ]
    bits = bits_of(lax.optimization_barrier(jnp.concatenate(pieces))).reshape(-1, _ROW)
    leaf = np.repeat(np.arange(len(leaves), dtype=np.int32), rows)
    tops = jnp.max(bits & _rounding.ABS, axis=1)
    top = jnp.zeros(len(leaves), np.int32).at[leaf].max(tops, indices_are_sorted=True)
    codes, _ = _rounding.codes_of(bits, top[leaf][:, None], dtype, rounding, jnp)
    _, exponents = _rounding.codes_of(top, top, dtype, rounding, jnp)
    # Without the barrier, XLA would compute every leaf again from the rows, in a program of its own.
    codes, exponents = lax.optimization_barrier((codes.ravel(), exponents))
    out = []
    for x, i, start in zip(leaves, range(len(leaves)), np.cumsum([0, *rows[:-1]]) * _ROW, strict=True):
        own = exponents[i : i + 1].reshape((1,) * x.ndim)
        out.append(RF8Array(codes[start : start + x.size].reshape(x.shape), own, dtype))
    return out
