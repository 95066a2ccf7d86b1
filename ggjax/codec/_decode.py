"""From the coded form back to arrays on the host, many at a time."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec._coded import Coded, Meta, Part
from ggjax.codec._host import bucket, namespace_of, outside_trace, padded
from ggjax.codec._layout import codes_of, layout_of
from ggjax.codec.entropy import _planes, _tokens
from ggjax.codec.entropy._chunks import Chunk, Damaged
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.entropy._lanes import CHUNK
from ggjax.codec.quantize import _keys, _rows

_GROUP = 4
"""Chunks whose tokens are turned into weights at a time, at most."""


def arrays(coded: Sequence[Coded], wheres: Sequence[str] | None = None) -> list[np.ndarray]:
    """Decode arrays on the host; RF8 arrays come as their codes. ``wheres`` names them in messages.

    Raises:
      Damaged: a stream does not decode to what its encoder must have read.
    """
    hosts = [Coded(*map(np.asarray, c.streams), meta=c.meta) for c in coded]
    wheres = [f"array {i}" for i in range(len(hosts))] if wheres is None else wheres
    chunks: dict[str, list[Chunk]] = {name: [] for name in CODERS}
    for c, where in zip(hosts, wheres, strict=True):
        check(c, where)
        chunks[c.meta.coder].extend(_chunks_of(c, where))
    with outside_trace():
        tokens = {name: iter(CODERS[name].decode(some) if some else ()) for name, some in chunks.items()}
        return [_array(c, tokens[c.meta.coder], where) for c, where in zip(hosts, wheres, strict=True)]


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
    """The array of its tokens, the next ones of an iterator over chunks."""
    meta, layout = c.meta, layout_of(c.meta)
    dtype = np.dtype(np.uint8) if meta.kind == "rf8" else np.dtype(jnp.dtype(meta.dtype))
    out = np.empty(meta.shape, dtype)
    classes = row_classes(meta, c.classes)
    for k, (p, chunks) in enumerate(zip(meta.parts, layout.parts, strict=True)):
        flat = out.reshape(-1) if meta.axis is None else np.empty(p.size, dtype)
        exceptions, used = c.exceptions[layout.exceptions[k]], 0
        for i in range(0, len(chunks), _GROUP):
            some = chunks[i : i + _GROUP]
            token = np.concatenate(list(itertools.islice(tokens, len(some))))
            raw = c.raw[some[0].raw.start : some[-1].raw.stop]
            x = _weights(meta, p, token, raw)
            beyond = np.flatnonzero(token == 0)
            if used + len(beyond) > p.exceptions:
                raise Damaged(f"{where}: part {k} has more exceptions than the {p.exceptions} of its meta")
            if len(beyond):
                x[beyond] = _weights_of_keys(meta, p, exceptions[used : used + len(beyond)])
            used += len(beyond)
            flat[some[0].start : some[0].start + len(x)] = x
        if used != p.exceptions:
            raise Damaged(f"{where}: part {k} has {used} exceptions, its meta states {p.exceptions}")
        if meta.axis is not None:
            rows = classes == k
            matrix = _rows.matrix(out, meta.axis)
            if int(rows.sum()) * matrix.shape[1] != p.size:
                raise Damaged(f"{where}: part {k} has {p.size} weights, but {int(rows.sum())} rows")
            matrix[rows] = flat.reshape(-1, matrix.shape[1])
    return out


def row_classes(meta: Meta, data: Any) -> Any:
    """The class of every row, uint32, from its packed form. NumPy or JAX arrays."""
    if not meta.class_bits:
        return np.zeros(meta.rows, np.uint32)
    return _planes.unpack(data, _planes.padded(meta.rows), meta.class_bits)[: meta.rows]


def dtype_of(meta: Meta) -> str:
    """The dtype of the weights as JAX has it: float32 for float64, unless 64 bits are enabled."""
    return str(jax.dtypes.canonicalize_dtype(meta.dtype))


def scalars_of(meta: Meta, zeros: int) -> tuple[np.uint32, np.float32, np.ndarray]:
    """What ``values_of`` takes besides keys: (zeros, step, centroids)."""
    return np.uint32(zeros), np.float32(meta.step), np.array(meta.centroids, np.float32)


def _weights(meta: Meta, p: Part, token: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """The weights of up to ``_GROUP`` chunks; those of exceptions are to be replaced."""
    number = bucket(-(-len(token) // CHUNK)) * CHUNK
    bits = padded(unpack_raw(raw, len(token), p.shift), number) if p.shift else None
    window = np.uint32(p.base), np.uint32(p.shift)
    program = functools.partial(_values_of_tokens, kind=meta.kind, dtype=dtype_of(meta))
    return _on_host(meta, program(padded(token, number), bits, *window, *scalars_of(meta, p.zeros)), len(token))


def _weights_of_keys(meta: Meta, p: Part, keys: np.ndarray) -> np.ndarray:
    number = 1 << max((len(keys) - 1).bit_length(), 12)
    program = functools.partial(_values_of_keys, kind=meta.kind, dtype=dtype_of(meta))
    return _on_host(meta, program(padded(keys, number), *scalars_of(meta, p.zeros)), len(keys))


def _on_host(meta: Meta, x: jax.Array, size: int) -> np.ndarray:
    """The first numbers of a program's result, to be written to; bits become weights."""
    out = np.array(np.asarray(x)[:size])
    return out.view(jnp.dtype(meta.dtype)) if meta.kind == "lossless" else out


def unpack_raw(data: Any, size: int, shift: int) -> Any:
    """The raw bits, uint32 (size,), of whole chunks and a last, shorter one. NumPy or JAX arrays."""
    full, rest = divmod(size, CHUNK)
    each = _planes.nbytes(CHUNK, shift)
    pieces = []
    if full:
        pieces.append(_planes.unpack(data[: full * each].reshape(full, each), CHUNK, shift).reshape(-1))
    if rest:
        pieces.append(_planes.unpack(data[full * each :], _planes.padded(rest), shift)[:rest])
    return pieces[0] if len(pieces) == 1 else namespace_of(data).concatenate(pieces)


@functools.partial(jax.jit, static_argnames=("kind", "dtype"))
def _values_of_tokens(
    token: jax.Array,
    raw: jax.Array | None,
    base: jax.Array,
    shift: jax.Array,
    zeros: jax.Array,
    step: jax.Array,
    centroids: jax.Array,
    *,
    kind: _keys.Kind,
    dtype: str,
) -> jax.Array:
    key = _tokens.join(token, jnp.uint32(0) if raw is None else raw, base, shift)
    return _keys.values_of(key, kind, dtype, step, centroids, zeros)


@functools.partial(jax.jit, static_argnames=("kind", "dtype"))
def _values_of_keys(
    key: jax.Array, zeros: jax.Array, step: jax.Array, centroids: jax.Array, *, kind: _keys.Kind, dtype: str
) -> jax.Array:
    return _keys.values_of(key, kind, dtype, step, centroids, zeros)
