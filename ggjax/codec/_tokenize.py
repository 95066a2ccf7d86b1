"""A part of an array in tokens: by programs over whole chunks, or by NumPy where it is small."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec._host import FEW, concatenated, padded
from ggjax.codec.entropy import _models, _planes, _tokens
from ggjax.codec.entropy._lanes import CHUNK
from ggjax.codec.quantize._quantizers import QUANTIZERS

_GROUP = 4
"""Chunks that are turned into tokens at a time, at most; on a CPU one, which is as fast and a program less."""


class PartTokens(NamedTuple):
    """A part before its entropy code."""

    chunks: list[np.ndarray]  # uint8, each of up to CHUNK tokens
    raw: np.ndarray  # uint8
    counts: np.ndarray  # of the tokens, int64 (256,)
    exceptions: np.ndarray  # keys, uint32
    binned: list[int]  # how many tokens of every chunk have raw bits: with atoms, those of bins


def tokenized(
    flat: np.ndarray, bins: _tokens.Bins, kind: str, settings: tuple[Any, ...], zeros: int
) -> PartTokens:
    """The tokens of weights, or of codes of them.

    Args:
      flat: what ``keys_of`` of the quantizer takes, a vector.
      bins: the window and the atoms.
      kind: the quantizer.
      settings, zeros: for its ``keys_of``.
    """
    if len(flat) < FEW:
        return _of_few(flat, bins, kind, settings, zeros)
    chunks, raws, beyond = [], [], []
    counts = np.zeros(_models.TOKENS, np.int64)
    most = CHUNK if len(flat) <= CHUNK or jax.default_backend() == "cpu" else _GROUP * CHUNK
    for start in range(0, len(flat), most):
        x = flat[start : start + most]
        token, raw, count = _tokens_of_chunks(
            padded(x, most).reshape(-1, CHUNK),
            np.int32(len(x)),
            settings,
            np.uint32(zeros),
            np.uint32(bins.base),
            np.uint32(bins.shift),
            np.array(bins.atoms, np.uint32),
            kind=kind,
            with_raw=bins.shift > 0,
        )
        token = np.asarray(token).reshape(-1)[: len(x)]
        counts += np.asarray(count)
        some = np.split(token, range(CHUNK, len(x), CHUNK))
        if raw is not None and bins.atoms:
            raws += [_of_bins(r, t, bins) for r, t in zip(np.asarray(raw), some, strict=False)]
        elif raw is not None:
            raws.append(_pack_raw(np.asarray(raw), len(x), bins.shift))
        if np.asarray(count)[0]:
            beyond.append(_keys_at(x[token == 0], settings, np.uint32(zeros), kind=kind))
        chunks.extend(some)
    exceptions = concatenated(beyond, np.uint32)
    return PartTokens(chunks, concatenated(raws, np.uint8), counts, exceptions, _binned(chunks, bins))


def _of_few(
    flat: np.ndarray, bins: _tokens.Bins, kind: str, settings: tuple[Any, ...], zeros: int
) -> PartTokens:
    """The same on the host, where a program for a whole chunk would take longer."""
    keys = QUANTIZERS[kind].keys_of(flat, settings, np.uint32(zeros))
    atoms = np.array(bins.atoms, np.uint32)
    token, numbers = _tokens.split(keys, np.uint32(bins.base), np.uint32(bins.shift), atoms)
    raw = np.zeros(0, np.uint8)
    if bins.shift and bins.atoms:
        raw = _of_bins(numbers, token, bins)
    elif bins.shift:
        raw = _packed(numbers, bins.shift)
    counts = np.bincount(token, minlength=_models.TOKENS)
    return PartTokens([token], raw, counts, keys[token == 0], _binned([token], bins))


def _binned(chunks: list[np.ndarray], bins: _tokens.Bins) -> list[int]:
    if not bins.atoms:
        return [len(t) for t in chunks]
    return [int(np.count_nonzero(t > len(bins.atoms))) for t in chunks]


def _of_bins(raw: np.ndarray, token: np.ndarray, bins: _tokens.Bins) -> np.ndarray:
    """The raw bytes of a chunk where only the tokens of bins have raw bits."""
    return _packed(raw[: len(token)][token > len(bins.atoms)], bins.shift)


def _packed(numbers: np.ndarray, shift: int) -> np.ndarray:
    return _planes.pack(padded(numbers, _planes.padded(len(numbers))), shift)


@functools.partial(jax.jit, static_argnames=("kind", "with_raw"))
def _tokens_of_chunks(
    x: jax.Array,
    count: jax.Array,
    settings: tuple[Any, ...],
    zeros: jax.Array,
    base: jax.Array,
    shift: jax.Array,
    atoms: jax.Array,
    *,
    kind: str,
    with_raw: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """(tokens uint8, raw bits uint32 or None, how often each token occurs int32 (256,)) of whole chunks.

    Args:
      x: weights (chunks, CHUNK), of which the first ``count`` count; the tokens of the others are 0.
      count: int32.
      settings, zeros, base, shift: scalars.
      atoms: uint32 (number of atoms,).
    """
    token, raw = _tokens.split(QUANTIZERS[kind].keys_of(x, settings, zeros), base, shift, atoms)
    index = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
    token = jnp.where(index < count, token, 0)

    def add(i: Any, counts: jax.Array) -> jax.Array:  # piece by piece, which stays in a cache
        return counts.at[lax.dynamic_index_in_dim(pieces, i, 0, False)].add(1, mode="promise_in_bounds")

    pieces = token.reshape(-1, CHUNK // 4)
    counts = lax.fori_loop(0, pieces.shape[0], add, jnp.zeros(_tokens.BINS + 1, jnp.int32))
    counts = counts.at[0].add(count - x.size)
    return token, raw if with_raw else None, counts


def _pack_raw(raw: np.ndarray, size: int, shift: int) -> np.ndarray:
    """The raw bytes of whole chunks and of a last, shorter one."""
    full, rest = divmod(size, CHUNK)
    pieces = [_planes.pack(raw[:full], shift).reshape(-1)] if full else []
    if rest:
        pieces.append(_planes.pack(raw[full, : _planes.padded(rest)], shift))
    return np.concatenate(pieces)


def _keys_at(x: np.ndarray, settings: tuple[Any, ...], zeros: Any, *, kind: str) -> np.ndarray:
    """The keys of some weights, by the program that also makes their tokens: a device may divide otherwise
    than the host."""
    piece = 1 << 12 if len(x) <= 1 << 12 else CHUNK
    out = []
    for start in range(0, len(x), piece):
        some = x[start : start + piece]
        keys = _keys_of(padded(some, piece), settings, zeros, kind=kind)
        out.append(np.asarray(keys)[: len(some)])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames="kind")
def _keys_of(x: jax.Array, settings: tuple[Any, ...], zeros: Any, *, kind: str) -> jax.Array:
    return QUANTIZERS[kind].keys_of(x, settings, zeros)
