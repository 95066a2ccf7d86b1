"""Headers of safetensors files: what the safetensors library takes is taken, what it refuses is refused."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors

from ggjax import codec
from ggjax.codec import container
from ggjax.codec.container import _safetensors


def file_of(header: Any, data: bytes | int = 0) -> bytes:
    """A file of a header (JSON, or a value) and of data (or so many zeros)."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text)) + text + (bytes(data) if isinstance(data, int) else data)


def one(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4), **rest: Any) -> dict[str, Any]:
    """A header of a single tensor."""
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **rest}}


def two(a: tuple[int, int], b: tuple[int, int], **rest: Any) -> dict[str, Any]:
    """A header of two tensors of bytes, at these places."""
    places = {"a": a, "b": b}
    return rest | {n: one(shape=[max(e - s, 0)], offsets=[s, e])["w"] for n, (s, e) in places.items()}


W = json.dumps(one()["w"])
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "C64": 64}
BITS |= {f"{kind}{n}": n for kind in "UIF" for n in (8, 16, 32, 64) if kind + str(n) != "F8"} | {"BF16": 16}
BITS |= {f"F8_{kind}": 8 for kind in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")}
NO_DTYPES = ["f32", "F8", "F8_E4M3FN", "F128", "C128", "I4", "U4", "F6", "", None, 7, ["U8"]]

FILES = {
    **{f"dtype {d}": file_of(one(d, [2, 4], [0, n]), bytes(range(n))) for d, n in BITS.items()},
    **{f"dtype {d!r}": file_of(one(d), 4) for d in NO_DTYPES},
    # Shapes.
    "a scalar": file_of(one("F32", [], [0, 4]), 4),
    "a packed scalar": file_of(one("F4", [], [0, 1]), 1),
    "packed elements that fill no bytes": file_of(one("F4", [3], [0, 2]), 2),
    "packed elements that fill bytes": file_of(one("F6_E2M3", [4], [0, 3]), 3),
    "64 axes": file_of(one(shape=[1] * 64, offsets=[0, 1]), 1),
    "65 axes": file_of(one(shape=[1] * 65, offsets=[0, 1]), 1),
    "1000 axes": file_of(one("F32", [2] + [1] * 999, [0, 8]), b"abcdefgh"),
    "an empty tensor": file_of(one(shape=[0], offsets=[0, 0])),
    "an empty tensor of many": file_of(one(shape=[3, 0, 1 << 40], offsets=[0, 0])),
    "an empty tensor beyond arrays": file_of(one(shape=[0, (1 << 64) - 1, (1 << 64) - 1], offsets=[0, 0])),
    "a product that overflows before the 0": file_of(one(shape=[1 << 32, 1 << 32, 0], offsets=[0, 0])),
    "a number beyond 64 bits": file_of(one(shape=[1 << 64, 0], offsets=[0, 0])),
    "bytes that overflow": file_of(one("F32", [1 << 60], [0, 0])),
    "elements that overflow": file_of(one(shape=[1 << 33, 1 << 33], offsets=[0, 4]), 4),
    "a negative size": file_of(one(shape=[-4]), 4),
    "two negative sizes": file_of(one(shape=[-2, -2]), 4),
    "a size that is no whole number": file_of(one(shape=[4.0]), 4),
    "a size that is a bool": file_of(one(shape=[True], offsets=[0, 1]), 1),
    "a size that is text": file_of(one(shape=["4"]), 4),
    "a shape that is a number": file_of(one(shape=4), 4),
    "a shape that is null": file_of(one(shape=None), 4),
    "a shape that is an object": file_of(one(shape={"4": 4}), 4),
    # Offsets.
    "one offset": file_of(one(offsets=[0]), 4),
    "three offsets": file_of(one(offsets=[0, 4, 4]), 4),
    "offsets that are text": file_of(one(offsets="04"), 4),
    "offsets that are an object": file_of(one(offsets={"0": 0, "4": 4}), 4),
    "offsets that are no whole numbers": file_of(one(offsets=[0.0, 4.0]), 4),
    "a negative offset": file_of(one(offsets=[-4, 0]), 4),
    "offsets beyond 64 bits": file_of(one(offsets=[1 << 64, (1 << 64) + 4]), 4),
    "the end before the begin": file_of(one(shape=[0], offsets=[4, 0]), 4),
    "more bytes than the shape": file_of(one(shape=[3]), 4),
    "fewer bytes than the shape": file_of(one(shape=[5]), 4),
    "no data": file_of(one()),
    "the data cut off": file_of(one(), 3),
    "bytes after the data": file_of(one(), 5),
    "bytes before the data": file_of(one(offsets=[1, 5]), 5),
    "one after another": file_of(two((0, 3), (3, 4)), b"abcd"),
    "another order": file_of(two((1, 4), (0, 1)), b"abcd"),
    "a hole": file_of(two((0, 1), (2, 4)), 4),
    "an overlap": file_of(two((0, 3), (2, 4)), 4),
    "the same place twice": file_of(two((0, 4), (0, 4)), 4),
    "an empty one between": file_of(two((0, 4), (4, 4)), 4),
    "an empty one in the middle of another": file_of(two((0, 4), (2, 2)), 4),
    "two empty ones": file_of(two((0, 0), (0, 0))),
    # What a header says of a tensor.
    "nothing of the tensor": file_of({"w": {}}, 4),
    "the tensor is null": file_of({"w": None}),
    "no dtype": file_of({"w": {"shape": [4], "data_offsets": [0, 4]}}, 4),
    "no shape": file_of({"w": {"dtype": "U8", "data_offsets": [0, 4]}}, 4),
    "no offsets": file_of({"w": {"dtype": "U8", "shape": [4]}}, 4),
    "more than is asked": file_of(one(strides=[1], x={"y": [None, 1e300]}), 4),
    "a list": file_of({"w": ["U8", [4], [0, 4]]}, b"abcd"),
    "a list of two": file_of({"w": ["U8", [4]]}, 4),
    "a list of four": file_of({"w": ["U8", [4], [0, 4], 1]}, 4),
    "dtype twice": file_of('{"w":{"dtype":"U8",' + W[1:] + "}", 4),
    "shape twice": file_of('{"w":' + W[:-1] + ',"shape":[4]}}', 4),
    "offsets twice": file_of('{"w":' + W[:-1] + ',"data_offsets":[0,4]}}', 4),
    "something else twice": file_of('{"w":' + W[:-1] + ',"x":1,"x":2}}', 4),
    "a tensor twice": file_of(f'{{"w":{W},"w":{W}}}', 4),
    "a tensor twice, in two places": file_of(f'{{"w":{W},"w":{W.replace("[0, 4]", "[4, 8]")}}}', 8),
    # Metadata.
    "metadata": file_of(two((0, 2), (2, 4), __metadata__={"format": "pt", "": "é中"}), 4),
    "metadata alone": file_of({"__metadata__": {"a": "b"}}),
    "metadata of nothing": file_of({"__metadata__": {}, **one()}, 4),
    "metadata null": file_of({"__metadata__": None, **one()}, 4),
    "metadata that is a list": file_of({"__metadata__": [], **one()}, 4),
    "metadata that is text": file_of({"__metadata__": "x", **one()}, 4),
    "metadata that is a tensor": file_of({"__metadata__": one()["w"]}, 4),
    "metadata that maps to a number": file_of({"__metadata__": {"a": 1}, **one()}, 4),
    "metadata that maps to null": file_of({"__metadata__": {"a": None}, **one()}, 4),
    "metadata that maps to an object": file_of({"__metadata__": {"a": {}}, **one()}, 4),
    "metadata with a key twice": file_of(f'{{"__metadata__":{{"a":"1","a":"2"}},"w":{W}}}', 4),
    "metadata twice": file_of(f'{{"__metadata__":{{}},"__metadata__":{{}},"w":{W}}}', 4),
    # JSON and text.
    "an empty object": file_of({}),
    "nothing": file_of(""),
    "a JSON list": file_of([]),
    "JSON null": file_of("null"),
    "two objects": file_of("{}{}"),
    "padding": file_of(json.dumps(one()) + " " * 7, 4),
    "other padding": file_of("\t\r\n " + json.dumps(one()) + "\n", 4),
    "padding of zeros": file_of(json.dumps(one()) + "\0\0", 4),
    "a comment": file_of("{/* */}"),
    "a comma at the end": file_of(f'{{"w":{W},}}', 4),
    "single quotes": file_of(json.dumps(one()).replace('"', "'"), 4),
    "NaN": file_of(one(x=float("nan")), 4),
    "Infinity": file_of(one(x=float("inf")), 4),
    "a number out of range": file_of('{"w":' + W[:-1] + ',"x":1e400}}', 4),
    "a byte order mark": file_of("\ufeff" + json.dumps(one()), 4),
    "UTF-16": file_of(json.dumps(one()).encode("utf-16-le"), 4),
    "no UTF-8": file_of(b'{"\xe9":' + W.encode() + b"}", 4),
    "a surrogate in UTF-8": file_of(b'{"\xed\xa0\x80":' + W.encode() + b"}", 4),
    "a name of any text": file_of({'é中/a.b "\\\n\x00\x7f': one()["w"]}, b"abcd"),
    "no name": file_of({"": one()["w"]}, b"abcd"),
    "a surrogate pair": file_of('{"\\ud83d\\ude00":' + W + "}", 4),
    "a lone surrogate": file_of('{"\\ud800":' + W + "}", 4),
    "half of a pair, and text": file_of('{"\\udc00x":' + W + "}", 4),
    "a lone surrogate in the metadata": file_of(f'{{"__metadata__":{{"a":"\\ud800"}},"w":{W}}}', 4),
    "a line break in a name": file_of('{"a\nb":' + W + "}", 4),
    # The length of the header.
    "no file": b"",
    "seven bytes": bytes(7),
    "a header of no bytes": bytes(8),
    "a header beyond the file": struct.pack("<Q", 40) + json.dumps(one()).encode()[:30],
    "a header beyond all": b"\xff" * 8 + b"{}",
    "a header of 100 MB and more": struct.pack("<Q", 100_000_001) + b"{}",
    "a large header": file_of({f"{i:05d}": one(shape=[1], offsets=[i, i + 1])["w"] for i in range(3000)}, 3000),
}


def theirs(data: bytes) -> Any:
    """{name: (dtype, shape, bytes)} as the library reads a file; None if it does not."""
    try:
        held = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {n: (t["dtype"], list(t["shape"]), bytes(t["data"])) for n, t in held}


def ours(path: Any) -> dict[str, Any]:
    with _safetensors.opened(path) as f:
        entries = f.header.entries.items()
        data = {n: bytes(_safetensors.read_bytes(f, e.begin, e.end)) for n, e in entries}
        return {n: (e.dtype, list(e.shape), data[n]) for n, e in entries}


@pytest.mark.parametrize("kind", FILES)
def test_the_library_and_ggjax_agree(kind, tmp_path):
    """And what is taken comes back from a compressed file."""
    path, small, back = (tmp_path / n for n in ("x.safetensors", "small", "back"))
    path.write_bytes(FILES[kind])
    want = theirs(FILES[kind])
    if want is None:
        with pytest.raises(codec.FormatError) as e:
            ours(path)
        message = str(e.value)
        assert message.startswith(f"{path}: ") and len(message) < 500
        assert message.isprintable()
        return
    assert ours(path) == want
    container.compress_checkpoint(path, small, lossless=True)
    codec.verify_file(small)
    codec.decompress_file(small, back)
    assert theirs(back.read_bytes()) == want
    with safetensors.safe_open(back, "np") as a, safetensors.safe_open(path, "np") as b:
        assert (a.metadata() or {}) == (b.metadata() or {})


def test_both_are_there():
    read = [theirs(data) is not None for data in FILES.values()]
    assert len(read) > 100 and sum(read) > 40 and len(read) - sum(read) > 60


def test_where_a_header_is_wrong(tmp_path):
    """The message names the tensor."""
    path = tmp_path / "x.safetensors"
    for kind in ("a hole", "a negative size", "dtype 'F8'", "shape twice", "bytes that overflow"):
        path.write_bytes(FILES[kind])
        name = "b" if kind == "a hole" else "w"
        with pytest.raises(codec.FormatError, match=rf"{path}: tensor '{name}'"):
            ours(path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_tensors_of_dtypes_that_are_not_coded(dtype, tmp_path):
    """They are kept by their bytes, and said to be; the others are coded."""
    n = 2048 * BITS[dtype] // 8
    data = bytes(i % 251 for i in range(n)) + b"\0\0\x80\x3f" * 2048
    header = {"v": one("F32", [32, 64], [n, n + 8192])["w"], "w": one(dtype, [32, 64], [0, n])["w"]}
    path, small, back = (tmp_path / n for n in ("x.safetensors", "small", "back"))
    path.write_bytes(file_of(header, data))
    result = container.compress_checkpoint(path, small, step=0.5)
    assert result.kept == {"w": f"{dtype} is not coded"}
    kinds = {t.name: (t.dtype, t.kind, t.shape) for t in codec.inspect_file(small).tensors}
    assert kinds == {"w": (dtype, "raw", (32, 64)), "v": ("F32", "uniform", (32, 64))}
    codec.decompress_file(small, back)
    assert theirs(back.read_bytes()) == theirs(path.read_bytes())
    loaded = codec.load_file(small)
    assert loaded["v"].shape == (32, 64) and np.asarray(loaded["w"]).tobytes() == data[:n]
    like = {"w": loaded["w"], "v": loaded["v"]}
    assert codec.load_file(small, like=like)["w"].shape == ((n,) if BITS[dtype] < 8 else (32, 64))
    assert container.compress_checkpoint(path, None, dry_run=True, rf8=True, select="v".__eq__).kept == {}
