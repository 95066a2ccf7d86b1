"""From the coded form back to arrays on the host, many at a time."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec import _grid, _raw
from ggjax.codec._coded import Coded, Meta, Part
from ggjax.codec._host import FEW, in_parallel, outside_trace, padded
from ggjax.codec._layout import codes_of, layout_of
from ggjax.codec.entropy import _planes, _tokens
from ggjax.codec.entropy._chunks import Chunk, Damaged
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.entropy._lanes import CHUNK
from ggjax.codec.quantize import _rows
from ggjax.codec.quantize._quantizers import DECODERS

_GROUP = 4
"""Chunks whose tokens are turned into weights at a time, at most."""


def arrays(coded: Sequence[Coded], wheres: Sequence[str] | None = None) -> list[np.ndarray]:
    """Decode arrays on the host, as the values that their quantizers hold. ``wheres`` names them in messages.

    Raises:
      Damaged: a stream does not decode to what its encoder must have read.
    """
    hosts = [Coded(*map(np.asarray, c.streams), meta=c.meta) for c in coded]
    wheres = [f"array {i}" for i in range(len(hosts))] if wheres is None else wheres
    chunks: dict[str, list[Chunk]] = {name: [] for name in CODERS}
    numbers = []
    for c, where in zip(hosts, wheres, strict=True):
        check(c, where)
        some = _chunks_of(c, where)
        chunks[c.meta.coder].extend(some)
        numbers.append(len(some))
    with outside_trace():
        tokens = {name: iter(CODERS[name].decode(some) if some else ()) for name, some in chunks.items()}
    own = [iter(list(itertools.islice(tokens[c.meta.coder], n))) for c, n in zip(hosts, numbers, strict=True)]
    return in_parallel(lambda item: _array(*item), zip(hosts, own, wheres, strict=True))


def weights_of(c: Coded, values: Any) -> Any:
    """The weights of the values of a whole array. NumPy or JAX."""
    meta = c.meta
    return DECODERS[meta.kind].weights_of(values, meta.params, meta.dtype, c.steps)


def check(c: Coded, where: str) -> None:
    """Raise ``Damaged`` unless the streams are as long as the meta says they must be."""
    wanted = {"words": int(np.sum(c.counts, dtype=np.int64)), **layout_of(c.meta).lengths}
    for name, want in wanted.items():
        got = len(getattr(c, name))
        if got != want:
            raise Damaged(f"{where}: {got} {name}, expected {want}")


def _chunks_of(c: Coded, where: str) -> list[Chunk]:
    chunks = []
    for i, (chunk, code) in enumerate(codes_of(c, layout_of(c.meta))):
        table = c.tables[c.meta.parts[chunk.part].table] if len(c.tables) else None
        chunks.append(Chunk(f"{where}, chunk {i}", chunk.size, table, code))
    return chunks


def _array(c: Coded, tokens: Any, where: str) -> np.ndarray:
    """The values of its tokens, the next ones of an iterator over chunks."""
    meta, layout = c.meta, layout_of(c.meta)
    dtype = held(meta)
    out = np.empty(() if meta.grid else meta.shape, dtype)
    classes = row_classes(meta, c.classes)
    columns = np.empty(meta.size, dtype) if meta.axis == -1 else out.reshape(-1)  # of all parts
    whole, begin = meta.axis != 0 and not meta.grid, 0
    pieces = []  # of the parts of a grid
    done = 0  # chunks, of the parts before
    for k, (p, chunks) in enumerate(zip(meta.parts, layout.parts, strict=True)):
        flat = columns[begin : begin + p.size] if whole else np.empty(p.size, dtype)
        begin += p.size
        exceptions, used = c.exceptions[layout.exceptions[k]], 0
        for i in range(0, len(chunks), _GROUP):
            some = chunks[i : i + _GROUP]
            each = list(itertools.islice(tokens, len(some)))
            token = np.concatenate(each)
            raw = c.raw[some[0].raw.start : some[-1].raw.stop]
            binned = [chunk.binned for chunk in some]
            found = tuple(np.count_nonzero(t == 0) for t in each)
            beyond, told = sum(found), meta.beyond[done + i : done + i + len(some)]
            if used + beyond > p.exceptions:
                raise Damaged(f"{where}: part {k} has more exceptions than the {p.exceptions} of its meta")
            if told not in ((), found):
                raise Damaged(
                    f"{where}: its chunks from {done + i} on have {found} exceptions, expected {told}"
                )
            own = exceptions[used : used + beyond]
            used += beyond
            x = values(f"{where}: part {k}", meta, p, token, raw, own, binned)
            flat[some[0].start : some[0].start + len(x)] = x
        if used != p.exceptions:
            raise Damaged(f"{where}: part {k} has {used} exceptions, its meta states {p.exceptions}")
        pieces.append(flat)
        done += len(chunks)
        if meta.axis is not None:
            rows = classes == k
            if int(rows.sum()) * (meta.size // meta.rows) != p.size:
                raise Damaged(f"{where}: part {k} has {p.size} weights, but {int(rows.sum())} rows")
            if meta.axis == 0:
                matrix = _rows.matrix(out, 0)
                matrix[rows] = flat.reshape(-1, matrix.shape[1])
    if meta.axis == -1:
        _rows.from_sorted_columns(columns.reshape(meta.rows, -1), classes, out)
    return _of_grid(c, meta.grid, pieces, where) if meta.grid else out


def _of_grid(c: Coded, grid: _grid.Grid, pieces: list[np.ndarray], where: str) -> np.ndarray:
    rows, columns = _grid.unpack(grid, c.classes)
    for what, classes, counts in (("row", rows, grid.rows), ("column", columns, grid.columns)):
        found = np.bincount(classes, minlength=len(counts)).tolist()
        if found != list(counts):
            raise Damaged(f"{where}: its {what} classes have {found} members, its meta states {list(counts)}")
    return _grid.joined(grid, rows, columns, pieces)


def held(meta: Meta) -> np.dtype:
    """The dtype of the values that the quantizer of an array holds."""
    return np.dtype(jnp.dtype(DECODERS[meta.kind].held(meta.dtype)))


def row_classes(meta: Meta, data: Any) -> Any:
    """The class of every row, uint32, from its packed form. NumPy or JAX arrays."""
    if not meta.class_bits:
        return np.zeros(meta.rows, np.uint32)
    return _planes.unpack(data, _planes.padded(meta.rows), meta.class_bits)[: meta.rows]


def dtype_of(meta: Meta) -> str:
    """The dtype of the weights as JAX has it: float32 for float64, unless 64 bits are enabled."""
    return str(jax.dtypes.canonicalize_dtype(meta.dtype))


def values(
    where: str,
    meta: Meta,
    p: Part,
    token: np.ndarray,
    raw: np.ndarray,
    own: np.ndarray,
    binned: Sequence[int],
) -> np.ndarray:
    """The values of up to ``_GROUP`` chunks of a part.

    Args:
      where: for messages.
      meta, p: of the array, of the part.
      token: of these chunks, one after another.
      raw: their raw bits, uint8.
      own: their exceptions.
      binned: how many tokens of each have raw bits, where not all have.

    Raises:
      Damaged: one of their keys is none that a weight can have, or not so many tokens have raw bits.
    """
    if p.atoms:
        bits = _raw.spread(where, p, token, raw, binned)
    else:
        bits = _raw.unpack(raw, len(token), p.shift) if p.shift else None
    _check_keys(where, DECODERS[meta.kind].keys(meta.params, meta.dtype, p.zeros), p, token, bits, own)
    x = _values(meta, p, token, bits)
    if len(own):
        x[token == 0] = _values_of_these(meta, p, own)
    return x


def _keys_of(p: Part, token: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
    window = np.uint32(p.base), np.uint32(p.shift), _tokens.joining(p.atoms)
    return _tokens.join(token, np.uint32(0) if bits is None else bits, *window)


def _check_keys(
    where: str, end: int, p: Part, token: np.ndarray, bits: np.ndarray | None, own: np.ndarray
) -> None:
    """Raise ``Damaged`` where a key, or one of a part's own exceptions, is one that no weight has."""
    if end == 1 << 32:  # every key is one that a weight can have
        return
    most = p.base + (max(int(token.max()) - len(p.atoms), 0) << p.shift)
    if most > end:  # not often: the window may reach further than its keys
        most = int(np.where(token == 0, 0, _keys_of(p, token, bits)).max()) + 1
    most = max(most, int(own.max(initial=0)) + 1)
    if most > end:
        raise Damaged(f"{where}: has the key {most - 1}, expected less than {end}")


def _values(meta: Meta, p: Part, token: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
    """The values of up to ``_GROUP`` chunks; those of exceptions are to be replaced."""
    if len(token) < FEW:
        return _values_of_keys(meta, p, _keys_of(p, token, bits))
    number = CHUNK if len(token) <= CHUNK else _GROUP * CHUNK
    bits = None if bits is None else padded(bits, number)
    arguments = DECODERS[meta.kind].arguments(meta.params)
    program = functools.partial(_program_of_tokens, kind=meta.kind, dtype=dtype_of(meta))
    window = np.uint32(p.base), np.uint32(p.shift), _tokens.joining(p.atoms)
    values = program(padded(token, number), bits, *window, arguments, np.uint32(p.zeros))
    return np.array(np.asarray(values)[: len(token)])  # to be written to


def _values_of_these(meta: Meta, p: Part, keys: np.ndarray) -> np.ndarray:
    """The values of some keys."""
    if len(keys) < FEW:
        return _values_of_keys(meta, p, keys)
    number = 1 << (len(keys) - 1).bit_length()
    arguments = DECODERS[meta.kind].arguments(meta.params)
    program = functools.partial(_program_of_keys, kind=meta.kind, dtype=dtype_of(meta))
    return np.asarray(program(padded(keys, number), arguments, np.uint32(p.zeros)))[: len(keys)]


def _values_of_keys(meta: Meta, p: Part, keys: np.ndarray) -> np.ndarray:
    """The same by NumPy."""
    quantizer = DECODERS[meta.kind]
    return quantizer.values_of(keys, meta.dtype, quantizer.arguments(meta.params), np.uint32(p.zeros))


@functools.partial(jax.jit, static_argnames=("kind", "dtype"))
def _program_of_tokens(
    token: jax.Array,
    raw: jax.Array | None,
    base: jax.Array,
    shift: jax.Array,
    atoms: tuple[jax.Array, jax.Array] | None,
    arguments: tuple[Any, ...],
    zeros: jax.Array,
    *,
    kind: str,
    dtype: str,
) -> jax.Array:
    key = _tokens.join(token, np.uint32(0) if raw is None else raw, base, shift, atoms)
    return DECODERS[kind].values_of(key, dtype, arguments, zeros)


@functools.partial(jax.jit, static_argnames=("kind", "dtype"))
def _program_of_keys(
    key: jax.Array, arguments: tuple[Any, ...], zeros: jax.Array, *, kind: str, dtype: str
) -> jax.Array:
    return DECODERS[kind].values_of(key, dtype, arguments, zeros)
