"""Rates under jit: the range of all leaves first, then one histogram of a fixed size for the whole tree."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import pack, steps, trees
from ggjax.rate import _codes, _histogram

TRACED_LEVELS = 1 << 17
"""How many levels, from the smallest to the largest in use, a histogram under jit has room for."""

_FEW = 16
"""Trees of more leaves than this have their small leaves packed together."""

_PACK_SIZE = 1 << 18
"""How many weights a pack holds at most: packs are copies, which are to take little memory."""


@functools.partial(jax.jit, static_argnames=("code", "packs"))
def traced_bits(leaves: list[Any], step: Any, code: _codes.Code, *, packs: bool) -> jax.Array:
    """``bits`` of traced leaves or a traced step; NaN where it would raise an error outside jit.

    Args:
      packs: whether small leaves may be copied together, which would gather sharded ones.
    """
    some = [jnp.asarray(x) for x in leaves if np.size(x)]
    if not some:
        return jnp.zeros((), jnp.float32)
    step = jnp.asarray(step)
    step = step.astype(trees.wide_dtype(step.dtype))
    size = trees.size(some)
    if packs and len(some) > _FEW:
        some = _pack(some)

    summaries = [_histogram.summarize(x, step) for x in some]
    ranges = [_whole_range(s) for s in summaries]
    # A sort, since XLA would work out a minimum of minima anew for every leaf's histogram.
    ends = jnp.sort(jnp.stack([end for low, high, _ in ranges for end in (low, high)]))
    low, high = ends[0], ends[-1]
    valid = jnp.stack([fits for _, _, fits in ranges]).all()
    limits = steps.step_limits(some)
    smallest, largest = (jnp.asarray(v, step.dtype) for v in (limits.smallest_normal, limits.max))
    valid &= (step >= smallest) & (step <= largest)  # false for NaN

    levels, counts = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.float32)
    if code not in _codes.NEEDS_NO_COUNTS:
        valid &= _codes.span(low, high) < TRACED_LEVELS
        table = _histogram.empty(TRACED_LEVELS)
        for x in some:
            table = _histogram.count(x, step, low, table)
        levels, counts = low + jnp.arange(TRACED_LEVELS, dtype=jnp.int32), _histogram.as_float(table)
    first = jnp.stack([s.first.astype(jnp.float32) for s in summaries]).sum()
    second = jnp.stack([s.second.astype(jnp.float32) for s in summaries]).sum()
    _, rates = _codes.measure(levels, counts, (low, high), (first, second), float(size), codes=(code,))
    # Where it is not valid, 0/0: a NaN written out here would alarm jax_debug_nans in healthy runs.
    return jnp.where(valid, rates[code], 0.0) / valid.astype(jnp.float32)


def _whole_range(summary: _histogram.Summary) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The smallest and the largest level, int32, and whether they are finite and fit; 0 where they do not."""
    low, high = summary.low, summary.high
    fits = (low > -(2.0**31)) & (high < 2.0**31)  # false for NaN
    low, high = (jnp.where(fits, end, 0).astype(jnp.int32) for end in (low, high))
    return low, high, fits


def _pack(leaves: list[jax.Array]) -> list[jax.Array]:
    """The same weights in fewer arrays: small leaves of one dtype one after another, large ones as they are.

    A program for each of thousands of leaves would take minutes to compile.
    """
    # Filled up by size too, so that a pack stays a small copy.
    runs: list[list[jax.Array]] = []
    open_runs: dict[Any, list[jax.Array]] = {}
    for x in sorted(leaves, key=lambda x: x.size):
        run = open_runs.get(x.dtype)
        if run is None or len(run) == pack.MOST or trees.size([*run, x]) > _PACK_SIZE:
            runs.append(run := [])
            open_runs[x.dtype] = run
        run.append(x)
    return [r[0] if len(r) == 1 else jnp.concatenate([x.ravel() for x in r]) for r in runs]
