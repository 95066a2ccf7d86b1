"""Compiled programs are kept by the command line, where its user wants that, and never by the library."""

import os
import stat
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from ggjax.app import _cache, cli


@pytest.fixture
def config(monkeypatch, tmp_path):
    """What ``use`` sets, in a home of its own; nothing of it reaches JAX."""
    told = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.__setitem__(name, value))
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION", "JAX_ENABLE_COMPILATION", "JAX_PERSISTENT", "XDG_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return told


def folder_of(told):
    return told.get("jax_compilation_cache_dir")


def test_the_folder(config, monkeypatch, tmp_path):
    _cache.use()
    folder = folder_of(config)
    assert folder.startswith(f"{tmp_path}/.cache/ggjax/programs-")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    _cache.use()
    assert folder_of(config).startswith(f"{tmp_path}/xdg/ggjax/programs-")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    _cache.use()
    assert folder_of(config) == folder


def test_jaxs_own_variables_go_first(config, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    _cache.use()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    update = type(jax.config).update
    update(jax.config, "jax_enable_compilation_cache", False)
    try:
        _cache.use()
    finally:
        update(jax.config, "jax_enable_compilation_cache", True)
    assert config == {} and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    _cache.use()
    assert list(config) == ["jax_compilation_cache_dir"]


def test_a_folder_that_others_write_to_is_not_used(config, monkeypatch, tmp_path):
    _cache.use()
    os.chmod(folder_of(config), 0o777)
    config.clear()
    _cache.use()
    assert config == {}
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _cache.use()
    assert config == {}


def test_only_programs_of_our_own_keep_them(tmp_path):
    """Not a Python program that calls the library, or ``main``."""
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"w": np.arange(3000, dtype=np.float32)}, path)
    before = jax.config.jax_compilation_cache_dir
    assert cli.main(["compress", str(path), "--rf8", "-q"]) == 0
    assert jax.config.jax_compilation_cache_dir == before
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {k: v for k, v in environment.items() if not k.startswith(("JAX_COMP", "JAX_ENABLE_COMP"))}
    command = [sys.executable, "-m", "ggjax.app", "compress", str(path), "--rf8", "-fq"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (folder,) = (tmp_path / "cache" / "ggjax").iterdir()
    assert any(p.name.startswith("jit_encode") for p in folder.iterdir())
