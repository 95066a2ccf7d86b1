"""Saves over older checkpoints, by one process or by two: the old or the new one loads, and nothing else stays.

The two processes are threads here; ``tests/scale`` has real ones, and ``kill_writers`` kills both kinds.
"""

import json
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from ggjax import codec
from ggjax._internal.atomic import new_file
from ggjax.codec.container import _save, _write
from tests.codec.versions import INDEX, saved, versions_at

ONE, TWO = "model.ggjax.safetensors", INDEX


@pytest.fixture
def save(tmp_path, monkeypatch):
    """``save(version, processes)`` to one path; of two processes, the errors of both."""
    path, me, barrier = tmp_path / ONE, threading.local(), threading.Barrier(2)
    slots = [None, None]

    def gathered(x):
        slots[me.index] = x
        barrier.wait(30)
        both = np.stack(slots)
        barrier.wait(30)
        return both

    def save(version, processes, texts=None):
        if processes == 1:
            return codec.container._save.save_alone(path, saved(version, 1), texts or {})
        leaves = saved(version, 2)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 2)
            patch.setattr(jax, "process_index", lambda: me.index)
            patch.setattr(_save, "gathered", gathered)
            for module in (_save, _write):
                patch.setattr(module, "owners_of", lambda x: dict(zip(x.starts, (0, 1), strict=True)))

            def one(index):
                me.index = index
                try:
                    _save.save_together(path, leaves, texts or {})
                except Exception as e:
                    return e

            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(one, (0, 1)))

    return save


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 2])
def test_a_save_replaces_what_was_there(tmp_path, save, before, after):
    save(0, before)
    assert versions_at(tmp_path / ONE) == {(ONE, TWO)[before - 1]: 0}
    save(1, after)
    assert versions_at(tmp_path / ONE) == {(ONE, TWO)[after - 1]: 1}
    assert len(os.listdir(tmp_path)) == (1 if after == 1 else 3)
    save(1, after)  # the same again, to files of the same names
    assert versions_at(tmp_path / ONE) == {(ONE, TWO)[after - 1]: 1}


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("process", [0, 1])
def test_if_one_process_fails_both_do_and_the_old_checkpoint_stays(
    tmp_path, save, monkeypatch, before, process
):
    """At every call to the system that either of them makes on its way."""
    save(0, before)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    failures = 0
    for name in ("fsync", "replace", "open"):
        for countdown in range(20):
            with monkeypatch.context() as patch:
                calls = iter(range(countdown + 1))
                real = getattr(os, name)

                def failing(*args, calls=calls, real=real, **kwargs):
                    if threading.current_thread() is threading.main_thread():
                        return real(*args, **kwargs)
                    mine = threading.current_thread().name.endswith(f"_{process}")
                    if mine and next(calls, None) is None:
                        raise OSError(5, "broken")
                    return real(*args, **kwargs)

                patch.setattr(os, name, failing)
                errors = save(1, 2)
            if errors == [None, None]:
                break
            failures += 1
            assert all(isinstance(e, (OSError, RuntimeError)) for e in errors), errors
            assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
        else:
            pytest.fail("it never succeeds")
        save(0, before)
    assert failures


def test_texts_make_another_save(tmp_path, save):
    """The same weights with another licence: the files of the two have other names."""
    save(0, 2, {"licence": "a"})
    before = set(os.listdir(tmp_path))
    save(0, 2, {"licence": "b"})
    assert set(os.listdir(tmp_path)) & before == {TWO}
    assert codec.inspect_file(tmp_path / TWO).original == {"licence": "b"}


def test_what_another_index_names_stays(tmp_path, save):
    save(0, 2)
    kept = tmp_path / f"kept.{TWO}"
    shutil.copy(tmp_path / TWO, kept)
    save(1, 2)
    assert len(os.listdir(tmp_path)) == 6
    assert set(codec.load_file(kept)) == {"a", "b", "c"}
    save(2, 1)
    assert set(os.listdir(tmp_path)) > {ONE, kept.name} and len(os.listdir(tmp_path)) == 4
    kept.unlink()
    save(3, 1)
    assert os.listdir(tmp_path) == [ONE]


def test_nothing_is_removed_while_an_index_cannot_be_read(tmp_path, save, monkeypatch):
    save(0, 2)
    (tmp_path / f"a{TWO}").write_text("{}")
    real = type(tmp_path).read_text

    def broken(self, *args, **kwargs):
        if self.name == f"a{TWO}":
            raise OSError(5, "broken")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "read_text", broken)
        save(1, 2)
    assert len(os.listdir(tmp_path)) == 6 and versions_at(tmp_path / ONE) == {TWO: 1}
    save(1, 2)
    assert len(os.listdir(tmp_path)) == 4


def test_files_of_other_checkpoints_stay(tmp_path, save):
    """Those of other paths, and an index of the usual name over files that no save has named."""
    names = ["other-0123456789ab-00001-of-00002.ggjax.safetensors", "model-00001-of-00001.ggjax.safetensors"]
    for name in names:
        codec.save_file({"w": np.ones(3)}, tmp_path / name, lossless=True)
    (tmp_path / TWO).write_text(json.dumps({"weight_map": {"w": names[1]}}))
    save(0, 1)
    assert set(os.listdir(tmp_path)) == {ONE, TWO, *names}
    save(0, 2)
    assert set(names) & set(os.listdir(tmp_path)) == {names[0]} and not (tmp_path / ONE).exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_files_of_a_save_that_was_killed_go(tmp_path, save, processes):
    """Unless another save is at work, which has not written its index yet."""
    orphan = tmp_path / "model-0123456789ab-00001-of-00002.ggjax.safetensors"
    codec.save_file({"w": np.ones(3)}, orphan, lossless=True)
    with new_file(tmp_path / TWO):
        save(0, processes)
        assert orphan.exists()
        if processes == 2:
            shutil.copy(tmp_path / TWO, tmp_path / "x")  # what the block is about to replace
    if processes == 2:
        os.replace(tmp_path / "x", tmp_path / TWO)
    else:
        (tmp_path / TWO).unlink()
    save(1, processes)
    assert not orphan.exists()


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 2])
def test_modes_are_kept(tmp_path, save, before, after):
    save(0, before)
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    save(1, after)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}


def test_an_index_cannot_be_saved_to(tmp_path, save):
    save(0, 2)
    with pytest.raises(ValueError, match="an index is written beside the files"):
        codec.save_file({"w": np.ones(3)}, tmp_path / TWO, lossless=True)
    assert versions_at(tmp_path / ONE) == {TWO: 0}
