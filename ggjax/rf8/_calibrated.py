"""RF8 with feedback: the error of every weight is made good by those that come after it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ggjax.rf8 import _rounding
from ggjax.rf8._array import RF8Array
from ggjax.rf8._encode import Axis, bits_of, encode_array
from ggjax.rf8._format import WINDOW, floats
from ggjax.rf8._rounding import Rounding
from ggjax.sensitivity import Sensitivity, View
from ggjax.sensitivity._levels import with_feedback
from ggjax.sensitivity._planned import checked
from ggjax.sensitivity._plans import plan

DAMPING = 0.3
"""How far to distrust the factors, as a multiple of what their halves say of their noise."""


def encode_all(
    names: Sequence[str], leaves: Sequence[Any], axes: Sequence[Axis], rounding: Rounding, state: Sensitivity
) -> list[Any]:
    """Leaves encoded with feedback, by what the state says of them.

    Raises:
      ValueError: the state does not cover a leaf, or in another shape; a leaf is not finite, or traced.
    """
    for name, x in zip(names, leaves, strict=True):
        if isinstance(x, jax.core.Tracer):
            raise ValueError(f"leaf {name!r}: a sensitivity needs the weights themselves: call it outside jit")
    examples = checked(dict(zip(names, leaves, strict=True)), state)
    out = []
    for name, x, axis in zip(names, leaves, axes, strict=True):
        f = state.factors[name]
        # Steps do not count here: the grid has its own, too fine for the weights themselves to matter.
        p = plan(f, examples, 0.0, jnp.ones(f.view.sizes[0], jnp.float32), DAMPING)
        out.append(_encode(jnp.asarray(x), p.rows, p.columns, f.view, axis=axis, rounding=rounding))
    return out


@functools.partial(jax.jit, static_argnames=("view", "axis", "rounding"))
def _encode(
    x: jax.Array, rows: jax.Array, columns: jax.Array, view: View, *, axis: Axis, rounding: Rounding
) -> RF8Array:
    if not x.size:
        return encode_array(x, axis=axis, rounding=rounding)
    exponents = encode_array(x, axis=axis, rounding=rounding).exponents.astype(jnp.int32)
    # In units of the largest power of two of its window, every weight has the same grid.
    unit = jnp.ldexp(jnp.float32(1), exponents + (WINDOW - 1))
    sizes = view.matrices(jnp.broadcast_to(unit, x.shape))
    w = view.matrices(_rounding.float32(x, jnp))
    top = bits_of(jnp.float32(3 / 2))  # the largest value there: what is owed may take a weight beyond its own

    def snap(t: jax.Array) -> jax.Array:
        codes, exponent = _rounding.codes_of(bits_of(t), top, jnp.float32, rounding, jnp)
        return floats(codes, exponent, jnp.float32)

    levels = with_feedback(w, rows, columns, sizes, snap)
    return encode_array(view.leaf(levels * sizes).astype(x.dtype), axis=axis, rounding=rounding)
