"""Models: how often each token is expected, as whole numbers that sum to 2^14.

The decoder reads these numbers from the file; no probability is ever computed in floating point on that side,
so a stream decodes alike on every device. On the encoder's side the numbers are the empirical ones, rounded;
a table that another part brought already is used again where that is shorter than a table of its own.
"""

import numpy as np

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


def pack(table: np.ndarray) -> bytes:
    """A table as bytes: the first and the last token in use, then their frequencies as LEB128 numbers."""
    used = np.flatnonzero(table)
    low, high = int(used[0]), int(used[-1])
    out = bytearray((low, high))
    for f in table[low : high + 1].tolist():
        while f > 127:
            out.append(f & 127 | 128)
            f >>= 7
        out.append(f)
    return bytes(out)


def unpack(data: bytes) -> np.ndarray:
    """The table that ``pack`` made the bytes of.

    Raises:
      ValueError: it is not such a table.
    """
    if len(data) < 3:
        raise ValueError(f"a table takes at least 3 bytes, got {len(data)}")
    low, high = data[0], data[1]
    numbers, number, place = [], 0, 0
    for byte in data[2:]:
        number |= (byte & 127) << place
        place += 7
        if byte < 128:
            numbers.append(number)
            number = place = 0
        elif place > 14:
            raise ValueError("a frequency of a table takes more than 3 bytes")
    if place or len(numbers) != high - low + 1:
        raise ValueError(f"a table of tokens {low} to {high} has {len(numbers)} frequencies")
    if sum(numbers) != TOTAL:
        raise ValueError(f"the frequencies of a table sum to {sum(numbers)}, expected {TOTAL}")
    table = np.zeros(TOKENS, np.uint16)
    table[low : high + 1] = numbers
    return table
