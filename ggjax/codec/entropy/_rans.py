"""rANS: the entropy coder, many independent lanes side by side (Duda, arXiv 1311.2540).

A lane codes at most 8192 tokens with a 32-bit state x in [2^16, 2^32) that spills 16-bit words. With f and s
the frequency of a token and the sum of those before it, of 2^14 in all:

    encode (last token first)   while x >= f 2^18: spill x mod 2^16, x >>= 16;   x = (x / f) 2^14 + s + x mod f
    decode (first token first)  slot = x mod 2^14, which names the token;        x = f (x >> 14) + slot - s
                                where x < 2^16: x = x 2^16 + the next word

At most one word a token, and one lane never reads another's words, so a step is one elementwise operation over
all lanes. The encoder starts from x = 2^16 and hands over its last x; the decoder starts from that and must end
at 2^16 with no word left, which it checks.

All arithmetic is on integers, except for a division in float32 whose result is put right by one unit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ggjax.codec.entropy._models import BITS, TOKENS, TOTAL

LANES = 32
"""Lanes of a full chunk."""

STEPS = 1 << 13
"""Tokens of a full lane."""

START = 1 << 16
"""The state of an empty lane."""

WORDS = STEPS * BITS // 16
"""A lane spills at most so many words: a token takes at most 14 bits."""

_ROOM = WORDS + 8

_u32 = jnp.uint32


def _lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    return table.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


@jax.jit
def encode(
    tokens: jax.Array, lengths: jax.Array, models: jax.Array, tables: jax.Array, steps: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encode the columns of a matrix of tokens.

    Args:
      tokens: uint8 (STEPS, lanes); lane j codes tokens[:lengths[j], j].
      lengths: int32 (lanes,).
      models: int32 (lanes,), the row of ``tables`` that each lane uses.
      tables: uint32 (models, 256), of ``_models.encode_table``.
      steps: int32, the greatest length.

    Returns:
      (states uint32 (lanes,), counts int32 (lanes,), words uint16 (lanes, room)): the words of lane j, in the
      order of decoding, are words[j, room - counts[j]:].
    """
    lanes = tokens.shape[1]
    row = models.astype(_u32) * TOKENS
    end = jnp.arange(lanes, dtype=jnp.int32) * _ROOM + (_ROOM - 1)
    flat = tables.reshape(-1)

    def step(i: jax.Array, carry: Any) -> Any:
        x, count, words = carry
        t = steps - 1 - i
        token = lax.dynamic_index_in_dim(tokens, t, 0, keepdims=False)
        entry = _lookup(flat, row + token.astype(_u32))
        coded = t < lengths  # a token of probability 1 changes nothing
        f = jnp.where(coded, entry >> 16, TOTAL)
        s = jnp.where(coded, entry & 0xFFFF, 0)
        spills = (x >> 18) >= f
        # Written always, and kept where the place moves on.
        words = words.at[end - count].set(
            x.astype(jnp.uint16), mode="promise_in_bounds", unique_indices=True, wrap_negative_indices=False
        )
        count = count + spills.astype(jnp.int32)
        x = jnp.where(spills, x >> 16, x)
        # x < 2^18 f, so the quotient is below 2^18 and the float32 one off by less than 1.
        q = (x.astype(jnp.float32) / f.astype(jnp.float32)).astype(_u32)
        r = x - q * f
        less = r >= _u32(1 << 31)
        q, r = jnp.where(less, q - 1, q), jnp.where(less, r + f, r)
        more = r >= f
        q, r = jnp.where(more, q + 1, q), jnp.where(more, r - f, r)
        return (q << BITS) + s + r, count, words

    start = jnp.full(lanes, START, _u32), jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes * _ROOM, jnp.uint16)
    x, count, words = lax.fori_loop(0, steps, step, start)
    return x, count, words.reshape(lanes, _ROOM)


@functools.partial(jax.jit, static_argnames="rows")
def decode(
    words: jax.Array,
    states: jax.Array,
    counts: jax.Array,
    lengths: jax.Array,
    models: jax.Array,
    tables: jax.Array,
    symbols: jax.Array,
    steps: jax.Array | int,
    *,
    rows: int = STEPS,
) -> tuple[jax.Array, jax.Array]:
    """Decode lanes whose words lie one after another.

    Args:
      words: uint16 (any,).
      states: uint32 (lanes,).
      counts: int32 (lanes,), the words of each lane.
      lengths: int32 (lanes,), the tokens of each lane.
      models: int32 (lanes,), the row of ``tables`` that each lane uses.
      tables, symbols: uint32 and uint8 (models, 2^14), of ``_models.decode_tables``.
      steps: the greatest length, at most ``rows``.
      rows: of the result.

    Returns:
      (tokens uint8 (rows, lanes), whether each lane ended as it should, bool (lanes,)). Rows from a lane's
      length on hold anything.
    """
    last = jnp.cumsum(counts)
    row = models.astype(_u32) * TOTAL
    tables, symbols = tables.reshape(-1), symbols.reshape(-1)
    words = words if words.size else jnp.zeros(1, jnp.uint16)

    def step(t: jax.Array, carry: Any) -> Any:
        x, place, tokens = carry
        slot = row + (x & (TOTAL - 1))
        entry = _lookup(tables, slot)
        tokens = lax.dynamic_update_index_in_dim(tokens, _lookup(symbols, slot), t, 0)
        new = ((entry >> BITS) + 1) * (x >> BITS) + (entry & (TOTAL - 1))
        reads = new < START
        word = words.at[place].get(mode="clip", wrap_negative_indices=False)
        new = jnp.where(reads, new << 16 | word.astype(_u32), new)
        coded = t < lengths
        return jnp.where(coded, new, x), place + (reads & coded).astype(jnp.int32), tokens

    start = states, last - counts, jnp.zeros((rows, states.shape[0]), jnp.uint8)
    x, place, tokens = lax.fori_loop(0, steps, step, start)
    return tokens, (x == START) & (place == last)
