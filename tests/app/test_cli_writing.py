"""What the commands leave behind: when a signal ends them, on a full disk, when nothing is to be written."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax._internal import scratch
from ggjax.app import _signals, cli

STOPPED = """
import os, signal, sys, time
from ggjax.app import cli

# Whoever runs the tests may ignore these (nohup, a background job), and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def stop(_):
    print("writing", flush=True)
    time.sleep(60)

os.fsync = stop
sys.exit(cli.main())
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    arrays = {n: np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32) for n in "ab"}
    safetensors.numpy.save_file({**arrays, "ids": np.arange(7)}, path)
    return path


def run(*argv):
    return cli.main([str(a) for a in argv])


def in_folder(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_leaves_nothing_behind(model, tmp_path, name, code):
    """Neither beside the output nor among the temporary files, where the input is when it comes by a pipe."""
    out, temporary = tmp_path / "o", tmp_path / "t"
    out.write_bytes(b"old")
    temporary.mkdir()
    command = [sys.executable, "-c", STOPPED, "compress", "-", "--lossless", "-f", "-o", str(out)]
    keywords = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    keywords["env"] = {**os.environ, "TMPDIR": str(temporary)}
    with model.open("rb") as pipe, subprocess.Popen(command, stdin=pipe, **keywords) as child:
        assert child.stdout.readline() == "writing\n"
        assert len(in_folder(tmp_path)) == 4 and len(in_folder(temporary)) == 1
        child.send_signal(getattr(signal, name))
        _, error = child.communicate(timeout=60)
    assert child.returncode == code
    assert error.startswith("ggjax: ") and "no file is half written" in error and error.count("\n") == 1
    assert out.read_bytes() == b"old" and in_folder(tmp_path) == ["model.safetensors", "o", "t"]
    assert in_folder(temporary) == []


def test_signals_that_are_ignored_stay_so(monkeypatch):
    """nohup's SIGHUP; and a second one does not interrupt the clearing up."""
    found = {name: signal.getsignal(getattr(signal, name)) for name in _signals.NAMES}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _signals.raise_them()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with pytest.raises(_signals.Ended) as e:
            signal.raise_signal(signal.SIGTERM)
        assert e.value.number == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
    finally:
        for name, handler in found.items():
            signal.signal(getattr(signal, name), handler)


def test_temporary_folders_of_the_dead_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    left = scratch._named_for(tmp_path / "ggjax-pipe")
    left.mkdir()
    (left / "stdin.safetensors").write_bytes(b"large")
    with scratch.folder("ggjax-pipe") as first, scratch.folder("ggjax-pipe") as second:
        assert in_folder(tmp_path) == sorted([first.name, second.name])
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert in_folder(tmp_path) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["compress", "{model}", "--lossless", "-o", "{old}"],
        ["compress", "{model}", "--lossless", "-o", "{old}", "-f"],
        ["compress", "{model}", "--lossless", "-o", "{model}", "-f"],
        ["compress", "{model}", "--lossless", "-o", "{folder}/gone/x"],
        ["compress", "{model}", "--lossless", "-o", "{folder}"],
        ["compress", "{model}", "--lossless", "-o", "{folder}/" + "x" * 300],
        ["compress", "{model}", "--bits", "4", "-o", "{folder}/new"],
        ["compress", "{index}", "--bits", "4"],
        ["compress", "{index}", "--lossless", "-o", "{folder}/there", "-f"],
        ["compress", "{index}", "--lossless", "-o", "{folder}/there"],
        ["compress", "{index}", "--lossless", "-o", "{folder}/a/b"],
        ["compress", "{index}", "--lossless", "-o", "{old}/a"],
    ],
    ids=lambda argv: " ".join(argv)[:60],
)
def test_a_dry_run_tells_what_the_real_one_would(model, tmp_path, capsys, argv):
    """The same files and sizes, or the same error and code; and it changes nothing."""
    index, old, there = tmp_path / "x.safetensors.index.json", tmp_path / "old", tmp_path / "there"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(("a", "b", "ids"), model.name)}))
    old.write_bytes(b"old")
    there.mkdir()
    (there / "model.ggjax.safetensors").write_bytes(b"old")
    argv = [a.format(model=model, index=index, old=old, folder=tmp_path) for a in argv]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    would = run(*argv, "--dry-run", "--json"), *capsys.readouterr()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "a").exists()
    done = run(*argv, "--json"), *capsys.readouterr()
    assert would[0] == done[0] and would[2] == done[2]
    assert would[1].replace('"dry_run": true', '"dry_run": false') == done[1]


def test_links_are_followed(model, tmp_path):
    (tmp_path / "real").mkdir()
    link, small = tmp_path / "link.safetensors", tmp_path / "link.ggjax.safetensors"
    link.symlink_to(model.name)
    small.symlink_to("real/small")
    assert run("compress", link, "--lossless", "-q") == 0
    back = tmp_path / "back.safetensors"
    back.symlink_to("real/back")
    assert run("decompress", small, "-o", back, "-q") == 0
    assert small.is_symlink() and back.is_symlink() and (tmp_path / "real" / "back").is_file()
    assert back.read_bytes() == model.read_bytes()
    assert run("decompress", small, "-o", link, "-q") == 2  # exists
    assert run("compress", link, "--lossless", "-q", "-f", "-o", model) == 2  # is the input


def test_long_names(model, tmp_path, capsys):
    """Of 243 bytes; and one that leaves no room for ``.ggjax``."""
    long = model.rename(tmp_path / ("\u6a21" * 77 + ".safetensors"))
    assert run("compress", long, "--lossless", "-q") == 0
    assert run("verify", tmp_path / ("\u6a21" * 77 + ".ggjax.safetensors"), "-q") == 0
    longer = long.rename(tmp_path / ("\u6a21" * 81 + ".safetensors"))
    assert run("compress", longer, "--lossless", "-q") == 1
    assert "a name of 261 bytes, and 255 are allowed there" in capsys.readouterr().err
    assert run("compress", longer, "--lossless", "-q", "-o", tmp_path / "o") == 0


SMALL_DISK = """
mount -t tmpfs -o size={size}k none {disk} || exit 77
{before}
{ggjax} compress {model} --lossless -f -o {disk}/o
code=$?
ls -A {disk}
if [ -s {disk}/o ]; then cat {disk}/o > {copy}; fi
exit $code
"""


def on_small_disk(tmp_path, model, size, before=""):
    """Compress to a disk of so many KiB: (exit code, names, error)."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare, to mount a small disk with")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir(exist_ok=True)
    names = {"size": size, "disk": disk, "before": before, "model": model, "copy": copy}
    script = SMALL_DISK.format(ggjax=f"{sys.executable} -m ggjax.app", **names)
    command = ["unshare", "-rm", "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this system lets no small disk be mounted")
    return done.returncode, done.stdout.splitlines()[-1:], done.stderr


def test_the_disk_needs_room_for_one_output(tmp_path):
    """4.3 MB of it on 4.5 MB; and where it does not fit, the old file stays."""
    model = tmp_path / "large.safetensors"
    w = np.random.default_rng(0).normal(size=(1024, 1280)).astype(np.float32)
    safetensors.numpy.save_file({"w": w}, model)
    assert on_small_disk(tmp_path, model, 4400)[:2] == (0, ["o"])
    assert np.array_equal(codec.load_file(tmp_path / "copy")["w"], w)
    code, names, error = on_small_disk(tmp_path, model, 4000, f"echo old > {tmp_path}/disk/o")
    assert (code, names) == (1, ["o"]) and (tmp_path / "copy").read_text() == "old\n"
    assert error == f"ggjax: [Errno 28] No space left on device: '{tmp_path}/disk/o'\n"
