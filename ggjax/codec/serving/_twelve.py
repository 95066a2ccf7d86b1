"""Weights of bfloat16 in 12 bits, losslessly: a sign, 7 bits of mantissa, and 4 bits for the exponent.

The exponents of a trained matrix lie together: 15 in a row hold all but a few thousandths of its weights. Those
others are kept beside it, with all their bits. Every weight has its place, so unlike an entropy code this
decodes in the registers that multiply.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec.serving import _matrices, _nibbles, _patches
from ggjax.codec.serving._floats_needed import Small, is_leading
from ggjax.codec.serving._matrices import Groups, Matrices
from ggjax.codec.serving._patches import Patches

WINDOW = 15
"""Exponents in a row that have a code; 0 is the code of zero."""

SLOTS = 24
"""Of so many rows one may be a slot of patches: together they then take 14 bits a weight at most."""

_REST = np.int32(-0x7F810000)
"""The bits of sign and mantissa, 0x807F0000."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TwelveBitArray(Small):
    """An array of bfloat16 in 12 bits a weight: a pytree, which passes through jit, vmap, scan and checkpoints.

    ``codec.resident(tree, bits=12)`` makes it, ``codec.dot`` and ``codec.einsum`` multiply with it as it is,
    and ``decode`` gives every bit of the weights. Axes before ``axis`` can be indexed, and mapped or scanned
    over where ``base`` has them too.

    Invariants:

    - first, second: uint8, of the shape of the array but half as long along ``axis``: the sign and the mantissa
      of neighbours along it.
    - exponents: uint8, likewise: the codes of both, that of the first in the low half. 0 says zero, and c the
      exponent base + c of the format, whose bias is 127.
    - base: int32, of as many dimensions, 1 long where all weights share it.
    - patches: weights with other exponents (and subnormal ones), as uint16; None where there are none. The rest
      has +0 in their places.
    - axis: static, negative; the axis of rows.
    """

    first: jax.Array
    second: jax.Array
    exponents: jax.Array
    base: jax.Array
    patches: Patches | None = None
    axis: int = dataclasses.field(default=-2, metadata={"static": True})

    @property
    def dtype(self) -> Any:
        """bfloat16."""
        return jnp.dtype(jnp.bfloat16)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        shape = list(self.exponents.shape)
        shape[self.axis] *= 2
        return tuple(shape)

    @property
    def sharding(self) -> Any:
        """The sharding of the bytes."""
        return self.exponents.sharding

    def decode(self, dtype: Any = None) -> jax.Array:
        """The weights, with all their bits, or cast to another floating dtype."""
        return _decoded(self) if dtype is None else _decoded(self).astype(dtype)

    def grouped(self, *groups: tuple[int, ...]) -> Matrices:
        """The array as matrices, see ``Matrices``."""
        return _grouped(self, groups)

    def __getitem__(self, index: Any) -> "TwelveBitArray":
        entries = index if isinstance(index, tuple) else (index,)
        if not is_leading(entries, self.axis % self.ndim):
            raise IndexError(
                f"a TwelveBitArray of shape {self.shape} can be indexed only along the axes before axis "
                f"{self.axis}, got {index!r}: decode() it first"
            )
        base = jnp.broadcast_to(self.base, (*self.shape[: len(entries)], *self.base.shape[len(entries) :]))
        fields = {"first": self.first, "second": self.second, "exponents": self.exponents, "base": base}
        patches = None if self.patches is None else Patches(*(a[index] for a in self.patches))
        return TwelveBitArray(**{k: a[index] for k, a in fields.items()}, patches=patches, axis=self.axis)


def encode(x: np.ndarray, axis: int, batch: tuple[int, ...] = ()) -> TwelveBitArray | None:
    """An array of bfloat16 on the host in 12 bits.

    Args:
      x: of two axes at least.
      axis: the one of rows.
      batch: the axes that count matrices, which have windows of their own.

    Returns:
      None for an odd number of rows, and where the exponents are too many for the window.
    """
    if x.shape[axis] % 2:
        return None
    bits = x.view(np.uint16)
    exponent = (bits >> 7 & 255).astype(np.int32)
    base = np.zeros([n if a in batch else 1 for a, n in enumerate(x.shape)], np.int32)
    for index in np.ndindex(base.shape):
        own = tuple(i if a in batch else slice(None) for a, i in enumerate(index))
        counts = np.bincount(exponent[own].reshape(-1), minlength=256)
        counts[[0, 255]] = 0
        # The window begins one above the base, and ends at 254 at most.
        base[index] = np.argmax(np.convolve(counts, np.ones(WINDOW, np.int64), "valid")[1 : 256 - WINDOW])
    code = exponent - base
    zero = bits << 1 == 0
    odd = ((code < 1) | (code > WINDOW)) & ~zero
    if _patches.slots_of(odd, axis) > x.shape[axis] // SLOTS:
        return None
    code = np.where(odd | zero, 0, code).astype(np.uint8)
    rest = np.where(odd, 0, bits >> 8 & 0x80 | bits & 0x7F).astype(np.uint8)
    first, second = (_nibbles.every_second(rest, axis, i) for i in (0, 1))
    arrays = (first, second, _nibbles.pack(code, axis), base)
    low, high, codes, begin = (jax.device_put(np.ascontiguousarray(a)) for a in arrays)
    return TwelveBitArray(low, high, codes, begin, _patches.of_mask(odd, bits[odd], axis), axis - x.ndim)


@jax.jit
def _decoded(q: TwelveBitArray) -> jax.Array:
    def bits(rest: jax.Array, code: jax.Array) -> jax.Array:
        rest = rest.astype(jnp.int32)
        exponent = jnp.where(code == 0, 0, code + q.base)
        return ((rest & 0x80) << 8 | exponent << 7 | rest & 0x7F).astype(jnp.uint16)

    codes = q.exponents.astype(jnp.int32)
    pair = bits(q.first, codes & 15), bits(q.second, codes >> 4)
    whole = _nibbles.interleaved(*pair, q.axis)
    return lax.bitcast_convert_type(_patches.put_in(whole, q.patches, q.axis % q.ndim), jnp.bfloat16)


def _grouped(q: TwelveBitArray, groups: Groups) -> Matrices:
    shape, axis = q.shape, q.axis % q.ndim
    base = _matrices.one_each(q.base, shape, groups)
    if base is None or axis not in groups[1]:
        weights = _matrices.reshaped(q.decode(), groups)
        return Matrices((weights,), None, None, None, _matrices.as_they_are, None, exact=True)
    arrays = tuple(_matrices.reshaped(a, groups) for a in (q.exponents, q.first, q.second))
    sizes = (m for m in (arrays[0].shape[1] * 2, arrays[0].shape[2]))
    half = base >> 1
    rows, columns = (
        jnp.broadcast_to(_power(n)[:, None], (len(base), size))
        for n, size in zip((half, base - half), sizes, strict=True)
    )
    patches = _patches.regrouped(q.patches, shape, groups, axis)
    cut = _matrices.cut_of(shape, groups[1], axis)
    return Matrices(arrays, rows, columns, patches, _decode, cut, exact=True, powers=True)


def _power(n: jax.Array) -> jax.Array:
    """2^n as float32."""
    return lax.bitcast_convert_type(n + 127 << 23, jnp.float32)


def _decode(codes: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, ...]:
    """Weights over 2^base: as float32 their exponents are the codes, and 0 is the exponent of zero."""
    wide = codes.astype(jnp.int32)
    return _floats(wide << 23, first), _floats(wide << 19, second)


def _floats(exponent: jax.Array, rest: jax.Array) -> jax.Array:
    rest = lax.bitcast_convert_type(rest, jnp.int8).astype(jnp.int32) << 16  # copies of the sign above
    return lax.bitcast_convert_type(exponent & 0x07800000 | rest & _REST, jnp.float32)
