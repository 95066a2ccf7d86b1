"""Scratch files of those who were killed, and saving when the interpreter is about to end."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest

from ggjax import codec
from ggjax._internal import scratch
from ggjax._internal.atomic import new_file

W = {"w": np.arange(2000, dtype=np.float32)}
AFTER = {"w": np.arange(2000, dtype=np.float32)[::-1].copy()}


def killed_while_writing(path):
    """Start to write in another process, and kill it."""
    pid = os.fork()
    if not pid:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        try:
            with new_file(path) as f:
                f.write(b"new")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:os.fork")
def test_scratch_files_of_the_dead_are_removed(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    killed_while_writing(path)
    assert path.read_bytes() == b"old" and len(os.listdir(tmp_path)) == 2
    mine = tmp_path / ".x.ggjax-part"
    mine.write_bytes(b"a file of the user")
    with ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(scratch, "clear", lambda _: None)
            alive = stack.enter_context(new_file(tmp_path / "z"))
        with monkeypatch.context() as patch:  # another machine, whose locks may be out of sight
            patch.setattr(socket, "gethostname", lambda: "another")
            codec.save_file(W, path, lossless=True)
            assert len(os.listdir(tmp_path)) == 4
        codec.save_file(AFTER, path, lossless=True)
        assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(alive.name), mine.name, "x"])
    assert sorted(os.listdir(tmp_path)) == sorted([mine.name, "x", "z"])


@pytest.mark.filterwarnings("ignore:os.fork")
def test_scratch_files_of_other_machines_are_removed_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    killed_while_writing(tmp_path / "x")
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    codec.save_file(W, tmp_path / "y", lossless=True)
    assert left.exists()
    os.utime(left, (0, time.time() - 2 * scratch.DAY))
    codec.save_file(W, tmp_path / "y", lossless=True)
    assert not left.exists()


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    left = tmp_path / scratch._named_for(tmp_path / "x").name
    left.write_bytes(b"somebody may be writing it")
    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    codec.save_file(W, tmp_path / "x", lossless=True)
    monkeypatch.setattr(scratch, "fcntl", None)
    codec.save_file(W, tmp_path / "x", lossless=True)
    assert left.exists()


def test_an_interruption_at_any_moment_leaves_no_scratch_file(tmp_path, monkeypatch):
    """Also while the file is being made, and while it is being removed."""

    def interrupt(*_):
        raise KeyboardInterrupt

    for module, name in ((scratch, "_lock"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "x") as f:
                f.write(b"new")
        assert os.listdir(tmp_path) == []
    real, calls = type(tmp_path).unlink, []

    def once(self, **keywords):
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(self, **keywords)

    monkeypatch.setattr(type(tmp_path), "unlink", once)
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "x", overwrite=False) as f:
        f.write(b"new")
    assert os.listdir(tmp_path) == ["x"] and len(calls) == 2


AT_EXIT = """
import atexit, sys, threading, time
import numpy as np
from ggjax import codec

def save(name):
    tree = {n: np.random.default_rng(0).normal(size=70000).astype("f") for n in "ab"}
    codec.save_file(tree, sys.argv[1] + name, step=0.1)

def late():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    save("late")

threading.Thread(target=late).start()
if "warm" in sys.argv:
    save("warm")
atexit.register(save, "exit")
"""


@pytest.mark.parametrize("warm", [[], ["warm"]], ids=["the first call", "a later one"])
def test_saving_at_exit_and_from_late_threads(tmp_path, warm):
    command = [sys.executable, "-W", "error", "-c", AT_EXIT, f"{tmp_path}/", *warm]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert sorted(os.listdir(tmp_path)) == sorted(["exit", "late", *warm])
    for name in os.listdir(tmp_path):
        assert codec.load_file(tmp_path / name)["b"].shape == (70000,)
