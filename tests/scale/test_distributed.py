"""Two processes on this machine train, reshape and write one checkpoint; this one reads it back."""

import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax.app import cli

REPO = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("two"), str(free_port())
    command = [sys.executable, "-m", "tests.scale.distributed_worker", port]
    workers = [
        subprocess.Popen(
            [*command, str(i), str(folder)],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for i, worker in enumerate(workers):
            out, _ = worker.communicate(timeout=240)
            assert worker.returncode == 0 and f"process {i} is done" in out, out[-3000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()  # waits, and closes its pipe
    return folder


def files_of(folder, stem):
    """The files of a checkpoint, that of the first process first; their names carry the save."""
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith(f"{stem}-"))
    found = [re.fullmatch(rf"{stem}-([0-9a-f]{{12}})-0000(\d)-of-00002.ggjax.safetensors", n) for n in names]
    assert [m[2] for m in found] == ["1", "2"] and found[0][1] == found[1][1]
    return names


def test_every_process_writes_its_own_shards(folder):
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("model"))
    files = files_of(folder, "model")
    assert names == [*files, "model.ggjax.safetensors.index.json"]
    tensors = [{t.name for t in codec.inspect_file(folder / f).tensors} for f in files]
    assert "bias" in tensors[0] and "bias" not in tensors[1]
    assert not tensors[0] & tensors[1] and any(n.startswith("both@") for n in tensors[1])


def test_one_process_reads_the_same_arrays(folder, capsys):
    want = dict(np.load(folder / "params.npz"))
    index = folder / "exact.ggjax.safetensors.index.json"
    got = codec.load_file(index)
    assert set(got) == set(want)
    for k, v in want.items():
        np.testing.assert_array_equal(np.asarray(got[k]), v)
    rounded = codec.load_file(folder / "model.ggjax.safetensors.index.json")
    for k, v in want.items():  # the weights lie on the grid already
        np.testing.assert_allclose(np.asarray(rounded[k]), v, atol=1e-7)
    for command in ("verify", "info", "stats"):
        assert cli.main([command, str(index)]) == 0
    assert cli.main(["decompress", str(index), "-o", str(folder / "plain")]) == 0
    plain = safetensors.numpy.load_file(folder / "plain" / "exact.safetensors")
    for k, v in want.items():
        np.testing.assert_array_equal(plain[k], v)


def test_an_older_checkpoint_is_replaced(folder):
    """One file that was at the path, then what both saved: each is gone after the next."""
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("over"))
    assert names == [*files_of(folder, "over"), "over.ggjax.safetensors.index.json"]
    assert {t.step for t in codec.inspect_file(folder / names[-1]).tensors if t.step} == {2.0**-9}


def test_the_blocks_of_a_leaf_have_one_step(folder):
    steps = {}
    for t in codec.inspect_file(folder / "four.ggjax.safetensors.index.json").tensors:
        if t.kind == "uniform":
            steps.setdefault(t.name.split("@")[0], set()).add(t.step)
    assert set(steps) == {"both", "rows", "columns"} and all(len(s) == 1 for s in steps.values())


def test_files_of_two_saves_are_not_one_checkpoint(folder, tmp_path):
    first, second = files_of(folder, "exact")
    shutil.copy(folder / first, tmp_path / first)
    shutil.copy(folder / files_of(folder, "four")[1], tmp_path / second)
    index = "exact.ggjax.safetensors.index.json"
    shutil.copy(folder / index, tmp_path / index)
    with pytest.raises(codec.FormatError, match="its files were not written together"):
        codec.load_file(tmp_path / index)


def test_a_missing_file_is_named(folder, tmp_path):
    index = folder / "exact.ggjax.safetensors.index.json"
    (tmp_path / index.name).write_text(index.read_text())
    first, _ = files_of(folder, "exact")
    with pytest.raises(codec.FormatError, match=f"names the file '{first}'"):
        codec.load_file(tmp_path / index.name)
    with pytest.raises(codec.FormatError, match="the 4 blocks of leaf 'both' do not fill it"):
        codec.load_file(folder / first)
