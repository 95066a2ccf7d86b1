"""Damaged and forged files: refused with the place, in little memory."""

import jax.numpy as jnp
import pytest

from ggjax import codec
from tests.codec import forging, fuzz_codec
from tests.codec.helpers import weights


def test_damaged_files_are_refused_or_whole(tmp_path):
    """A short run of the fuzzer; ``python -m tests.codec.fuzz_codec`` is the long one."""
    outcomes = fuzz_codec.run(600, folder=tmp_path)
    assert outcomes["damaged, refused"] > 60 and outcomes["forged, refused"] > 200
    assert outcomes["attack, refused"] > 30 and outcomes["attack, another array"] > 15


def test_every_byte_counts(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": weights((1100,))}, path, bits=2)
    data = path.read_bytes()
    for i in range(0, len(data), 3):
        bad = bytearray(data)
        bad[i] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(codec.FormatError, match=str(path)):
            codec.load_file(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, too short"),
        (b"\xff" * 8, "bytes 0 to 7 state a header of 18446744073709551615 bytes"),
        (b"\x02\0\0\0\0\0\0\0[]", "the header is not a JSON object"),
        (b"\x04\0\0\0\0\0\0\0{{{{", "the header is not JSON"),
        (b"\x02\0\0\0\0\0\0\0{}", "not a compressed file"),
        (b"\x02\0\0\0\0\0\0\0{}x", "11 bytes, but its tensors end at byte 10"),
    ],
)
def test_files_of_something_else(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(codec.FormatError, match=message):
        codec.load_file(tmp_path / "x")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1 << 40], "tensor 'w': 1 chunks, expected 4194304"),
        ([1 << 62] * 60, "no array has the shape"),
        ([1 << 62] * 100_000, "no array has the shape"),
        ([1 << 62, 1 << 62, 0], "no array has the shape"),
    ],
    ids=["large", "deep", "long", "empty"],
)
def test_a_huge_shape_takes_neither_memory_nor_time(tmp_path, shape, message):
    """A header that is wrong about a size is refused before anything is set aside."""
    path = tmp_path / "x"
    codec.save_file({"w": jnp.zeros(2000)}, path, step=1.0)
    header, meta, body = forging.taken_apart(path.read_bytes())
    meta["tensors"]["w"]["shape"] = shape
    meta["tensors"]["w"]["parts"]["size"] = [1 << 40]
    forging.fix_pieces(header, meta, body)
    path.write_bytes(forging.packed(header, meta, body))
    with pytest.raises(codec.FormatError, match=message):
        codec.load_file(path)
    header["w"]["shape"] = shape
    path.write_bytes(forging.packed(header, meta, body))
    with pytest.raises(codec.FormatError, match="expected a shape|takes"):
        codec.load_file(path)
