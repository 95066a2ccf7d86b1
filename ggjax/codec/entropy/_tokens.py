"""Tokens: a key as one of 256 symbols and some bits that are stored as they are.

A part of a leaf has a window of 255 bins, each of 2^shift neighbouring keys, that begins at key ``base``. With
v = key - base, modulo 2^32:

    token = (v >> shift) + 1   and shift raw bits, v modulo 2^shift,   where v >> shift < 255
    token = 0                  and the key itself in a list of exceptions, elsewhere

so any key can be coded, most of them by an entropy code of the token alone (shift is 0 at the usual steps).

Atoms are keys that very many weights have: the zeros of a pruned network. Each of A atoms has a token of its
own, 1 to A, and no raw bits. The window then has 255 - A bins, whose tokens come after these.
"""

from typing import Any, NamedTuple

import numpy as np

from ggjax.codec._host import namespace_of

BINS = 255
ESCAPE_BITS = 32
ATOM_BITS = 64
"""About what an atom takes in the metadata."""

TABLE_ENTRY_BITS = 10
"""About what a token in use takes in a table."""

ATOM_SHARE = 1 / 32
"""An atom is a key that this share of the weights has, or more."""

WORTH = 0.95
"""Atoms are taken where they leave no more than this share of the bits: older versions cannot read them."""


class Bins(NamedTuple):
    """The window of a part: token t > A stands for the 2^shift keys from base + (t - A - 1) 2^shift on."""

    base: int  # modulo 2^32
    shift: int  # 0 to 31
    atoms: tuple[int, ...] = ()  # token i + 1 stands for the key atoms[i] alone


def entropy_bits(counts: np.ndarray) -> float:
    """The bits that all symbols with these counts take together in an ideal order-0 code."""
    c = counts[counts > 0].astype(np.float64)
    return float(c.sum() * np.log2(c.sum()) - (c * np.log2(c)).sum()) if len(c) else 0.0


def choose_bins(keys: np.ndarray, size: int, signed: bool, atoms: bool = True) -> tuple[Bins, float]:
    """The window and the atoms that code a part in the fewest bits, by a sample of its keys, and those bits per
    key.

    Args:
      keys: uint32 (m,), m at least 1.
      size: the keys of the whole part; its table counts, by the tokens in use.
      signed: whether keys are two's complement numbers, so that 0xFFFFFFFF lies next to 0.
      atoms: whether there may be any.
    """
    numbers = np.sort(keys.view(np.int32).astype(np.int64) if signed else keys.astype(np.int64))
    best, least = plain = _window(numbers, (), np.zeros(0, np.int64), size)
    if not atoms:
        return plain
    values, counts = _frequent(numbers)
    inside = (values - best.base) % (1 << 32) < BINS
    if not best.shift and inside.all():
        return plain  # no raw bits to be saved
    for number in range(1, len(values) + 1):
        rest = numbers[~np.isin(numbers, values[:number])]
        if not len(rest):
            break
        found, bits = _window(rest, tuple((values[:number] % (1 << 32)).tolist()), counts[:number], size)
        if bits >= least:
            break
        best, least = found, bits
    return (best, least) if least <= WORTH * plain[1] else plain


def _frequent(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the keys that may be atoms, the most frequent one first; how often each occurs) of sorted keys."""
    starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
    counts = np.diff(starts, append=len(numbers))
    many = np.flatnonzero(counts >= max(ATOM_SHARE * len(numbers), 8))
    order = many[np.argsort(-counts[many], kind="stable")]
    return numbers[starts[order]], counts[order]


def _window(numbers: np.ndarray, atoms: tuple[int, ...], often: np.ndarray, size: int) -> tuple[Bins, float]:
    """The best window for sorted keys that are no atoms, and the bits per key with these.

    Args:
      numbers: int64 (m,), m at least 1.
      atoms, often: the atoms, and how often each occurs.
      size: as for ``choose_bins``.
    """
    number = BINS - len(atoms)
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
        ends = np.searchsorted(bins, bins + number)  # of the window from each bin on, in runs
        inside = begins[ends] - begins[:-1]
        i = int(np.argmax(inside))
        start, window = int(bins[i]), slice(i, int(ends[i]))
        counts = np.zeros(number, np.int64)
        counts[bins[window] - start] = np.diff(begins)[window]
        bits = _cost(Bins(start, shift, atoms), int(len(numbers) - inside[i]), often, counts, size)
        if bits < least:
            best, least = Bins((start << shift) % (1 << 32), shift, atoms), bits
        if inside[i] == len(numbers) and bits > least:
            break  # everything fits, and wider bins cost more
    return best, float(least)


def bits_of(bins: Bins, keys: np.ndarray, size: int) -> float:
    """The bits per key that a window and atoms take, by a sample of the keys; arguments as ``choose_bins``."""
    atoms = np.array(bins.atoms, np.uint32)
    token, _ = split(keys, np.uint32(bins.base), np.uint32(bins.shift), atoms)
    counts = np.bincount(token.reshape(-1), minlength=BINS + 1)
    end = len(atoms) + 1
    return _cost(bins, int(counts[0]), counts[1:end], counts[end:], size)


def _cost(bins: Bins, outside: int, often: np.ndarray, counts: np.ndarray, size: int) -> float:
    """Bits per key of a part of some size, by how often a sample has exceptions, each atom and each bin."""
    every = np.concatenate([often, [outside], counts])
    total, used = int(every.sum()), np.count_nonzero(every)
    with_raw = int(counts.sum()) if bins.atoms else total
    bits = entropy_bits(every) + with_raw * bins.shift + ESCAPE_BITS * outside
    bits += (used - 1) / (2 * np.log(2))  # what the entropy of a sample is too low by (Miller, Madow)
    return bits / total + (TABLE_ENTRY_BITS * used + ATOM_BITS * len(bins.atoms)) / size


def split(key: Any, base: Any, shift: Any, atoms: Any = ()) -> tuple[Any, Any]:
    """(token uint8, raw bits uint32) of keys. NumPy or JAX arrays; ``atoms``: uint32 (number of atoms,)."""
    xp = namespace_of(key)
    v = key - base
    bin_ = v >> shift
    inside = bin_ < BINS - len(atoms)
    token = xp.where(inside, bin_ + (1 + len(atoms)), 0)
    for i, atom in enumerate(atoms):
        token = xp.where(key == atom, i + 1, token)
    return token.astype(np.uint8), xp.where(inside, v & ((np.uint32(1) << shift) - 1), 0)


def join(token: Any, raw: Any, base: Any, shift: Any, atoms: Any = None) -> Any:
    """The keys of tokens and raw bits; that of an exception is to be replaced. NumPy or JAX arrays.

    ``atoms``: None, or what ``joining`` gives.
    """
    wide = token.astype(np.uint32)
    if atoms is None:
        return base + ((wide - 1) << shift) + raw
    number, table = atoms
    key = base + ((wide - 1 - number) << shift) + raw
    return namespace_of(token).where(wide <= number, table[wide], key)


def joining(atoms: tuple[int, ...]) -> tuple[np.uint32, np.ndarray] | None:
    """(how many atoms there are, their keys by their tokens uint32 (256,)) for ``join``; None for no atoms."""
    if not atoms:
        return None
    table = np.zeros(BINS + 1, np.uint32)
    table[1 : len(atoms) + 1] = atoms
    return np.uint32(len(atoms)), table
