"""Models: how often each token is expected, as whole numbers that sum to 2^14.

The decoder reads these numbers from the file; no probability is ever computed in floating point on that side,
so a stream decodes alike on every device. On the encoder's side the numbers are the empirical ones, rounded;
a table that another part brought already is used again where that is shorter than a table of its own.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec.entropy import _golomb

BITS = 14
TOTAL = 1 << BITS
TOKENS = 256


def frequencies(counts: np.ndarray) -> np.ndarray:
    """The table for tokens that occur so often: uint16 (256,), sum 2^14, at least 1 where counts are not 0.

    Rounded to nearest, then moved by single units where that costs the fewest bits. No tokens at all give
    everything to token 0.
    """
    counts = np.asarray(counts, np.float64)
    if not counts.any():
        counts = np.eye(1, TOKENS)[0]
    used = counts > 0
    f = np.where(used, np.maximum(np.rint(counts * (TOTAL / counts.sum())), 1), 0)
    while (excess := int(f.sum()) - TOTAL) != 0:
        sign = -1 if excess > 0 else 1
        # What a unit more or less changes in bits, cheapest first; at most one unit a token and round.
        able = used & ((f > 1) | (sign > 0))
        cost = np.full(TOKENS, np.inf)
        cost[able] = counts[able] * (np.log2(f[able]) - np.log2(f[able] + sign))
        cheapest = np.argsort(cost, kind="stable")[: min(abs(excess), int(able.sum()))]
        f[cheapest] += sign
    return f.astype(np.uint16)


def cost_bits(counts: np.ndarray, table: np.ndarray) -> float:
    """The bits of tokens that occur so often, coded with this table; infinite where it lacks one of them."""
    used = counts > 0
    if not table[used].all():
        return np.inf
    return float((counts[used] * (BITS - np.log2(table[used].astype(np.float64)))).sum())


@functools.lru_cache(maxsize=256)
def _bits_of_tokens(table: bytes) -> np.ndarray:
    """The bits of every token by a table, float64 (256,); ``_NEVER`` for those that it lacks."""
    f = np.frombuffer(table, np.uint16)
    return np.where(f > 0, BITS - np.log2(np.maximum(f, 1)), _NEVER)


def cheapest(counts: np.ndarray, tables: Sequence[np.ndarray]) -> tuple[int, float]:
    """(which of some tables codes tokens that occur so often in the fewest bits, these bits)."""
    bits = np.stack([_bits_of_tokens(t.tobytes()) for t in tables]) @ counts.astype(np.float64)
    best = int(np.argmin(bits))
    return best, float(bits[best]) if bits[best] < _NEVER else np.inf


def encode_table(table: np.ndarray) -> np.ndarray:
    """What the encoder looks up by token: frequency << 16 | sum of those before, uint32 (256,)."""
    start = np.cumsum(table, dtype=np.uint32) - table
    return table.astype(np.uint32) << 16 | start


def decode_tables(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the decoder looks up by slot, 0 to 2^14 - 1.

    Returns:
      uint32 (2^14,): (frequency - 1) << 14 | slot - start of its token; and the token, uint8 (2^14,).
    """
    token = np.repeat(np.arange(TOKENS, dtype=np.uint8), table)
    start = np.cumsum(table, dtype=np.uint32) - table
    slot = np.arange(TOTAL, dtype=np.uint32)
    return (table.astype(np.uint32)[token] - 1) << BITS | slot - start[token], token


def decode_tables_traced(tables: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``decode_tables`` of several tables, uint16 (n, 256), which may be traced."""
    slots = jnp.arange(TOTAL, dtype=jnp.int32)
    ends = jnp.cumsum(tables.astype(jnp.int32), axis=1)
    symbols = jax.vmap(lambda e: jnp.searchsorted(e, slots, side="right"))(ends).astype(jnp.int32)
    size = jnp.take_along_axis(tables.astype(jnp.int32), symbols, 1)
    start = jnp.take_along_axis(ends, symbols, 1) - size
    entries = ((size - 1) << BITS | slots[None] - start).astype(jnp.uint32)
    return entries, symbols.astype(jnp.uint8)


def pack(table: np.ndarray) -> bytes:
    """A table as bytes.

    Three bytes, the first and the last token in use and an order k; then, bit by bit from the top of each byte,
    the frequency of each token from the first to the last, as its difference from the one before (from 0 at
    first) in exponential Golomb code of order k, with 0, 1, -1, 2, ... numbered 0, 1, 2, 3, ...; zeros fill
    the last byte. The order is that of the fewest bits.
    """
    low, counts = _counts(table)
    k, bits = _golomb.write(counts)
    return bytes((low, low + len(counts) - 1, k)) + _golomb.to_bytes(bits)


def packed_size(table: np.ndarray) -> int:
    """The bytes that ``pack`` makes of a table."""
    return 3 + -(-int(_golomb.lengths(_counts(table)[1]).sum(1).min()) // 8)


_NEVER = 2.0**80
"""The bits of a token that a table lacks."""


def _counts(table: np.ndarray) -> tuple[int, np.ndarray]:
    """(first token in use, the numbers that ``pack`` writes)."""
    used = np.flatnonzero(table)
    low, high = int(used[0]), int(used[-1])
    return low, _golomb.counted(np.diff(table[low : high + 1].astype(np.int64), prepend=0))


def unpack(data: bytes) -> np.ndarray:
    """The table that ``pack`` made the bytes of.

    Raises:
      ValueError: it is not such a table.
    """
    if len(data) < 4 or len(data) > 2048:
        raise ValueError(f"a table of {len(data)} bytes")
    low, high, k = data[:3]
    if high < low:
        raise ValueError(f"a table of tokens {low} to {high}")
    bits = _golomb.of_bytes(data[3:])
    try:
        deltas, place = _golomb.read(bits, 0, high - low + 1, k)
        _golomb.check_end(bits, place)
    except ValueError as e:
        raise ValueError(f"a table of tokens {low} to {high}: {e}") from None
    frequencies = np.cumsum(deltas)
    if not ((frequencies >= 0) & (frequencies <= TOTAL)).all() or int(frequencies.sum()) != TOTAL:
        raise ValueError(f"the frequencies of a table sum to {frequencies.sum()}, expected {TOTAL}")
    table = np.zeros(TOKENS, np.uint16)
    table[low : high + 1] = frequencies
    return table
