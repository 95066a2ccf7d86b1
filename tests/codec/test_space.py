"""Full disks, files that are written once, and several files that take their paths together."""

import errno
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax._internal import atomic
from ggjax._internal.atomic import new_file, new_files
from ggjax.codec import container
from ggjax.codec.container import _safetensors
from tests.codec.helpers import checkpoint

W = {"w": np.arange(2000, dtype=np.float32)}
AFTER = {"w": np.arange(2000, dtype=np.float32)[::-1].copy()}


def holds(path, tree):
    return np.array_equal(codec.load_file(path)["w"], tree["w"])


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, monkeypatch):
    """The message has the path, not that of the scratch file."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    source, path = tmp_path / "a", tmp_path / "x"
    checkpoint(source)
    codec.save_file(W, path, lossless=True)
    monkeypatch.setattr(os, "fsync", full)
    for f in (
        lambda: codec.save_file(AFTER, path, lossless=True),
        lambda: codec.compress_file(source, path, step=0.1, overwrite=True),
    ):
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            f()
        assert holds(path, W) and len(os.listdir(tmp_path)) == 2


def test_space_is_checked_first(tmp_path, monkeypatch):
    source, small = tmp_path / "a", tmp_path / "b"
    checkpoint(source)
    codec.compress_file(source, small, lossless=True)
    raw = tmp_path / "raw"
    safetensors.numpy.save_file({"ids": np.arange(5000)}, raw)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 500, 500))
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(atomic.scratch, "create", lambda *_: pytest.fail("begun all the same"))
    for f in (
        lambda: codec.save_file(W, tmp_path / "x", lossless=True),
        lambda: codec.decompress_file(small, tmp_path / "x"),
        lambda: container.decompress_checkpoint(small, tmp_path / "x"),
        lambda: codec.compress_file(raw, tmp_path / "x", step=0.1),
        lambda: container.compress_checkpoint(source, tmp_path / "x", step=0.1, dry_run=True),
    ):
        with pytest.raises(OSError, match="bytes do not fit, 500 are free: '.*/x'"):
            f()
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("reserve", [0, 8, 400, 2000, 1 << 21])
def test_the_header_is_right_whatever_was_left_for_it(tmp_path, monkeypatch, reserve):
    """Data is moved up or down, over a length that is not that of the pieces."""
    monkeypatch.setattr(_safetensors, "MOVED", 1000)
    tensors = {"a": np.arange(1999, dtype=np.int16), "b": np.zeros((0, 3)), "c": np.arange(5.0)}

    def pieces():
        return (_safetensors.tensor_of(n, x) for n, x in tensors.items())

    with new_file(tmp_path / "x") as f:
        nbytes = _safetensors.write_to(f, "x", pieces(), lambda: {"k": "v"}, reserve=reserve)
    assert nbytes == (tmp_path / "x").stat().st_size
    _safetensors.write(tmp_path / "y", pieces(), lambda: {"k": "v"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    for name, x in safetensors.numpy.load_file(tmp_path / "x").items():
        np.testing.assert_array_equal(x, tensors[name])


def test_files_are_written_from_the_first_byte_to_the_last(tmp_path, monkeypatch):
    """Where their size is known before, their data is never moved. A dry run knows of spaces in the others."""
    source, small, back = (tmp_path / n for n in ("a", "b", "c"))
    checkpoint(source)
    moves = []
    real = _safetensors._move
    monkeypatch.setattr(_safetensors, "_move", lambda f, a, b, n: (moves.append(b - a), real(f, a, b, n)))
    codec.save_file(W, tmp_path / "x", step=0.1)
    monkeypatch.setattr(_safetensors, "LARGE", 0)
    monkeypatch.setattr(_safetensors, "WASTE", 0)
    would = container.compress_checkpoint(source, small, lossless=True, dry_run=True).files[0].nbytes
    assert codec.compress_file(source, small, lossless=True) == would == small.stat().st_size
    codec.decompress_file(small, back)
    assert moves == [0, 0, 0] and back.read_bytes() == source.read_bytes()


# Several files.


def test_several_files_take_their_paths_only_when_all_are_written(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), new_files() as begin:
        begin(tmp_path / "a").write(b"new")
        begin(tmp_path / "b").write(b"new")
        raise KeyboardInterrupt
    assert {p.read_bytes() for p in tmp_path.iterdir()} == {b"old"}
    with new_files() as begin:
        begin(tmp_path / "a").write(b"no")
        begin(tmp_path / "b").write(b"new")
        begin(tmp_path / "a").write(b"new")  # again
        assert len(os.listdir(tmp_path)) == 4
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}


def test_a_checkpoint_in_several_files_is_replaced_when_all_of_it_is_there(tmp_path):
    for name in "ab":
        x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
        safetensors.numpy.save_file({name: x}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}')
    out = tmp_path / "out"
    codec.compress_file(index, out, lossless=True)
    container.decompress_checkpoint(out / "x.ggjax.safetensors.index.json", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert len(before) == 6

    def stop(name, nbytes):
        if name == "b":
            raise KeyboardInterrupt

    for f in (
        lambda: codec.compress_file(index, out, step=0.1, overwrite=True, progress=stop),
        lambda: codec.compress_file(index, out, bits=3, overwrite=True, progress=stop),
        lambda: container.decompress_checkpoint(
            out / "x.ggjax.safetensors.index.json", out, overwrite=True, progress=stop
        ),
    ):
        with pytest.raises(KeyboardInterrupt):
            f()
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    codec.compress_file(index, out, step=0.1, overwrite=True)
    assert len(os.listdir(out)) == 6 and codec.verify_file(out / "x.ggjax.safetensors.index.json")
