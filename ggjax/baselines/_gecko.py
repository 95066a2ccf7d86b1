"""Gecko: a lossless code of exponents by differences in blocks of 64."""

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ggjax._internal import mesh, trees
from ggjax.baselines._float_format import check_format, exponents_of, format_bits
from ggjax.baselines._reparameterization import Mask, flatten

Mode = Literal["delta", "bias", "block_max"]

_WIDTH_BITS, _ESCAPE, _RAW = 3, 7, 8
"""A width takes 3 bits; 7 is the escape, for values of 8 bits."""

_BIAS = 127


class GeckoCode(NamedTuple):
    """Coded exponents: three streams. A tree of arrays, but for the mode."""

    bases: jax.Array  # uint8 (blocks, k): k = 8 in mode "delta", 1 in "block_max", 0 in "bias"
    widths: jax.Array  # uint8 (blocks, rows), 0 to 7: 3 bits each in a file
    payload: jax.Array  # uint8: bits in the order of rows, most significant first; what follows ``bits`` is 0
    bits: jax.Array  # int32 (), bits of the payload in use


def gecko_encode(exponents: ArrayLike, mode: Mode = "delta") -> GeckoCode:
    """Code exponents without loss. Every byte is an exponent, those of zero, infinity and NaN too.

    The exponents, in the order of memory, are blocks of 8 rows of 8 (the last one filled up with its last
    exponent). After arXiv 2204.13666:

    - "delta": row 0 is stored raw, 8 bits each. Of rows 1 to 7 the differences to row 0 are stored as sign
      and magnitude, with as many bits for the magnitudes of a row as its largest one has. That number takes 3
      bits.
    - "bias": all 8 rows are differences to 127.

    Ours: magnitudes of 7 and 8 bits share the width 7, which stands for 8 bits (the paper's way with 8 bits is
    not known to us; it costs one bit at width 7). And "block_max", without signs: the largest exponent of the
    block is stored, and of all 8 rows the distances from it.

    Args:
      exponents: uint8, any shape.
      mode: "delta", "bias" or "block_max".

    Returns:
      A ``GeckoCode``. Its size in bits is 8 bases.size + 3 widths.size + bits. Runs under jit; the payload has
      room for the worst case, so cut it to ceil(bits / 8) bytes outside.

    Raises:
      ValueError: an unknown mode, exponents of another dtype, or more than 2^27 of them.

    >>> code = gecko_encode(jnp.array([125, 126, 0, 255], jnp.uint8))
    >>> gecko_decode(code, (4,)).tolist()
    [125, 126, 0, 255]
    """
    _check(exponents, mode)
    return mesh.reduce(functools.partial(_encode, mode=mode), jnp.asarray(exponents))


@functools.partial(jax.jit, static_argnames="mode")
def _encode(exponents: jax.Array, mode: Mode) -> GeckoCode:
    bases, rows = _rows(exponents, mode)
    widths = _widths(rows)
    lengths = _lengths(widths, mode)
    symbols = jnp.abs(rows)
    if _signed(mode):  # the sign is the first bit
        symbols = symbols | jnp.where(rows < 0, 1 << (lengths[..., None] - 1), 0)
    places, used = _places(lengths)
    bits = (symbols.reshape(-1, 1) >> jnp.maximum(_each(lengths)[:, None] - 1 - _ORDER, 0)) & 1
    room = -(-rows.size * _most(mode) // 8) * 8
    stream = jnp.zeros(room, jnp.uint8)
    stream = stream.at[jnp.where(used, places, room)].set(bits.astype(jnp.uint8), mode="drop")
    return GeckoCode(bases, widths, jnp.packbits(stream), jnp.sum(8 * lengths, dtype=jnp.int32))


def gecko_decode(code: GeckoCode, shape: tuple[int, ...], mode: Mode = "delta") -> jax.Array:
    """The exponents that ``gecko_encode`` coded.

    Args:
      code: what it gave; the payload may be cut after its last byte in use.
      shape: of the exponents.
      mode: as it was coded.

    Returns:
      uint8 of that shape.

    Raises:
      ValueError: an unknown mode, or a shape that does not go with the number of blocks.
    """
    _check(jnp.zeros(shape, jnp.uint8), mode)
    blocks, size = code.widths.shape[0], int(np.prod(shape, dtype=np.int64))
    if blocks != -(-size // 64):
        raise ValueError(f"expected {-(-size // 64)} blocks for the shape {shape}, got {blocks}")
    return _decode(code, shape, mode)


@functools.partial(jax.jit, static_argnames=("shape", "mode"))
def _decode(code: GeckoCode, shape: tuple[int, ...], mode: Mode) -> jax.Array:
    lengths = _lengths(code.widths, mode)
    places, used = _places(lengths)
    stream = jnp.pad(jnp.unpackbits(code.payload), (0, 1))  # a lookup needs one entry at least
    bits = jnp.where(used, stream.at[places].get(mode="fill", fill_value=0), 0).astype(jnp.int32)
    symbols = jnp.sum(bits << jnp.maximum(_each(lengths)[:, None] - 1 - _ORDER, 0), -1)
    symbols = symbols.reshape(*lengths.shape, 8)
    if _signed(mode):
        sign = symbols >> (lengths[..., None] - 1)
        symbols = jnp.where(sign > 0, -(symbols & ((1 << (lengths[..., None] - 1)) - 1)), symbols)
    bases = code.bases.astype(jnp.int32)[:, None]
    if mode == "delta":
        rows = jnp.concatenate([bases, bases + symbols], 1)
    else:
        rows = bases - symbols if mode == "block_max" else _BIAS + symbols
    return rows.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape).astype(jnp.uint8)


def gecko_bits(params: Any, mode: Mode = "delta", *, mask: Mask = "kernels") -> jax.Array:
    """Bits per weight of a lossless code: sign and mantissa as they are, exponents by Gecko.

    Args:
      params: a tree of arrays: float32, bfloat16 or float16.
      mode: see ``gecko_encode``; "block_max" is our variant.
      mask: the leaves that count: "kernels", a tree of bools, a prefix of one, or a function to one.

    Returns:
      A float32 scalar, 0 where there are no weights. Nothing is coded for it; runs under jit.

    Raises:
      ValueError: an unknown mode, a leaf of another dtype, no floating leaf, a mask that does not fit.

    >>> float(gecko_bits({"w": jnp.ones((8, 8))}))  # sign, 23 of mantissa, (64 + 7 * 3 + 56) / 64 of exponents
    26.203125
    """
    _check(jnp.zeros(0, jnp.uint8), mode)
    flat = flatten(params, mask, finite=False)
    leaves = list(zip(flat.weight_names(), map(jnp.asarray, flat.weights()), strict=True))
    total = jnp.zeros((), jnp.float32)
    for name, x in leaves:
        check_format(name, x)
        raw = (1 + format_bits(x.dtype)[0]) * x.size
        exponents = exponents_of(x)
        if mode == "bias":  # of float16 it is another one
            exponents = exponents + jnp.uint8(_BIAS + 1 - 2 ** (format_bits(x.dtype)[1] - 1))
        size = mesh.reduce(functools.partial(_size, mode=mode), exponents)
        total = total + float(raw) + size.astype(jnp.float32)
    return total / float(max(trees.size([x for _, x in leaves]), 1))


@functools.partial(jax.jit, static_argnames="mode")
def _size(exponents: jax.Array, mode: Mode) -> jax.Array:
    bases, rows = _rows(exponents, mode)
    lengths = _lengths(_widths(rows), mode)
    fixed = float(8 * bases.size + _WIDTH_BITS * lengths.size)
    return fixed + jnp.sum((8 * lengths).astype(jnp.float32))


_ORDER = np.arange(9, dtype=np.int32)[None]
"""The bits of a symbol, the first one the most significant."""


def _rows(exponents: jax.Array, mode: Mode) -> tuple[jax.Array, jax.Array]:
    """The bases (blocks, k), and what is stored of every row: int32 (blocks, rows, 8)."""
    flat = exponents.reshape(-1)
    blocks = -(-flat.size // 64)
    if flat.size:
        flat = jnp.pad(flat, (0, 64 * blocks - flat.size), mode="edge")
    x = flat.reshape(blocks, 8, 8)
    wide = x.astype(jnp.int32)
    if mode == "delta":
        return x[:, 0], wide[:, 1:] - wide[:, :1]
    if mode == "bias":
        return x[:, 0, :0], wide - _BIAS
    top = jnp.max(wide, (1, 2), keepdims=True)
    return top[:, 0].astype(jnp.uint8), top - wide


def _widths(rows: jax.Array) -> jax.Array:
    """Bits of the largest magnitude of each row, at most the escape: uint8 (blocks, rows)."""
    largest = jnp.max(jnp.abs(rows), -1, initial=0)
    return jnp.minimum(32 - lax.clz(largest), _ESCAPE).astype(jnp.uint8)


def _lengths(widths: jax.Array, mode: Mode) -> jax.Array:
    """Bits of a symbol in each row, int32."""
    wide = widths.astype(jnp.int32)
    return jnp.where(wide == _ESCAPE, _RAW, wide) + _signed(mode)


def _signed(mode: Mode) -> int:
    return int(mode != "block_max")


def _most(mode: Mode) -> int:
    return _RAW + _signed(mode)


def _each(lengths: jax.Array) -> jax.Array:
    """The length of every symbol, in order."""
    return jnp.repeat(lengths.reshape(-1), 8)


def _places(lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the bits of every symbol go in the stream, and which there are: (symbols, 9)."""
    each = _each(lengths)
    starts = jnp.cumsum(each) - each
    return starts[:, None] + _ORDER, each[:, None] > _ORDER


def _check(exponents: Any, mode: Any) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f'mode must be "delta", "bias" or "block_max", got {mode!r}')
    if getattr(exponents, "dtype", None) != np.uint8:
        raise ValueError(
            f"exponents must be uint8, got {getattr(exponents, 'dtype', type(exponents).__name__)}"
        )
    if exponents.size > 1 << 27:
        raise ValueError(f"expected at most 2^27 exponents, got {exponents.size}: code them in parts")
