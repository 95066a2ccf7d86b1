"""Raw bits: numbers of a fixed width below 32 bits, side by side without a gap.

The width is split into powers of two, 16 + 8 + 4 + 2 + 1 bits, the lowest bits of the numbers in the largest
plane. In a plane of w bits, n numbers (n a multiple of 16, after zeros at the end) take n w / 8 bytes: 8
bits are a byte, 16 two bytes (the low one first), and of fewer bits 8/w numbers share a byte, number j of
the i-th part of n w / 8 numbers in bits i w to i w + w - 1 of byte j.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from ggjax.codec._host import namespace_of

_PLANES = (16, 8, 4, 2, 1)


def planes(width: int) -> list[tuple[int, int]]:
    """(bits, place of the lowest one) of every plane of a width.

    >>> planes(21)
    [(16, 0), (4, 16), (1, 20)]
    """
    out, place = [], 0
    for bits in _PLANES:
        if width & bits:
            out.append((bits, place))
            place += bits
    return out


def padded(n: int) -> int:
    """n rounded up to a multiple of 16."""
    return -(-n // 16) * 16


def nbytes(n: int, width: int) -> int:
    """The bytes that n numbers of a width take."""
    return padded(n) * width // 8


def pack(numbers: Any, width: int) -> Any:
    """Numbers (..., n) below 2^width, n a multiple of 16, as bytes (..., n width / 8). NumPy or JAX arrays."""
    if namespace_of(numbers) is np:
        return _pack(numbers, width)
    out = []
    n = numbers.shape[-1]
    for bits, place in planes(width):
        plane = numbers >> place
        if bits == 16:
            pair = [(plane & 255)[..., None], (plane >> 8 & 255)[..., None]]
            plane = jnp.concatenate(pair, -1).reshape(*plane.shape[:-1], 2 * n)
        elif bits == 8:
            plane = plane & 255
        else:
            part = n * bits // 8
            pieces = [
                (plane[..., i * part : (i + 1) * part] & ((1 << bits) - 1)) << (i * bits)
                for i in range(8 // bits)
            ]
            plane = functools.reduce(lambda a, b: a | b, pieces)
        out.append(plane.astype("uint8"))
    return jnp.concatenate(out, -1)


def _pack(numbers: np.ndarray, width: int) -> np.ndarray:
    """``pack`` by NumPy: in place, and on numbers as short as their plane."""
    *lead, n = numbers.shape
    out, start = np.empty((*lead, n * width // 8), np.uint8), 0
    for bits, place in planes(width):
        size = n * bits // 8
        plane = (numbers >> place if place else numbers).astype("<u2" if bits == 16 else np.uint8)
        into = out[..., start : start + size]
        start += size
        if bits >= 8:
            into[...] = plane.view(np.uint8)
            continue
        into[...] = 0
        for i in range(8 // bits):
            into |= (plane[..., i * size : (i + 1) * size] & np.uint8((1 << bits) - 1)) << np.uint8(i * bits)
    return out


def unpack(data: Any, n: int, width: int) -> Any:
    """The numbers, uint32 (..., n), n a multiple of 16, of bytes (..., n width / 8). NumPy or JAX arrays."""
    if namespace_of(data) is np:
        return _unpack(data, n, width)
    total, start = None, 0
    for bits, place in planes(width):
        size = n * bits // 8
        plane = data[..., start : start + size].astype("uint32")
        start += size
        if bits == 16:
            pairs = plane.reshape(*plane.shape[:-1], n, 2)
            plane = pairs[..., 0] | pairs[..., 1] << 8
        elif bits < 8:
            pieces = [plane >> (i * bits) & ((1 << bits) - 1) for i in range(8 // bits)]
            plane = jnp.concatenate(pieces, -1)
        total = plane << place if total is None else total | plane << place
    return total


def _unpack(data: np.ndarray, n: int, width: int) -> np.ndarray:
    """``unpack`` by NumPy: in place, since every array of the size of the numbers takes time."""
    out, start = np.zeros((*data.shape[:-1], n), np.uint32), 0
    for bits, place in planes(width):
        size = n * bits // 8
        plane = np.ascontiguousarray(data[..., start : start + size])
        start += size
        for i in range(max(8 // bits, 1)):
            if bits == 16:
                numbers = plane.view("<u2")
            else:
                numbers = plane >> np.uint8(i * bits) & np.uint8((1 << bits) - 1)
            out[..., i * size : i * size + numbers.shape[-1]] |= numbers.astype(np.uint32) << np.uint32(place)
    return out
