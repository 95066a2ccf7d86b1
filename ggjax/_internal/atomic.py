"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ggjax._internal import scratch

Like = str | os.PathLike[str] | None
"""A file whose mode bounds that of a new one, if there is one."""


class _Part(NamedTuple):
    """A file that is being written."""

    scratch: Path
    file: BinaryIO


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = True, like: Like = None) -> Iterator[BinaryIO]:
    """A file to be written, which takes the path when the block ends without an exception; see below."""
    with new_files(overwrite=overwrite) as begin:
        yield begin(path, like)


@contextlib.contextmanager
def new_files(*, overwrite: bool = True) -> Iterator[Callable[..., BinaryIO]]:
    """Files to be written, which take their paths one after another when the block ends without an exception.

    All are flushed to the disk before the first is renamed: at any moment a path names the old file or the
    whole new one. (Who is killed between two of the renamings leaves some old and some new files.) Where a path
    is a link, the file that it leads to is replaced and the link stays.

    A file that replaces another has its mode, and its owner and group where the system allows. The mode of a
    new one follows the umask; with ``like``, nobody may read or write it who may not read or write that file.

    A process that is killed leaves scratch files, which the next one to write into their folder removes.

    Yields:
      A function ``(path, like=None)`` that begins a file, open for reading and writing, or begins it again. Its
      ``name`` is that of the scratch file.

    Raises:
      FileExistsError: there is a file, and it is not to be replaced.
      OSError: what is there is no regular file, or something cannot be written; it has the path.
    """
    parts: dict[Path, _Part] = {}
    names: list[Path] = []
    folders: set[Path] = set()

    def begin(path: str | os.PathLike[str], like: Like = None) -> BinaryIO:
        check_target(path := Path(path), overwrite=overwrite)
        path = Path(os.path.realpath(path))
        if path in parts:
            old = parts.pop(path)
            _drop([old.file], [old.scratch])
        if path.parent not in folders:
            folders.add(path.parent)
            scratch.clear(path.parent)
        with naming(path):
            parts[path] = _Part(*scratch.create(path, _first_mode(path, like), names))
        return parts[path].file

    try:
        yield begin
        for path, part in parts.items():
            with naming(path):
                part.file.flush()
                _keep_mode(part.file, path)
                os.fsync(part.file.fileno())
        for path, part in parts.items():
            if os.name == "nt":  # open files cannot be renamed there; elsewhere they stay locked
                part.file.close()
            if overwrite:
                part.scratch.replace(path)
            else:
                _take(part.scratch, path)
        for folder in folders:
            _sync_folder(folder)
    finally:
        files = [part.file for part in parts.values()]
        try:
            _drop(files, names)
        except BaseException:  # interrupted, once more
            _drop(files, names)
            raise


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise OSError unless a file can be put there; links are followed."""
    path, real = Path(path), Path(os.path.realpath(path))
    if not real.parent.is_dir():
        where = f"{path} is a link to {real}" if path.is_symlink() else str(path)
        raise FileNotFoundError(
            f"{where}: there is no folder {real.parent if path.is_symlink() else path.parent}"
        )
    length, longest = len(os.fsencode(real.name)), _longest_name(real.parent)
    if length > longest:
        raise OSError(
            f"{path}: a name of {length} bytes, and {longest} are allowed there: choose a shorter one"
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(f"{path} is a folder or a device, expected the name of a file")
    if mode is not None and not overwrite:
        raise FileExistsError(f"{path} exists already")
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no file can be written into the folder {real.parent}")


def check_space(path: str | os.PathLike[str], nbytes: int) -> None:
    """Raise OSError where so many bytes more do not fit on the file system of a file to be written."""
    disk = shutil.disk_usage(Path(os.path.realpath(path)).parent)
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # may use what is reserved for it
    free = disk.total - disk.used if is_root else disk.free
    if disk.total and nbytes > free:  # some file systems do not tell
        raise OSError(errno.ENOSPC, f"{nbytes:,} bytes do not fit, {free:,} are free", str(path))


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """A block of which an OSError tells the path of a file: that of writing to an open one does not (a full
    disk), that of a scratch file tells another."""
    try:
        yield
    except OSError as e:
        if e.errno is not None:
            e.filename = str(path)
        raise


def _longest_name(folder: Path) -> int:
    """The bytes that the name of a file in a folder may have."""
    try:
        longest = os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return 255
    return longest if longest > 0 else 255


def _first_mode(path: Path, like: Like) -> int:
    """The mode of a scratch file, which nobody may read who may not read what it is made of or replaces."""
    if path.exists():
        return 0o600
    return 0o666 if like is None else 0o600 | 0o666 & stat.S_IMODE(os.stat(like).st_mode)


def _keep_mode(f: BinaryIO, path: Path) -> None:
    """Give a file the mode of the one that it will replace, if there is one, and its owner and group."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return
    mode, new = stat.S_IMODE(old.st_mode), os.fstat(f.fileno())
    if hasattr(os, "fchown") and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        for uid, gid in ((-1, old.st_gid), (old.st_uid, -1)):
            with contextlib.suppress(OSError):
                os.fchown(f.fileno(), uid, gid)
        if os.fstat(f.fileno()).st_gid != old.st_gid:  # another group must not get what that one had
            mode = mode & ~0o070 | (mode & 0o007) << 3 & mode
    os.chmod(f.fileno() if os.chmod in os.supports_fd else f.name, mode)


def _drop(files: list[BinaryIO], names: list[Path]) -> None:
    """Close files, and remove the scratch files of these names that are still there."""
    for f in files:
        with contextlib.suppress(OSError):  # bytes that could not be written are tried once more
            f.close()
    for name in names:
        name.unlink(missing_ok=True)


def _take(part: Path, path: Path) -> None:
    """Give a file its name unless that is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise FileExistsError(f"{path} exists already") from None
    except OSError:  # a file system without hard links
        path.open("xb").close()
        try:
            part.replace(path)
        finally:
            if part.exists():
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; where folders cannot be opened, the system has to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
