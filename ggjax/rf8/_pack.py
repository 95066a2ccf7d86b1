"""Many small leaves encoded together under jit.

XLA takes 0.1 s of one core and more to compile ``encode_array`` for one more shape. Here the leaves follow each
other in one array, in rows of their own, and only a copy in and two slices out are left for each of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import pack
from ggjax.rf8 import _rounding
from ggjax.rf8._array import RF8Array
from ggjax.rf8._encode import bits_of
from ggjax.rf8._rounding import Rounding


@functools.partial(jax.jit, static_argnames="rounding")
def encode_packed(leaves: list[jax.Array], *, rounding: Rounding) -> list[RF8Array]:
    """``encode_array`` of leaves of one dtype, each with one exponent."""
    dtype = leaves[0].dtype
    bits = bits_of(lax.optimization_barrier(pack.in_rows(leaves)))
    leaf = pack.owners([x.size for x in leaves])
    tops = jnp.max(bits & _rounding.ABS, axis=1)
    top = jnp.zeros(len(leaves), np.int32).at[leaf].max(tops, indices_are_sorted=True)
    codes, _ = _rounding.codes_of(bits, top[leaf][:, None], dtype, rounding, jnp)
    _, exponents = _rounding.codes_of(top, top, dtype, rounding, jnp)
    # Without the barrier, XLA would compute every leaf again from the rows, in a program of its own.
    codes, exponents = lax.optimization_barrier((codes.ravel(), exponents))
    starts = np.cumsum([0, *(pack.rows(x.size) for x in leaves[:-1])]) * pack.ROW
    out = []
    for x, i, start in zip(leaves, range(len(leaves)), starts, strict=True):
        own = exponents[i : i + 1].reshape((1,) * x.ndim)
        out.append(RF8Array(codes[start : start + x.size].reshape(x.shape), own, dtype))
    return out
