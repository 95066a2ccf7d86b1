"""The codes: bits per parameter from a histogram of levels, one function a code."""

import functools
import heapq
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from ggjax.rate import _law

Code = Literal["entropy", "fixed", "exp_golomb", "exp_golomb_rank", "huffman", "gg", "gg_closed_form"]
CODES: tuple[Code, ...] = get_args(Code)


class Histogram(NamedTuple):
    """How often each level occurs, and the law of the weights."""

    levels: jax.Array  # int32 (k,), each at most once among those that occur
    counts: jax.Array  # float32 (k,), 0 for a level that does not occur
    low: jax.Array  # int32 (), the smallest level that occurs
    high: jax.Array  # int32 (), the largest
    size: jax.Array  # float32 (), how many weights there are, at least 1
    law: _law.Law  # fitted to the weights in units of the step

    def mean(self, lengths: jax.Array) -> jax.Array:
        """The bits per parameter of code words of these lengths (k,)."""
        bits = jnp.sum(jnp.where(self.counts > 0, self.counts / self.size * lengths, 0))
        return jnp.maximum(bits, 0)  # neither -0 nor a sum that rounding left below 0


def check_code(code: Any) -> None:
    """Raise ValueError unless this is one of ``CODES``."""
    if code not in CODES:
        raise ValueError(f"code must be one of {', '.join(CODES)}; got {code!r}")


@functools.partial(jax.jit, static_argnames="codes")
def measure(
    levels: Any,
    counts: Any,
    ends: tuple[Any, Any],
    moments: tuple[Any, Any],
    size: Any,
    *,
    codes: tuple[Code, ...],
) -> tuple[jax.Array, dict[Code, jax.Array]]:
    """The fitted shape nu, and the rates by several codes: float32 scalars.

    Args:
      levels, counts: int32 and float32 (k,), see ``Histogram``.
      ends: the smallest and the largest level, int32.
      moments: sum |x| and sum x^2 of the weights over the step.
      size: how many weights there are, a positive number.
      codes: any but "huffman", which is not a device's work: see ``huffman_bits``.
    """
    low, high = (jnp.asarray(e, jnp.int32) for e in ends)
    first, second, size = (jnp.asarray(v).astype(jnp.float32) for v in (*moments, size))
    law = _law.fit(first, second, size)
    histogram = Histogram(jnp.asarray(levels), jnp.asarray(counts), low, high, size, law)
    return law.nu, {code: _ON_DEVICE[code](histogram) for code in codes}


def huffman_bits(counts: list[int]) -> int:
    """The length in bits of all levels together in an optimal prefix code: every merge adds its weight.

    Empties the list.
    """
    heapq.heapify(counts)
    length = 0
    while len(counts) > 1:
        pair = heapq.heappop(counts) + counts[0]
        heapq.heapreplace(counts, pair)
        length += pair
    return length


def _entropy(h: Histogram) -> jax.Array:
    return h.mean(-jnp.log2(jnp.where(h.counts > 0, h.counts / h.size, 1)))


def _fixed(h: Histogram) -> jax.Array:
    return (32 - lax.clz(span(h.low, h.high))).astype(jnp.float32)


def _exp_golomb(h: Histogram) -> jax.Array:
    return h.mean(golomb_bits(signed_number(h.levels)))


def _exp_golomb_rank(h: Histogram) -> jax.Array:
    used = h.counts > 0
    table = golomb_bits(jnp.sum(used, dtype=jnp.uint32))
    table = table + jnp.sum(jnp.where(used, golomb_bits(signed_number(h.levels)), 0))
    falling = -jnp.sort(-h.counts / h.size)
    ranks = jnp.arange(len(h.counts), dtype=jnp.uint32)
    return jnp.sum(falling * golomb_bits(ranks)) + table / h.size


def _gg(h: Histogram) -> jax.Array:
    return h.mean(_law.level_bits(h.levels, h.law))


def _gg_closed_form(h: Histogram) -> jax.Array:
    return _law.entropy_bits(h.law)


_ON_DEVICE: dict[Code, Callable[[Histogram], jax.Array]] = {
    "entropy": _entropy,
    "fixed": _fixed,
    "exp_golomb": _exp_golomb,
    "exp_golomb_rank": _exp_golomb_rank,
    "gg": _gg,
    "gg_closed_form": _gg_closed_form,
}

NEEDS_NO_COUNTS: tuple[Code, ...] = ("fixed", "gg_closed_form")
"""The codes that look at the range or the law only."""


def span(low: jax.Array, high: jax.Array) -> jax.Array:
    """high - low as uint32, which cannot overflow."""
    return high.astype(jnp.uint32) - low.astype(jnp.uint32)


def signed_number(levels: jax.Array) -> jax.Array:
    """The levels 0, 1, -1, 2, -2, ... as 0, 1, 2, 3, 4, ... (uint32)."""
    return 2 * jnp.abs(levels).astype(jnp.uint32) - (levels > 0).astype(jnp.uint32)


def golomb_bits(k: jax.Array) -> jax.Array:
    """Bits of the exponential Golomb code, of order 0, of k = 0, 1, ..., 2^32 - 2: 2 floor(log2(k + 1)) + 1."""
    digits = 32 - lax.clz(k + jnp.uint32(1)).astype(jnp.int32)  # of k + 1, in binary
    return (2 * digits - 1).astype(jnp.float32)
