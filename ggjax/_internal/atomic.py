"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def scratch_file(path: Path, suffix: str) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside a path, under a hidden name of its own, which is gone when the block ends.

    Yields:
      Its path, and the file, open for reading and writing.
    """
    scratch = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}{suffix}")
    try:
        with scratch.open("x+b") as f:
            yield scratch, f
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to be written, which takes the path when the block ends without an exception.

    It is flushed to the disk and renamed: at any moment the path names the old file or the whole new one. The
    mode follows the umask.

    Raises:
      FileExistsError: there is a file, and it is not to be replaced.
      OSError: what is there is no regular file, or something cannot be written.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    with scratch_file(path, ".part") as (part, f):
        yield f
        f.flush()
        os.fsync(f.fileno())
        f.close()
        if overwrite:
            part.replace(path)
        else:
            _take(part, path)
        _sync_folder(path.parent)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise OSError unless a file can be put there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is a folder or a device, expected the name of a file")
    if not overwrite:
        raise FileExistsError(f"{path} exists already")


def _take(part: Path, path: Path) -> None:
    """Give a file its name unless that is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise FileExistsError(f"{path} exists already") from None
    except OSError:  # a file system without hard links
        path.open("xb").close()
        part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; where folders cannot be opened, the system has to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
