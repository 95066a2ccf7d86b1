"""From the coded form back to arrays: on the host in batches that share their programs, or inside a jit."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec import _coded
from ggjax.codec._coded import Coded, Meta
from ggjax.codec._encode import bucket, in_batches, in_parallel
from ggjax.codec.entropy import _models, _planes, _rans, _tokens
from ggjax.codec.quantize import _keys

_WORDS_PER_LANE = (_rans.STEPS // 4, _rans.STEPS // 2, _rans.WORDS)
"""Sizes of the buffer of words, by lane: 4, 8 and 14 bits a token."""

_GROUP = 4


class Damaged(ValueError):
    """A stream that no encoder wrote."""


class Stream(NamedTuple):
    """A chunk's entropy code."""

    where: str  # for messages
    size: int  # tokens
    table: np.ndarray  # uint16 (256,)
    states: np.ndarray  # uint32 (lanes,)
    counts: np.ndarray  # uint16 (lanes,)
    words: np.ndarray  # uint16


def check(meta: Meta, c: Coded, where: str) -> None:
    """Raise ``Damaged`` unless the streams are as long as the meta says they must be."""
    sizes = [n for p in meta.parts for n in _coded.chunk_sizes(p.size)]
    lanes = sum(map(_coded.lanes, sizes)) if meta.coder == "rans" else len(sizes)
    rows = meta.shape[meta.axis] if meta.axis is not None else 0
    raw = sum(_coded.raw_bytes(n, p.shift) for p in meta.parts for n in _coded.chunk_sizes(p.size))
    wanted = {
        "states": (len(c.states), lanes if meta.coder == "rans" else 0),
        "counts": (len(c.counts), lanes),
        "words": (len(c.words), int(np.sum(c.counts, dtype=np.int64))),
        "raw": (len(c.raw), raw),
        "exceptions": (len(c.exceptions), sum(p.exceptions for p in meta.parts)),
        "classes": (len(c.classes), _planes.nbytes(rows, meta.class_bits)),
    }
    for name, (got, want) in wanted.items():
        if got != want:
            raise Damaged(f"{where}: {got} {name}, expected {want}")


def arrays(coded: Sequence[Coded], wheres: Sequence[str] | None = None) -> list[np.ndarray]:
    """Decode arrays on the host; RF8 arrays come as their codes. ``wheres`` names them in messages.

    Raises:
      Damaged: a stream does not decode to what its encoder must have read.
    """
    hosts = [Coded(*map(np.asarray, _streams(c)), meta=c.meta) for c in coded]
    wheres = [f"array {i}" for i in range(len(hosts))] if wheres is None else wheres
    for c, where in zip(hosts, wheres, strict=True):
        check(c.meta, c, where)
    rans = [(c, where) for c, where in zip(hosts, wheres, strict=True) if c.meta.coder == "rans"]
    tokens = iter(decode_chunks([s for c, where in rans for s in _chunks(c, where)]))
    out = []
    for c, where in zip(hosts, wheres, strict=True):
        number = sum(len(_coded.chunk_sizes(p.size)) for p in c.meta.parts)
        if c.meta.coder == "rans":
            out.append(_array(c, list(itertools.islice(tokens, number)), where))
        else:
            from ggjax.codec.entropy import _zstd

            out.append(_array(c, _zstd.decode(c, where), where))
    return out


def _streams(c: Coded) -> tuple[Any, ...]:
    return c.words, c.states, c.counts, c.raw, c.exceptions, c.tables, c.classes


def _chunks(c: Coded, where: str) -> Iterator[Stream]:
    lane = word = chunk = 0
    for p in c.meta.parts:
        for n in _coded.chunk_sizes(p.size):
            lanes = slice(lane, lane + _coded.lanes(n))
            counts = c.counts[lanes]
            end = word + int(counts.sum(dtype=np.int64))
            yield Stream(
                f"{where}, chunk {chunk}", n, c.tables[p.table], c.states[lanes], counts, c.words[word:end]
            )
            lane, word, chunk = lanes.stop, end, chunk + 1


def decode_chunks(chunks: Sequence[Stream]) -> list[np.ndarray]:
    """The tokens of chunks, uint8 (size,) each.

    Raises:
      Damaged: a lane does not end as its encoder began.
    """
    return [tokens for batch in in_parallel(_decode_batch, in_batches(chunks)) for tokens in batch]


def _decode_batch(chunks: Sequence[Stream]) -> list[np.ndarray]:
    number = bucket(len(chunks))
    width = _rans.LANES
    used = sum(len(c.words) for c in chunks)
    room = next((r for r in _WORDS_PER_LANE if number * width * r >= used), None)
    if room is None:
        raise Damaged(f"{chunks[0].where} and others: {used} words, more than their tokens can take")
    words = np.zeros(number * width * room, np.uint16)
    words[:used] = np.concatenate([c.words for c in chunks])
    states = np.full(number * width, _rans.START, np.uint32)
    counts, lengths, models = (np.zeros(number * width, np.int32) for _ in range(3))
    tables = np.zeros((number, _models.TOTAL), np.uint32)
    symbols = np.zeros((number, _models.TOTAL), np.uint8)
    rows: dict[bytes, int] = {}
    for i, c in enumerate(chunks):
        row = rows.setdefault(c.table.tobytes(), len(rows))
        if row == len(rows) - 1:
            tables[row], symbols[row] = _models.decode_tables(c.table)
        lanes = _coded.lanes(c.size)
        at = i * width
        steps, rest = divmod(c.size, lanes)
        lengths[at : at + lanes] = steps
        lengths[at : at + rest] += 1
        states[at : at + lanes] = c.states
        counts[at : at + lanes] = c.counts
        models[at : at + width] = row
    out = _rans.decode(words, states, counts, lengths, models, tables, symbols, np.int32(lengths.max()))
    tile, good = (np.asarray(a) for a in out)
    if not good.all():
        where = chunks[int(np.argmin(good)) // width].where
        raise Damaged(f"{where}: its lanes do not end as an encoder begins")
    tokens = []
    for i, c in enumerate(chunks):
        lanes = _coded.lanes(c.size)
        steps = -(-c.size // lanes)
        tokens.append(tile[:steps, i * width : i * width + lanes].reshape(-1)[: c.size])
    return tokens


def _scalars(meta: Meta, zeros: int) -> tuple[np.uint32, np.float32, np.ndarray]:
    return np.uint32(zeros), np.float32(meta.step), np.array(meta.centroids, np.float32)


def _dtype(meta: Meta) -> str:
    """The dtype of the weights as JAX has it: float32 for float64, unless 64 bits are enabled."""
    return str(jax.dtypes.canonicalize_dtype(meta.dtype))


def _array(c: Coded, tokens: list[np.ndarray], where: str) -> np.ndarray:
    meta = c.meta
    dtype = np.dtype(np.uint8) if meta.kind == "rf8" else np.dtype(jnp.dtype(meta.dtype))
    out = np.empty(meta.shape, dtype)
    classes = row_classes(meta, c.classes, np)
    chunks = iter(tokens)
    raw = exception = 0
    for k, p in enumerate(meta.parts):
        flat = out.reshape(-1) if meta.axis is None else np.empty(p.size, dtype)
        some = list(itertools.islice(chunks, len(_coded.chunk_sizes(p.size))))
        for start in range(0, p.size, _GROUP * _tokens.CHUNK):
            size = min(_GROUP * _tokens.CHUNK, p.size - start)
            token = np.concatenate(some[start // _tokens.CHUNK : start // _tokens.CHUNK + _GROUP])
            length = sum(_coded.raw_bytes(n, p.shift) for n in _coded.chunk_sizes(size))
            bits = _unpack_raw(c.raw[raw : raw + length], size, p.shift) if p.shift else None
            raw += length
            x = _detokenize(meta, p, token, bits)
            beyond = np.flatnonzero(token == 0)
            if len(beyond):
                if len(beyond) > p.exceptions:
                    raise Damaged(f"{where}: {len(beyond)} exceptions, expected {p.exceptions}")
                keys = c.exceptions[exception : exception + len(beyond)]
                x[beyond[: len(keys)]] = _values(meta, p, keys)
                exception += len(beyond)
            flat[start : start + size] = x
        if exception != sum(q.exceptions for q in meta.parts[: k + 1]):
            raise Damaged(f"{where}: part {k} has not the {p.exceptions} exceptions that its meta states")
        if meta.axis is not None:
            rows = classes == k
            matrix = out.reshape(out.shape[0], -1) if meta.axis == 0 else out.reshape(-1, out.shape[-1])
            if int(rows.sum()) * (out.size // len(rows)) != p.size:
                raise Damaged(f"{where}: part {k} has {p.size} weights, but {int(rows.sum())} rows")
            if meta.axis == 0:
                matrix[rows] = flat.reshape(-1, matrix.shape[1])
            else:
                matrix[:, rows] = flat.reshape(-1, matrix.shape[0]).T
    return out


def row_classes(meta: Meta, data: Any, namespace: Any) -> Any:
    """The class of every row, from its packed form."""
    if meta.axis is None:
        return namespace.zeros(0, "uint32")
    rows = meta.shape[meta.axis]
    if not meta.class_bits:
        return namespace.zeros(rows, "uint32")
    return _planes.unpack(data, _planes.padded(rows), meta.class_bits)[:rows]


def _unpack_raw(data: np.ndarray, size: int, shift: int) -> np.ndarray:
    full, rest = divmod(size, _tokens.CHUNK)
    each = _coded.raw_bytes(_tokens.CHUNK, shift)
    pieces = []
    if full:
        pieces.append(_planes.unpack(data[: full * each].reshape(full, each), _tokens.CHUNK, shift).reshape(-1))
    if rest:
        pieces.append(_planes.unpack(data[full * each :], _planes.padded(rest), shift)[:rest])
    return np.concatenate(pieces)


def _detokenize(meta: Meta, p: _coded.Part, token: np.ndarray, raw: np.ndarray | None) -> np.ndarray:
    """The weights of up to ``_GROUP`` chunks; those of exceptions are to be replaced."""
    number = bucket(-(-len(token) // _tokens.CHUNK)) * _tokens.CHUNK
    padded = np.zeros(number, np.uint8)
    padded[: len(token)] = token
    bits = None
    if raw is not None:
        bits = np.zeros(number, np.uint32)
        bits[: len(raw)] = raw
    window = np.uint32(p.base), np.uint32(p.shift)
    x = _tokens.detokenize(padded, bits, *window, *_scalars(meta, p.zeros), kind=meta.kind, dtype=_dtype(meta))
    return np.array(np.asarray(x)[: len(token)])


def _values(meta: Meta, p: _coded.Part, keys: np.ndarray) -> np.ndarray:
    """The weights of keys."""
    number = 1 << max((len(keys) - 1).bit_length(), 12)
    padded = np.zeros(number, np.uint32)
    padded[: len(keys)] = keys
    x = _tokens.values(padded, *_scalars(meta, p.zeros), kind=meta.kind, dtype=_dtype(meta))
    return np.asarray(x)[: len(keys)]


# Inside a jit: every size is static, all streams are traced.


def traced(c: Coded) -> jax.Array:
    """Decode one array under jit; an RF8 array comes as its codes. A damaged stream gives anything."""
    meta = c.meta
    if meta.coder != "rans":
        raise ValueError(
            f"an array coded by {meta.coder!r} decodes on the host only: call decompress outside jit"
        )
    streams = [jnp.asarray(s) for s in _streams(c)]
    words, states, counts, raw, exceptions, tables, classes = streams
    sizes = [(n, p.table) for p in meta.parts for n in _coded.chunk_sizes(p.size)]
    lengths, models = [], []
    for n, table in sizes:
        lanes = _coded.lanes(n)
        steps, rest = divmod(n, lanes)
        lengths.extend([steps + 1] * rest + [steps] * (lanes - rest))
        models.extend([table] * lanes)
    rows = max(lengths)
    slots = jnp.arange(_models.TOTAL, dtype=jnp.int32)
    ends = jnp.cumsum(tables.astype(jnp.int32), axis=1)
    symbols = jax.vmap(lambda e: jnp.searchsorted(e, slots, side="right"))(ends).astype(jnp.int32)
    size = jnp.take_along_axis(tables.astype(jnp.int32), symbols, 1)
    start = jnp.take_along_axis(ends, symbols, 1) - size
    entries = ((size - 1) << _models.BITS | slots[None] - start).astype(jnp.uint32)
    tile, _ = _rans.decode(
        words,
        states,
        counts.astype(jnp.int32),
        jnp.array(lengths, jnp.int32),
        jnp.array(models, jnp.int32),
        entries,
        symbols.astype(jnp.uint8),
        rows,
        rows=rows,
    )
    lane = byte = key = 0
    parts = []
    for p in meta.parts:
        full, rest = divmod(p.size, _tokens.CHUNK)
        end = lane + full * _rans.LANES
        token = []
        if full:  # chunks side by side in the tile, each (STEPS, LANES), one after another
            whole = tile[:, lane:end].reshape(_rans.STEPS, full, _rans.LANES)
            token.append(whole.transpose(1, 0, 2).reshape(-1))
        lane = end
        if rest:
            lanes = _coded.lanes(rest)
            token.append(tile[: -(-rest // lanes), lane : lane + lanes].reshape(-1)[:rest])
            lane += lanes
        tokens = jnp.concatenate(token)
        low = jnp.uint32(0)
        if p.shift:
            each, last = _coded.raw_bytes(_tokens.CHUNK, p.shift), _coded.raw_bytes(rest, p.shift)
            end = byte + full * each
            bits = []
            if full:
                bits.append(
                    _planes.unpack(raw[byte:end].reshape(full, each), _tokens.CHUNK, p.shift).reshape(-1)
                )
            if rest:
                bits.append(_planes.unpack(raw[end : end + last], _planes.padded(rest), p.shift)[:rest])
            low, byte = jnp.concatenate(bits), end + last
        keys = _tokens.join(tokens, low, jnp.uint32(p.base), jnp.uint32(p.shift))
        if p.exceptions:
            where = jnp.flatnonzero(tokens == 0, size=p.exceptions, fill_value=p.size)
            keys = keys.at[where].set(exceptions[key : key + p.exceptions], mode="drop")
            key += p.exceptions
        zeros, step, centroids = map(jnp.asarray, _scalars(meta, p.zeros))
        if meta.kind == "lossless":
            parts.append(_keys.bits_of(keys, _dtype(meta), zeros))
        else:
            parts.append(_keys.values_of(keys, meta.kind, _dtype(meta), step, centroids, zeros))
    out = parts[0].reshape(meta.shape) if meta.axis is None else _rows_in_place(meta, parts, classes)
    return lax.bitcast_convert_type(out, _dtype(meta)) if meta.kind == "lossless" else out


def _rows_in_place(meta: Meta, parts: list[jax.Array], classes: jax.Array) -> jax.Array:
    """The array of the rows of all classes."""
    assert meta.axis is not None
    length = meta.size // meta.shape[meta.axis]
    sorted_rows = jnp.concatenate([x.reshape(-1, length) for x in parts])
    order = jnp.argsort(row_classes(meta, classes, jnp), stable=True)
    matrix = jnp.zeros_like(sorted_rows).at[order].set(sorted_rows, unique_indices=True)
    return matrix.reshape(meta.shape) if meta.axis == 0 else matrix.T.reshape(meta.shape)
