"""Whether the blocks of a leaf fill it, each of its elements once, in time that grows with their number alone.

To compare the blocks two by two would take minutes for a file of a megabyte. Instead, every place on an axis
where a block begins or ends gets a random number, and a block weighs the product over the axes of the number
where it ends less the number where it begins, modulo a prime. These weights add up as volumes do, however a
box is cut: if the blocks fill the leaf, their sum is the weight of the leaf. If they do not, the two differ,
except by an accident of one in 2^55: their difference is a polynomial of the random numbers that is not 0, of
a degree of at most 64 (Schwartz and Zippel). Nobody who forges a file knows the numbers.
"""

import random
from collections import defaultdict
from collections.abc import Iterable

_PRIME = (1 << 61) - 1


def fill(full: tuple[int, ...], blocks: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether blocks (start, shape), all of them within the shape of a leaf, fill it and do not overlap."""
    number = random.SystemRandom().randrange
    cuts = [defaultdict[int, int](lambda: number(_PRIME)) for _ in full]

    def weight(start: tuple[int, ...], shape: tuple[int, ...]) -> int:
        out = 1
        for cut, begin, n in zip(cuts, start, shape, strict=True):
            out = out * (cut[begin + n] - cut[begin]) % _PRIME
        return out

    return sum(weight(*b) for b in blocks) % _PRIME == weight((0,) * len(full), full)
