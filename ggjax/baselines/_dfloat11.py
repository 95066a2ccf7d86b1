"""DFloat11: how many bits weights take when their exponents are Huffman-coded."""

import heapq
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

from ggjax._internal import trees
from ggjax.baselines._float_format import check_format, exponents_of, format_bits
from ggjax.baselines._reparameterization import Mask, flatten

LONGEST = 32
"""The longest code word."""

_CHUNK_BITS, _GAP_BITS, _THREADS, _POSITION_BITS = 64, 5, 512, 32
"""A thread of the decoder reads 64 bits of the stream; where its first word starts takes 5 bits, and where the
output of a block of 512 threads starts, 32."""


class DFloat11Bits(NamedTuple):
    """Bits per weight, and what they are made of: Python floats."""

    total: float
    sign_and_mantissa: float
    exponents: float  # the code words
    gaps: float  # where the first word of each chunk of the stream starts
    positions: float  # where the output of each block of threads starts
    tables: float  # the lengths of the 256 code words, a byte each


def dfloat11_bits(
    params: Any, *, group: Callable[[str], Hashable] | None = None, mask: Mask = "kernels"
) -> DFloat11Bits:
    """The size of weights whose exponents are Huffman-coded and all else kept as it is.

    After DFloat11 (arXiv 2504.11651), and with its layout of the stream. Of the paper's: bfloat16; one code for
    all matrices of a transformer block; no code word is longer than 32 bits (while one is, the rarest k
    exponents count as seen once, k = 2, 3, ...). Ours: float16 and float32 too; of the decoder's tables only
    the lengths of the words are counted, from which the rest follows.

    This is a measure only. ``ggjax.compress(lossless=True)`` is a code of the same kind that works, with rANS
    in place of Huffman's code.

    Args:
      params: a tree of arrays: float32, bfloat16 or float16. Outside jit.
      group: from the name of a leaf, such as "layers_0/kernel", to the group it shares a code with; None for
        one code for all.
      mask: the leaves that count: "kernels", a tree of bools, a prefix of one, or a function to one.

    Raises:
      ValueError: a leaf of another dtype, no floating leaf, a mask that does not fit.
      TypeError: traced weights.

    >>> import jax.numpy as jnp
    >>> size = dfloat11_bits({"w": jnp.tile(jnp.array([1, -2], jnp.bfloat16), (64, 64))})
    >>> size.sign_and_mantissa, size.exponents
    (8.0, 1.0)
    """
    flat = flatten(params, mask, finite=False)
    counts: dict[Hashable, np.ndarray] = {}
    raw = 0
    for name, x in zip(flat.weight_names(), flat.weights(), strict=True):
        check_format(name, x)
        if not trees.is_concrete(x):
            raise TypeError(f"leaf {name!r} is traced: call dfloat11_bits outside jit")
        exponents = np.asarray(jax.device_get(exponents_of(x))).ravel()
        key = None if group is None else group(name)
        counts[key] = counts.get(key, np.zeros(256, np.int64)) + np.bincount(exponents, minlength=256)
        raw += (1 + format_bits(x.dtype)[0]) * x.size
    parts = np.array([raw, 0, 0, 0, 0], np.float64)
    for found in counts.values():
        bits = int(np.sum(found * code_lengths(found)))
        chunks = -(-bits // _CHUNK_BITS)
        parts[1:] += (
            bits,
            _GAP_BITS * chunks,
            _POSITION_BITS * -(-chunks // _THREADS),
            8 * 256 * bool(found.any()),
        )
    parts /= max(trees.size(flat.weights()), 1)
    return DFloat11Bits(float(parts.sum()), *map(float, parts))


def code_lengths(counts: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """The lengths of Huffman code words of the symbols, by their counts: 0 where a symbol does not occur.

    A single symbol gets a word of one bit. The limit is the published one: see ``dfloat11_bits``.

    Args:
      counts: int64 (n,), at most 2^longest of them positive.
      longest: the longest word.

    Returns:
      int64 (n,).

    >>> code_lengths(np.array([5, 2, 1, 0])).tolist()
    [1, 2, 2, 0]
    """
    used = np.flatnonzero(counts)
    rarest = used[np.argsort(counts[used], kind="stable")]
    limited = np.array(counts, np.int64)
    lengths, k = _huffman(limited), 2
    while lengths.max(initial=0) > longest and k <= len(rarest):
        limited[rarest[:k]] = 1
        lengths, k = _huffman(limited), k + 1
    return lengths


def _huffman(counts: np.ndarray) -> np.ndarray:
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(counts[s]), int(s), [int(s)]) for s in np.flatnonzero(counts)]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, tie, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (a + b, tie, left + right))
    return lengths
