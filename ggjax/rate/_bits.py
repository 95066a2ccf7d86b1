"""``rate.bits``: one number for a whole tree, outside jit or under it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ggjax._internal import pack, steps, trees
from ggjax.rate import _codes, _count, _traced


def bits(params: Any, step: ArrayLike, *, code: _codes.Code = "entropy", mask: trees.Mask = None) -> jax.Array:
    """Bits per parameter of the levels round(theta / step), one code for the whole tree.

    Outside jit (and under it, for weights and a step that are not traced) any range of levels is counted. For
    traced values the table has a fixed size: the codes that need the histogram give NaN when the levels span
    more than ``TRACED_LEVELS``; "fixed" and "gg_closed_form" do not need it. What raises an error about values
    outside jit (see below) gives NaN for traced ones.

    Inside ``jax.shard_map`` this is the rate of the shard that each device holds, with a range, a histogram and
    a law of its own; for the rate of whole sharded arrays call it outside, which gathers nothing.

    Args:
      params: a tree of arrays; floating leaves count, in any floating dtype, and others are passed over. Levels
        are computed in float32 (float64 for float64 leaves).
      step: distance between levels, in the units of the weights, a positive number; may be traced.
      code: one of ``CODES``, described at the head of ``ggjax.rate``. "huffman" runs on the host only.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.

    Returns:
      A float32 scalar; 0 when there are no weights. It is constant between jumps and not made to be
      differentiated (take ``penalty``), except for "gg_closed_form", whose gradient is finite and that of the
      law's scale at a fixed shape.

    Raises:
      ValueError: an unknown code; a step that is not one positive number, or is smaller or larger than the
        normal numbers of float32 (of float64 when all leaves are float64); "huffman" of traced values; no
        floating leaf; a mask that does not fit; a NaN or infinite weight; a level beyond int32.

    >>> w = jnp.array([0.0, 0.0, 0.5, -0.5])
    >>> float(bits({"w": w}, 0.5)), float(bits({"w": w}, 0.5, code="fixed"))
    (1.5, 2.0)
    """
    _codes.check_code(code)
    flat = trees.flatten(params, mask)
    leaves = flat.weights()
    steps.check_step(step, leaves)
    if not trees.is_concrete(step, *leaves):
        if code == "huffman":
            raise ValueError(
                'code "huffman" is built on the host and cannot run under jit: call it outside, '
                'or take "entropy", which is less than one bit below it'
            )
        return _traced.traced_bits(leaves, step, code, packs=pack.one_device())
    with jax.ensure_compile_time_eval():  # under jit, the arrays made on the way would be traced
        total = _count.merge(_count.count_leaves(flat.weight_names(), leaves, float(np.asarray(step))))
        _, rates = _count.rates_of(total, (code,))
        return jnp.asarray(rates[code], jnp.float32)
