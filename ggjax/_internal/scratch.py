"""Scratch files: hidden, beside the files that they will become, and locked as long as their writer lives.

A process that is killed leaves its scratch files. The system drops their locks, which tells the next writer in
the folder that it may remove them. (No library does this: ``tempfile`` knows nothing of files of the dead.)
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing removed
    fcntl = None  # type: ignore[assignment]

NAME = re.compile(r"\..*\.([0-9a-f]{8})-([0-9a-f]{8})-[0-9a-f]{12}\.ggjax-part", re.DOTALL)
"""The names of scratch files: the beginning of the file's name, checksums of all of it and of the machine's,
and what makes it unique."""

SHOWN = 64
"""Bytes of a file's name that its scratch file's name begins with; all of it might be too long."""

DAY = 86400.0
"""Scratch files of other machines have to be untouched for so many seconds: not every file system tells one
machine of the locks of another."""


def create(path: Path, mode: int, names: list[Path]) -> tuple[Path, BinaryIO]:
    """A new scratch file for a path, open for reading and writing, and locked.

    Args:
      path: of the file that it will become.
      mode: of the scratch file, less what the umask takes away.
      names: gets its path before it is there, so that it can be removed whenever this is interrupted.
    """
    while True:
        scratch = _named_for(path)
        names.append(scratch)
        f = open(scratch, "x+b", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        mine = False
        try:
            mine = _lock(f) and scratch.exists()  # otherwise ``clear`` came in between
        finally:
            if not mine:
                f.close()
        if mine:
            return scratch, f  # type: ignore[return-value]


@contextlib.contextmanager
def folder(name: str) -> Iterator[Path]:
    """A folder for what is needed only inside the block, among the system's temporary files."""
    place = Path(tempfile.gettempdir())
    clear(place)
    with contextlib.ExitStack() as stack:
        while True:
            path = _named_for(place / name)
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            path.mkdir(0o700)
            if fcntl is None:
                break
            f = os.open(path, os.O_RDONLY)
            stack.callback(os.close, f)
            if _lock(f) and path.exists():
                break
        yield path


def clear(folder: Path) -> None:
    """Remove the scratch files in a folder, and the scratch folders, whose writers are dead."""
    for scratch, found in _in(folder):
        with contextlib.suppress(OSError):  # of another user, or gone
            f = _opened(scratch)
            try:
                mine = found[2] == _here() or time.time() - os.fstat(f).st_mtime > DAY
                if fcntl is not None and mine:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where its writer lives
                    shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
            finally:
                os.close(f)


def others(path: Path, mine: Path | None) -> list[Path]:
    """The scratch files for a path, but for one's own."""
    return [s for s, found in _in(path.parent) if found[1] == _crc(path.name) and s != mine]


def _named_for(path: Path) -> Path:
    """A new name for the scratch file of a path."""
    shown = os.fsencode(path.name)[:SHOWN].decode("utf-8", "ignore")
    return path.with_name(f".{shown}.{_crc(path.name)}-{_here()}-{secrets.token_hex(6)}.ggjax-part")


def _in(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        yield from ((folder / n, found) for n in names if (found := NAME.fullmatch(n)))


def _opened(scratch: Path) -> int:
    """A descriptor of a scratch file or folder; some file systems lock only files that may be written."""
    may_write = os.access(scratch, os.W_OK) and not scratch.is_dir()
    return os.open(scratch, os.O_RDWR if may_write else os.O_RDONLY)


def _lock(f: Any) -> bool:
    """Whether a new file is still ours: locked, or on a file system without locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _crc(text: str) -> str:
    return f"{zlib.crc32(os.fsencode(text)):08x}"


def _here() -> str:
    """A checksum of the name of this machine."""
    return _crc(socket.gethostname())
