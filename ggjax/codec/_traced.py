"""From the coded form back to an array inside a jit: every size is static, every stream may be traced."""

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec import _grid, _raw
from ggjax.codec._coded import Coded, Meta
from ggjax.codec._decode import dtype_of, row_classes
from ggjax.codec._layout import Piece, layout_of
from ggjax.codec.entropy import _lanes, _models, _rans, _tokens
from ggjax.codec.quantize._quantizers import QUANTIZERS


def array(c: Coded) -> jax.Array:
    """Decode one array under jit, as the values that its quantizer holds. A damaged stream gives anything.

    Raises:
      ValueError: its coder runs on the host only.
    """
    meta, layout = c.meta, layout_of(c.meta)
    if meta.coder != "rans":
        raise ValueError(
            f"an array coded by {meta.coder!r} decodes on the host only: call decompress outside jit"
        )
    words, states, counts, raw, exceptions, tables, classes, _ = map(jnp.asarray, c.streams)
    tile = _tile(meta, layout.chunks, words, states, counts, tables)
    quantizer = QUANTIZERS[meta.kind]
    arguments = tuple(map(jnp.asarray, quantizer.arguments(meta.params)))
    parts = []
    for p, chunks, beyond in zip(meta.parts, layout.parts, layout.exceptions, strict=True):
        tokens = _tokens_of(tile, chunks)
        bits = raw[chunks[0].raw.start : chunks[-1].raw.stop]
        if not p.shift:
            low = jnp.uint32(0)
        elif p.atoms:
            low = _raw.spread_traced(p, tokens, bits, chunks)
        else:
            low = _raw.unpack(bits, p.size, p.shift)
        atoms = jax.tree.map(jnp.asarray, _tokens.joining(p.atoms))
        keys = _tokens.join(tokens, low, jnp.uint32(p.base), jnp.uint32(p.shift), atoms)
        if p.exceptions:
            where = jnp.flatnonzero(tokens == 0, size=p.exceptions, fill_value=p.size)
            keys = keys.at[where].set(exceptions[beyond], mode="drop")
        parts.append(quantizer.values_of(keys, dtype_of(meta), arguments, jnp.uint32(p.zeros)))
    if meta.grid:
        return _grid.joined_traced(meta.grid, *_grid.unpack(meta.grid, classes), parts)
    return parts[0].reshape(meta.shape) if meta.axis is None else _rows_in_place(meta, parts, classes)


def _tile(
    meta: Meta, chunks: list[Piece], words: jax.Array, states: jax.Array, counts: jax.Array, tables: jax.Array
) -> jax.Array:
    """The tokens of all chunks side by side, uint8 (rows, lanes)."""
    lengths = np.concatenate([_lanes.lane_lengths(c.size) for c in chunks])
    models = np.repeat([meta.parts[c.part].table for c in chunks], [_lanes.lanes(c.size) for c in chunks])
    rows = int(lengths.max())
    entries, symbols = _models.decode_tables_traced(tables)
    lanes = jnp.asarray(lengths), jnp.asarray(models.astype(np.int32))
    return _rans.decode(words, states, counts.astype(jnp.int32), *lanes, entries, symbols, rows, rows=rows)[0]


def _tokens_of(tile: jax.Array, chunks: tuple[Piece, ...]) -> jax.Array:
    """The tokens of a part, from the columns of its chunks."""
    full = [c for c in chunks if c.size == _lanes.CHUNK]
    tokens = []
    if full:  # chunks side by side in the tile, each (STEPS, LANES): one after another
        whole = tile[:, full[0].states.start : full[-1].states.stop]
        whole = whole.reshape(_rans.STEPS, len(full), _rans.LANES)
        tokens.append(whole.transpose(1, 0, 2).reshape(-1))
    if len(full) < len(chunks):
        tokens.append(_lanes.from_lanes(tile[:, chunks[-1].states], chunks[-1].size))
    return jnp.concatenate(tokens)


def _rows_in_place(meta: Meta, parts: list[jax.Array], classes: jax.Array) -> jax.Array:
    """The array of the rows of all classes."""
    sorted_rows = jnp.concatenate([x.reshape(-1, meta.size // meta.rows) for x in parts])
    order = jnp.argsort(row_classes(meta, classes), stable=True)
    matrix = jnp.zeros_like(sorted_rows).at[order].set(sorted_rows, unique_indices=True)
    return matrix.reshape(meta.shape) if meta.axis == 0 else matrix.T.reshape(meta.shape)
