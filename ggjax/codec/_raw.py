"""The raw bits of tokens, from the bytes of their chunks.

As a rule every token has some. In a part with atoms only the tokens of bins have: those of exceptions and of
atoms, which may be most of all, take none.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec._coded import Part
from ggjax.codec._host import namespace_of
from ggjax.codec._layout import Piece
from ggjax.codec.entropy import _planes
from ggjax.codec.entropy._chunks import Damaged
from ggjax.codec.entropy._lanes import CHUNK

_WORD = 32


def unpack(data: Any, size: int, shift: int) -> Any:
    """The raw bits, uint32 (size,), of whole chunks and a last, shorter one. NumPy or JAX arrays."""
    full, rest = divmod(size, CHUNK)
    each = _planes.nbytes(CHUNK, shift)
    pieces = []
    if full:
        pieces.append(_planes.unpack(data[: full * each].reshape(full, each), CHUNK, shift).reshape(-1))
    if rest:
        pieces.append(_planes.unpack(data[full * each :], _planes.padded(rest), shift)[:rest])
    return pieces[0] if len(pieces) == 1 else namespace_of(data).concatenate(pieces)


def spread(
    where: str, p: Part, token: np.ndarray, data: np.ndarray, binned: Sequence[int]
) -> np.ndarray | None:
    """The raw bits of tokens of a part with atoms, uint32, 0 for those that have none; None where none has any.

    Args:
      where: for messages.
      p: the part.
      token: of whole chunks and a last one.
      data: the bytes of their raw bits.
      binned: how many of the tokens of each chunk are those of bins.

    Raises:
      Damaged: they are not so many.
    """
    of_bin = token > len(p.atoms)
    out, begin = np.zeros(len(token), np.uint32) if p.shift else None, 0
    for i, number in enumerate(binned):
        some = slice(i * CHUNK, (i + 1) * CHUNK)
        found = np.count_nonzero(of_bin[some])
        if found != number:
            raise Damaged(f"{where}: a chunk has {found} tokens of bins, expected {number}")
        if out is not None:
            end = begin + _planes.nbytes(number, p.shift)
            numbers = _planes.unpack(data[begin:end], _planes.padded(number), p.shift)
            out[some][of_bin[some]] = numbers[:number]
            begin = end
    return out


def spread_traced(p: Part, token: jax.Array, data: jax.Array, chunks: Sequence[Piece]) -> jax.Array:
    """The same of a whole part under jit, where ``chunks`` says how its bytes ``data`` are divided."""
    width = min(-(-p.size // _WORD) * _WORD, CHUNK)
    of_bin = jnp.pad(token > len(p.atoms), (0, len(chunks) * width - p.size)).reshape(-1, width)
    size = [max(_planes.padded(c.binned), 16) for c in chunks]
    start = [c.raw.start - chunks[0].raw.start for c in chunks]
    size, start = (jnp.asarray(np.array(x, np.uint32)[:, None]) for x in (size, start))
    data = data if data.size else jnp.zeros(1, jnp.uint8)
    numbers = _planes.take(data, start, size, _ranks(of_bin), p.shift)
    return jnp.where(of_bin, numbers, jnp.uint32(0)).reshape(-1)[: p.size]


def _ranks(flags: jax.Array) -> jax.Array:
    """How many flags of a row are set before each, uint32 (rows, n), n a multiple of 32.

    By words of 32 flags whose bits are counted: a sum over single flags would take far longer.
    """
    place = jnp.arange(_WORD, dtype=jnp.uint32).reshape(1, 1, _WORD)
    words = (flags.reshape(len(flags), -1, _WORD).astype(jnp.uint32) << place).sum(-1, dtype=jnp.uint32)
    ones = lax.population_count(words)
    before = jnp.cumsum(ones, axis=1, dtype=jnp.uint32) - ones
    below = (jnp.uint32(1) << place) - 1
    return (before[..., None] + lax.population_count(words[..., None] & below)).reshape(flags.shape)
