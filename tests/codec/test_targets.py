"""Where files are written: modes, links and long names."""

import os
import stat

import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax._internal.atomic import new_file
from ggjax.codec import container
from tests.codec.helpers import checkpoint

W = {"w": np.arange(2000, dtype=np.float32)}
AFTER = {"w": np.arange(2000, dtype=np.float32)[::-1].copy()}


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def holds(path, tree):
    return np.array_equal(codec.load_file(path)["w"], tree["w"])


# Modes.


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "x"
    codec.save_file(W, path, lossless=True)
    path.chmod(mode)
    codec.save_file(AFTER, path, lossless=True)
    assert mode_of(path) == mode and holds(path, AFTER)


def test_a_scratch_file_is_no_more_open_than_the_file(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "x").chmod(0o600)
    with new_file(tmp_path / "x") as f:
        assert stat.S_IMODE(os.fstat(f.fileno()).st_mode) == 0o600
    with new_file(tmp_path / "y", like=tmp_path / "x") as f:
        assert stat.S_IMODE(os.fstat(f.fileno()).st_mode) == 0o600


def test_what_is_made_of_a_secret_file_is_secret(tmp_path):
    source, small, back = (tmp_path / n for n in ("a", "b", "c"))
    checkpoint(source)
    source.chmod(0o600)
    codec.compress_file(source, small, lossless=True)
    codec.decompress_file(small, back)
    assert mode_of(small) == mode_of(back) == 0o600


as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)


@as_root
def test_a_file_keeps_its_owner_and_group(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"")
    os.chown(path, 12, 34)
    with new_file(path) as f:
        f.write(b"new")
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (12, 34)


@as_root
def test_another_group_does_not_get_what_the_old_one_had(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refused)
    for mode, want in ((0o640, 0o600), (0o664, 0o644)):
        path = tmp_path / f"{mode}"
        path.write_bytes(b"")
        os.chown(path, -1, 34)
        path.chmod(mode)
        with new_file(path) as f:
            f.write(b"new")
        assert mode_of(path) == want


# Links.


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    for link, to in (("a", "real/x"), ("b", "a"), ("c", "real/new")):
        (tmp_path / link).symlink_to(to)
    codec.save_file(W, tmp_path / "real" / "x", lossless=True)
    codec.save_file(AFTER, tmp_path / "b", lossless=True)
    codec.save_file(W, tmp_path / "c", lossless=True)
    assert all((tmp_path / n).is_symlink() for n in "abc")
    assert holds(tmp_path / "real" / "x", AFTER) and holds(tmp_path / "real" / "new", W)
    assert sorted(os.listdir(tmp_path / "real")) == ["new", "x"]


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("gone/x")
    (tmp_path / "b").symlink_to("b")
    with pytest.raises(FileNotFoundError, match="a is a link to .*gone/x: there is no folder .*gone"):
        codec.save_file(W, tmp_path / "a", lossless=True)
    with pytest.raises(OSError, match="symbolic links: .*b"):
        codec.save_file(W, tmp_path / "b", lossless=True)


def test_two_outputs_that_are_one_file(tmp_path):
    for name in "ab":
        safetensors.numpy.save_file({name: np.ones(2000, np.float32)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}')
    out = tmp_path / "out"
    out.mkdir()
    for name in "ab":
        (out / f"{name}.ggjax.safetensors").symlink_to("one")
    with pytest.raises(ValueError, match="are links to one file"):
        codec.compress_file(index, out, lossless=True)


# Names.


@pytest.mark.parametrize("name", ["\u6a21" * 81, "\u6a21" * 75 + "x" * 30, "\u6a21" * 85, "x" * 255, "\udce9"])
def test_long_names_and_odd_ones(tmp_path, name):
    path = tmp_path / name
    codec.save_file(W, path, lossless=True)
    codec.save_file(AFTER, path, lossless=True)
    assert holds(path, AFTER) and os.listdir(tmp_path) == [name]


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(OSError, match="a name of 258 bytes, and 255 are allowed there: choose a shorter one"):
        codec.save_file(W, tmp_path / ("\u6a21" * 86), lossless=True)
    source = tmp_path / ("x" * 240 + ".safetensors")
    checkpoint(source)
    with pytest.raises(OSError, match="a name of 258 bytes"):
        container.compress_checkpoint(source, None, lossless=True)
    assert os.listdir(tmp_path) == [source.name]
