"""Compiled programs, kept from one run of the command line to the next.

They are kept in ``ggjax`` under ``$XDG_CACHE_HOME`` or ``~/.cache``. JAX's own environment variables go first:
``JAX_COMPILATION_CACHE_DIR`` names another folder, ``JAX_ENABLE_COMPILATION_CACHE=0`` keeps nothing. The
library never does this: what a program that imports it keeps is for that program to say.
"""

import contextlib
import os
import platform
import stat
import zlib
from pathlib import Path
from typing import Any


def use() -> None:
    """Let JAX keep compiled programs, where the folder for them can be trusted. Before anything is compiled."""
    import jax

    config: Any = jax.config
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not config.jax_enable_compilation_cache:
        return
    folder = _folder()
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def _folder() -> Path | None:
    """The folder, made if need be; None where others could put programs into it, or it cannot be made.

    One for each kind of processor: a program for another one may hold instructions that this one does not have.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    with contextlib.suppress(OSError, RuntimeError):  # no home, a disk that is full or cannot be written
        parent = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
        folder = parent / "ggjax" / f"programs-{_processor():08x}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        if own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.access(folder, os.W_OK):
            return folder
    return None


def _processor() -> int:
    """A number that tells processors apart."""
    told = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told += sorted({x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))})
    return zlib.crc32("\n".join(told).encode())
