"""Tokens: a key as one of 256 symbols and some bits that are stored as they are.

A part of a leaf has a window of 255 bins, each of 2^shift neighbouring keys, that begins at key ``base``. With
v = key - base, modulo 2^32:

    token = (v >> shift) + 1   and shift raw bits, v modulo 2^shift,   where v >> shift < 255
    token = 0                  and the key itself in a list of exceptions, elsewhere

so any key can be coded, most of them by an entropy code of the token alone (shift is 0 at the usual steps).
"""

from typing import Any, NamedTuple

import numpy as np

from ggjax.codec._host import namespace_of

BINS = 255
ESCAPE_BITS = 32
TABLE_ENTRY_BITS = 10
"""About what a token in use takes in a table."""


class Bins(NamedTuple):
    """The window of a part: token t > 0 stands for the 2^shift keys from base + (t - 1) 2^shift on."""

    base: int  # modulo 2^32
    shift: int  # 0 to 31


def entropy_bits(counts: np.ndarray) -> float:
    """The bits that all symbols with these counts take together in an ideal order-0 code."""
    c = counts[counts > 0].astype(np.float64)
    return float(c.sum() * np.log2(c.sum()) - (c * np.log2(c)).sum()) if len(c) else 0.0


def choose_bins(keys: np.ndarray, size: int, signed: bool) -> tuple[Bins, float]:
    """The window that codes a part in the fewest bits, by a sample of its keys, and those bits per key.

    Args:
      keys: uint32 (m,), m at least 1.
      size: the keys of the whole part; its table counts, by the tokens in use.
      signed: whether keys are two's complement numbers, so that 0xFFFFFFFF lies next to 0.
    """
    numbers = np.sort(keys.view(np.int32) if signed else keys).astype(np.int64)
    rare = len(numbers) // 1000
    spread = int(numbers[len(numbers) - 1 - rare] - numbers[rare])
    whole = int(numbers[-1] - numbers[0])
    best, least = Bins(0, 0), np.inf
    first = max((spread // BINS).bit_length() - 2, 0)
    bins, begins = numbers >> first, np.arange(len(numbers) + 1)
    for shift in range(first, min((whole // BINS).bit_length() + 2, 32)):
        bins = bins >> (shift > first)
        new = np.flatnonzero(bins[1:] != bins[:-1]) + 1
        # Runs of numbers that share a bin: the bin, where each begins among the numbers, where the last ends.
        bins = bins[np.concatenate([[0], new])]
        begins = begins[np.concatenate([[0], new, [len(begins) - 1]])]
        ends = np.searchsorted(bins, bins + BINS)  # of the window from each bin on, in runs
        inside = begins[ends] - begins[:-1]
        i = int(np.argmax(inside))
        start, window = int(bins[i]), slice(i, int(ends[i]))
        counts = np.zeros(BINS + 1, np.int64)
        counts[bins[window] - start + 1] = np.diff(begins)[window]
        counts[0] = len(numbers) - inside[i]
        used = np.count_nonzero(counts)
        bits = entropy_bits(counts) + len(keys) * shift + ESCAPE_BITS * int(counts[0])
        bits += (used - 1) / (2 * np.log(2))  # what the entropy of a sample is too low by (Miller, Madow)
        bits = bits / len(keys) + TABLE_ENTRY_BITS * used / size
        if bits < least:
            best, least = Bins((start << shift) % (1 << 32), shift), bits
        if inside[i] == len(numbers) and bits > least:
            break  # everything fits, and wider bins cost more
    return best, float(least)


def split(key: Any, base: Any, shift: Any) -> tuple[Any, Any]:
    """(token uint8, raw bits uint32) of keys. NumPy or JAX arrays."""
    xp = namespace_of(key)
    v = key - base
    bin_ = v >> shift
    inside = bin_ < BINS
    token = xp.where(inside, bin_ + 1, 0).astype(np.uint8)
    return token, xp.where(inside, v & ((np.uint32(1) << shift) - 1), 0)


def join(token: Any, raw: Any, base: Any, shift: Any) -> Any:
    """The keys of tokens and raw bits; that of an exception is to be replaced. NumPy or JAX arrays."""
    return base + ((token.astype(np.uint32) - 1) << shift) + raw
