"""Compressed files taken apart, changed and put together again, with checksums that fit."""

import base64
import json
import math
import struct
import zlib

from ggjax.codec.container._body import PART

NUMBERS = (
    [2**62] * 70,
    0,
    -1,
    1,
    2,
    31,
    32,
    255,
    256,
    2**18,
    2**31,
    2**32,
    2**53,
    2**63,
    10**30,
    0.5,
    1e999,
    True,
    None,
    "x",
    [],
    {},
)

WORDS = (
    "needs coder quantizer leaves start full axis bytes sections params step zeros table rf8 zstd side "
    "names shapes gaps original save row_steps grid rows columns parts limits order rise values exponent steps "
    "exceptions atoms binned"
).split()


def forge(data, rng):
    """A copy with some values of the metadata or some bytes of the data changed, and all checksums put
    right."""
    header, meta, body = taken_apart(data)
    body = bytearray(body)
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 5))):
            if body:
                body[int(rng.integers(len(body)))] = int(rng.integers(256))
    else:
        if meta["tables"] and isinstance(meta["tables"][0], str) and rng.random() < 0.1:
            table = bytearray(base64.b64decode(meta["tables"][0]))
            table[int(rng.integers(len(table)))] ^= 1 << int(rng.integers(8))
            meta["tables"][0] = base64.b64encode(bytes(table)).decode()
        change(meta["tensors"] if rng.random() < 0.9 else meta, rng)
    fix_pieces(header, meta, bytes(body))
    return packed(header, meta, bytes(body))


def taken_apart(data):
    """(header, metadata, data of all tensors) of a file of version 1 or 2."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["ggjax"])
    if meta["version"] != 1:
        meta = json.loads(zlib.decompress(base64.b64decode(meta["deflated"])))
    return header, meta, data[8 + length :]


def packed(header, meta, body):
    """A file of a header, metadata whose checksum is put right, and data."""
    if "version" in meta:
        text = json.dumps(meta | {"crc32": "00000000"}, sort_keys=True, separators=(",", ":"))
    else:
        inner = json.dumps(meta, sort_keys=True, separators=(",", ":"))
        text = enveloped(inner, data=deflated(inner.encode()))
    crc = f"{zlib.crc32(text.encode()):08x}"
    header["__metadata__"] = {"ggjax": text.replace("00000000", crc, 1)}
    new = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(new)) + new + body


def downgraded(data):
    """A file of version 2 as version 1 would have it, where each of its tensors has a place there."""
    header, meta, body = taken_apart(data)
    for name, t in meta["tensors"].items():
        begin, end = header[name]["data_offsets"]
        sections = list(t.pop("sections", {}).values())
        before = sum(size for size, _ in sections)
        sizes = t.pop("bytes", [end - begin - before])
        t["chunks"] = [list(pair) for pair in zip(sizes, t.pop("crc32"), strict=True)]
        t |= {"side": [before, zlib.crc32(body[begin : begin + before])]} if sections else {}
        t |= {"dtype": t.get("dtype", header[name]["dtype"]), "shape": t.get("shape", header[name]["shape"])}
        if "quantizer" in t:
            parts = {"size": [math.prod(t["shape"])]} | t.pop("parts", {})
            zeros = [0] * len(parts["size"])
            t["parts"] = [list(p) for p in zip(*(parts.get(n, zeros) for n in PART), strict=True)]
            t["kind"] = t.pop("quantizer")
            t |= t.pop("params", {})
    return packed(header, meta | {"version": 1}, body)


def enveloped(text, size=None, data=None):
    """The metadata of version 2 around a body, before its checksum is put right."""
    data = zlib.compress(text.encode(), 9) if data is None else data
    inner, size = base64.b64encode(data).decode(), len(text) if size is None else size
    return f'{{"crc32":"00000000","deflated":"{inner}","size":{size},"version":2}}'


def deflated(data):
    """A zlib stream of data, as short as a reader takes it: at least a 64th of all beyond 64 KiB."""
    least = (len(data) - (1 << 16)) // 64
    out = zlib.compress(data, 9)
    if len(out) >= least:
        return out
    plain, packed = (zlib.compressobj(level, wbits=-15) for level in (0, 9))
    out = b"\x78\x9c" + plain.compress(data[:least]) + plain.flush(zlib.Z_FULL_FLUSH)  # stored as they are
    return out + packed.compress(data[least:]) + packed.flush() + struct.pack(">I", zlib.adler32(data))


def change(value, rng):
    """Change one value somewhere in a JSON value."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    if not items:
        return
    key, inner = items[int(rng.integers(len(items)))]
    if isinstance(inner, (dict, list)) and inner and rng.random() < 0.85:
        change(inner, rng)
    elif isinstance(inner, int) and not isinstance(inner, bool) and rng.random() < 0.6:
        value[key] = inner + int(rng.integers(-2, 3)) * 2 ** int(rng.integers(0, 20))
    elif rng.random() < 0.2:
        del value[key]
    elif isinstance(value, dict) and rng.random() < 0.2:
        value[WORDS[int(rng.integers(len(WORDS)))]] = value.pop(key)
    else:
        value[key] = NUMBERS[int(rng.integers(len(NUMBERS)))]


def fix_pieces(header, meta, body):
    """Put right the checksums of the pieces, as far as their sizes make sense."""
    for name, t in meta["tensors"].items() if isinstance(meta.get("tensors"), dict) else ():
        try:
            place, end = header[name]["data_offsets"]
            if "chunks" in t:
                pieces = ([t["side"]] if "side" in t else []) + t["chunks"]
            else:
                pieces = [
                    t["sections"][n] for n in ("classes", "exceptions", "steps") if n in t.get("sections", {})
                ]
                sizes = t.get("bytes", [end - place - sum(size for size, _ in pieces)])
                chunks = [[size, 0] for size in sizes]
                pieces = pieces + chunks
            for piece in pieces:
                piece[1] = zlib.crc32(body[place : place + piece[0]])
                place += piece[0]
            if "chunks" not in t:
                t["crc32"] = [crc for _, crc in chunks]
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            pass
