"""Files that are being written: whole or not at all, whatever happens."""

import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import codec
from ggjax.codec.container import _sources
from tests.codec.helpers import checkpoint

REPO = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def test_nothing_is_overwritten_unless_asked(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    checkpoint(source)
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        codec.compress_file(source, target, lossless=True)
    assert target.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a folder or a device"):
        codec.save_file({"w": jnp.ones(3)}, tmp_path / "pipe", lossless=True)
    with pytest.raises(OSError, match="there is no folder"):
        codec.save_file({"w": jnp.ones(3)}, tmp_path / "nowhere" / "x", lossless=True)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint(tmp_path / "a")
    codec.compress_file(tmp_path / "a", tmp_path / "b", lossless=True)
    codec.verify_file(tmp_path / "b")
    with pytest.raises(FileExistsError):
        codec.compress_file(tmp_path / "a", tmp_path / "b", lossless=True)


def test_what_is_open_is_of_one_version(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": jnp.zeros(3000)}, path, step=1.0)
    with _sources.opened(path) as checkpoint:
        codec.save_file({"w": jnp.ones(5000)}, path, step=1.0)
        ((_, array),) = _sources.load(checkpoint, ["w"])
    assert array.shape == (3000,) and not array.any()


def test_threads_may_save_to_one_path(tmp_path):
    path = tmp_path / "x"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: codec.save_file({"w": jnp.full(3000, i * 1.0)}, path, step=1.0), range(12)))
    codec.verify_file(path)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        codec.save_file({"w": jnp.ones(3)}, tmp_path / "x", lossless=True)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_failing_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": jnp.ones(3)}, path, lossless=True)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        codec.save_file({"w": jnp.full(2000, jnp.nan)}, path, step=1.0)
    with pytest.raises(TypeError, match="safetensors has no dtype for complex128"):
        codec.save_file({"a": jnp.ones(3), "w": np.ones(3, complex)}, path, step=1.0)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


KILLED = """
import sys, numpy as np
from ggjax import codec
rng = np.random.default_rng(int(sys.argv[2]))
codec.save_file({"w": rng.normal(size=30000).astype("f")}, sys.argv[1] + "warm", step=0.1)
print("ready", flush=True)
while True:
    codec.save_file({"w": rng.normal(size=30000).astype("f")}, sys.argv[1], step=0.1)
"""


def test_a_save_killed_at_any_point_leaves_a_whole_file(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": jnp.ones(30000)}, path, step=0.1)
    command = [sys.executable, "-c", KILLED, str(path), "0"]
    rng = np.random.default_rng(0)
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO) as child:
            assert child.stdout.readline() == b"ready\n"
            for _ in range(3):
                time.sleep(rng.uniform(0.01, 0.1))
                codec.verify_file(path)
            child.send_signal(signal.SIGKILL)
        codec.verify_file(path)
        assert codec.load_file(path)["w"].shape == (30000,)
