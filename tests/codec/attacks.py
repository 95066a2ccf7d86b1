"""Files that no encoder writes, made to take far more time or memory than their size lets one expect.

All their checksums fit. ``ATTACKS`` makes each of a number that its size grows with.
"""

import base64
import functools
import struct
import zlib

import numpy as np

from ggjax.codec.entropy import _models
from tests.codec import forging

CHUNK = 1 << 18


def file_of(tensors, tables=(), entries=None):
    """A file of {name: (description, data)}, the checksums put right.

    ``entries`` are what the header says of tensors that are no vector of bytes: {name: (dtype, shape)}.
    """
    header, stated, body, place = {}, {}, [], 0
    for name, (t, data) in tensors.items():
        dtype, shape = (entries or {}).get(name, ("U8", [len(data)]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(data)]}
        place += len(data)
        stated[name] = t
        body.append(data)
    return forging.packed(header, {"tables": list(tables), "tensors": stated}, b"".join(body))


def pieces(data, sizes):
    """The CRC-32 of pieces of data, one after another."""
    ends = np.cumsum([0, *sizes]).tolist()
    return [zlib.crc32(data[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


@functools.cache
def table(token=1):
    """A table by which a token takes no bits."""
    return base64.b64encode(_models.pack(np.eye(256, dtype=np.uint16)[token] << 14)).decode()


def lanes(number):
    """The code of a chunk of so many lanes that have no words."""
    return struct.pack("<I", 1 << 16) * number + b"\0\0" * number


@functools.cache
def frame(size):
    """So many tokens 1 as a frame of Zstandard."""
    import zstandard

    return zstandard.ZstdCompressor(level=1).compress(b"\1" * size)


def huge(number, coder="zstd", dtype="F32"):
    """One weight, over and over: so many full chunks."""
    code = frame(CHUNK) if coder == "zstd" else lanes(32)
    t = {"crc32": [zlib.crc32(code)] * number, "bytes": [len(code)] * number, "dtype": dtype}
    t |= {"quantizer": "uniform", "params": {"step": 0.5}, "coder": coder, "shape": [number * CHUNK]}
    return file_of({"w": (t, code * number)}, [table()] if coder == "rans" else [])


def one_token_parts(number, coder="rans"):
    """Matrices of 256 rows, each row one weight, a part of its own."""
    code = frame(1) if coder == "zstd" else lanes(1)
    classes = bytes(range(256))
    data = classes + code * 256
    t = {"crc32": [zlib.crc32(code)] * 256, "bytes": [len(code)] * 256, "dtype": "F32", "shape": [256, 1]}
    t |= {"quantizer": "uniform", "params": {"step": 0.5}, "coder": coder, "axis": 0}
    t |= {"parts": {"size": [1] * 256}, "sections": {"classes": [256, zlib.crc32(classes)]}}
    return file_of({f"w{i}": (t, data) for i in range(number)}, [table()] if coder == "rans" else [])


def many_atoms(number):
    """Matrices of 256 rows, each row one weight, a part of its own with all the atoms that it can have."""
    code, classes = lanes(1), bytes(range(256))
    data = classes + code * 256
    t = {"crc32": [zlib.crc32(code)] * 256, "bytes": [len(code)] * 256, "dtype": "F32", "shape": [256, 1]}
    t |= {"quantizer": "uniform", "params": {"step": 0.5}, "axis": 0, "needs": ["atoms"], "binned": [0] * 256}
    t |= {"parts": {"size": [1] * 256, "atoms": [[*range(-127, 127)]] * 256}}
    t |= {"sections": {"classes": [256, zlib.crc32(classes)]}}
    return file_of({f"w{i}": (t, data) for i in range(number)}, [table()])


def blocks(number, axes=64):
    """So many blocks of one byte of a leaf of many axes."""
    rest = [1] * (axes - 1)
    one = {"crc32": [zlib.crc32(b"\1")], "dtype": "U8", "shape": [1, *rest], "leaf": "w"}
    full = [number, *rest]
    tensors = {f"w@{i}": (one | {"start": [i, *[0] * (axes - 1)], "full": full}, b"\1") for i in range(number)}
    return file_of(tensors, entries=dict.fromkeys(tensors, ("U8", [1, *rest])))


def unused_tables(number):
    """Tables that no part names, and a tensor of the future, which might."""
    kept = {"crc32": [zlib.crc32(b"\1")], "needs": ["tomorrow"]}
    every = [table(1 + i % 255) for i in range(number)]
    return file_of({"w": (kept, b"\1"), "v": ({"crc32": [zlib.crc32(b"\1")]}, b"\1")}, every)


def empty_lists(number):
    """Metadata whose text is far longer than its compressed form, and takes far more memory than the text."""
    return forging.packed({}, {"tables": [[]] * number, "tensors": {}}, b"")


def many_matrices(number):
    """A stack of matrices of one weight each, with two steps each that take a bit."""
    steps = bytes(4) + b"\xff" * (2 * number // 8)
    size = [min(CHUNK, number - i) for i in range(0, number, CHUNK)]
    codes = [lanes(min(32, -(-n // 8192))) for n in size]
    data = steps + b"".join(codes)
    t = {"crc32": pieces(data[len(steps) :], map(len, codes)), "bytes": [len(c) for c in codes]}
    t |= {"dtype": "F8_E4M3", "quantizer": "scaled", "shape": [number]}
    t["params"] = {"step": 0.5, "limits": [100] * number, "rows": 1}
    t["parts"] = {"base": [1]}
    t["grid"] = {"rows": [number], "columns": [1], "parts": [0]}
    t["sections"] = {"steps": [len(steps), zlib.crc32(steps)]}
    return file_of({"w": (t, data)}, [table()])


def pack_between(number):
    """Small leaves that stand together, in an order that has a large leaf between any two of them."""
    small = {"crc32": [zlib.crc32(bytes(number))], "leaves": {}, "dtype": "U8"}
    names = [f"s{i}" for i in range(number)]
    small["leaves"] = {"names": names, "shapes": [[1]] * number, "gaps": [1] * number}
    code = frame(CHUNK)
    large = {"crc32": [zlib.crc32(code)] * 17, "bytes": [len(code)] * 17, "dtype": "U8", "coder": "zstd"}
    large |= {"quantizer": "dictionary", "params": {"values": [7]}, "shape": [17 * CHUNK]}
    tensors = {f"l{i}": (large, code * 17) for i in range(number)}
    return file_of(tensors | {"small": (small, bytes(number))})


def named(number):
    """Leaves of awkward names: above and under one another, without a name, or in very many dicts."""
    names = [[""], ["(root)"], ["a", "a/b", "a/b/c"], ["a" + "/" * 100_000]][number % 4]
    return file_of({name: ({"crc32": [zlib.crc32(b"\1")]}, b"\1") for name in names})
