"""Saving over older checkpoints: of one file, or of several by as many processes, each of which writes its own.

At any moment the old checkpoint or the new one loads, and whole: the names of several files carry the save, the
index of them is replaced last, and what it then no longer names goes after it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from ggjax._internal import scratch
from ggjax._internal.atomic import check_space, check_target, naming, new_file
from ggjax.codec._compressed import Blocks
from ggjax.codec._shards import owners_of
from ggjax.codec.container import _write
from ggjax.codec.container._index import INDEX, PLAIN, SUFFIX, as_text

MARK = 12
"""Digits of the mark of a save, in the names of its files."""

Leaves = list[tuple[str, Any]]


def save_alone(path: Path, leaves: Leaves, texts: dict[str, str]) -> int:
    """Write one file; an older checkpoint of several files that was saved to this path goes."""
    check_target(path, overwrite=True)
    content = _write.whole(_write.ready(path, leaves, texts))
    check_space(path, content.size.nbytes)
    index = _index_at(path)
    named = _files_of(index)
    replaces = bool(named) and all(_of_save(path).fullmatch(n) for n in named)
    with _file_in_place_of(path, index if replaces else path) as f:
        nbytes = _write.write_whole(f, content)
    if replaces:
        _remove(index)
    _remove_old(path, named, None)
    return nbytes


def save_together(path: Path, leaves: Leaves, texts: dict[str, str]) -> int:
    """Write the blocks of this process to its file and, in the first process, the index of all files.

    All files bear the name of the save, a checksum of what they hold, so that those of two saves are never
    taken for one checkpoint. If one process fails, all do, and the old checkpoint stays.
    """
    number, first, index = jax.process_count(), jax.process_index() == 0, _index_at(path)
    mine = [(n, x) for n, x in leaves if first or isinstance(x, Blocks)]
    with contextlib.ExitStack() as stack:

        def begin() -> tuple[_write.Ready, Any]:
            # Begun before the files that it names, it tells other saves that this one is at work.
            f = stack.enter_context(_file_in_place_of(index, path)) if first else None
            return _write.ready(path, mine, texts), f

        (r, f), digests = _together(path, begin, digest=lambda done: _digest(done[0]))
        mark = hashlib.sha256(b"".join(digests)).hexdigest()[:MARK]
        names = [f"{_stem(path)}-{mark}-{i + 1:05d}-of-{number:05d}{SUFFIX}" for i in range(number)]
        own, before = path.with_name(names[jax.process_index()]), _files_of(index)

        def write() -> int:
            check_target(own, overwrite=True)
            content = _write.whole(r._replace(path=own), mark)
            check_space(own, content.size.nbytes)
            with _file_in_place_of(own, index if before else path) as shard:
                return _write.write_whole(shard, content)

        def undo(files: list[str]) -> None:
            _remove_all(path, set(files) - before, [index.name])

        def swap() -> None:
            if f is not None:
                with naming(index):
                    f.write(as_text({"weight_map": _weight_map(r, leaves, names)}))
            stack.close()

        nbytes, _ = _together(path, write, undo=lambda: undo([own.name]))
        # Only the first process knows for sure whether the index has been replaced.
        _together(path, swap, undo=lambda: undo(names if first else []))
    if first:
        _remove(path)
        _remove_old(path, before, index)
    _together(path, lambda: None)  # nobody goes on before the old files are gone
    return nbytes


@contextlib.contextmanager
def _file_in_place_of(path: Path, older: Path) -> Iterator[BinaryIO]:
    """A new file with the mode of an older one of another name that it replaces, if there is one."""
    there = older.is_file()
    with new_file(path, like=older if there else None) as f:
        yield f
        if there:
            shutil.copymode(older, f.name)


def _together(
    path: Path,
    do: Callable[[], Any],
    *,
    digest: Callable[[Any], bytes] = lambda done: bytes(32),
    undo: Callable[[], None] = lambda: None,
) -> tuple[Any, list[bytes]]:
    """What this process got done, and the digests of all that was done. If one fails, all undo it and fail."""
    failure, done, own = None, None, bytes(32)
    try:
        done = do()
        own = digest(done)
    except BaseException as e:
        failure = e
    try:
        every = gathered(np.frombuffer(own + bytes([failure is None]), np.uint8))
    except BaseException:
        if failure is not None:
            raise failure from None
        raise
    if not every[:, -1].all():
        undo()
    if failure is not None:
        raise failure
    if not every[:, -1].all():
        raise RuntimeError(f"process {int(np.argmin(every[:, -1]))} could not write its file of {path}")
    return done, [row[:-1].tobytes() for row in every]


def gathered(x: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one a row."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(x)).reshape(jax.process_count(), -1)


def _digest(r: _write.Ready) -> bytes:
    return hashlib.sha256(json.dumps([r.said.stated, r.original], sort_keys=True).encode()).digest()


def _weight_map(r: _write.Ready, leaves: Leaves, names: list[str]) -> dict[str, str]:
    """The file of every tensor: of a block that of its owner, of the others, which ``r`` tells, the first."""
    weight_map = dict.fromkeys(r.said.stated, names[0])
    for name, x in leaves:
        if isinstance(x, Blocks):
            weight_map |= {_write.block_name(name, start): names[p] for start, p in owners_of(x).items()}
    return weight_map


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX).removesuffix(PLAIN)


def _index_at(path: Path) -> Path:
    """The index that several processes write which save to a path."""
    return path.with_name(f"{_stem(path)}.ggjax{INDEX}.json")


def _of_save(path: Path, mark: str = f"-[0-9a-f]{{{MARK}}}") -> re.Pattern[str]:
    """The names of the files that several processes write which save to a path."""
    return re.compile(rf"{re.escape(_stem(path))}{mark}-\d{{5}}-of-\d{{5}}{re.escape(SUFFIX)}")


def _named(index: Path) -> set[str]:
    """The files that an index names, if there is one; OSError if it cannot be read."""
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        return {n for n in names if isinstance(n, str)}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return set()


def _files_of(index: Path) -> set[str]:
    """The files that an index names, as far as can be known."""
    try:
        return _named(index)
    except OSError:
        return set()


def _remove_old(path: Path, before: set[str], mine: Path | None) -> None:
    """Remove the files of older saves to a path, also of those that were killed before they had an index.

    What an index in the folder names stays (a copy of an older one, say).

    Args:
      path: what was saved to.
      before: the files that the index named which has been replaced.
      mine: the index that has been written.
    """
    try:
        there = set(os.listdir(path.parent))
    except OSError:
        return
    old = {n for n in before & there if _of_save(path, f"(-[0-9a-f]{{{MARK}}})?").fullmatch(n)}
    if not scratch.others(_index_at(path), mine):
        old |= set(filter(_of_save(path).fullmatch, there))
    _remove_all(path, old, [n for n in there if INDEX in n and n.endswith(".json")])


def _remove_all(path: Path, names: set[str], indices: list[str]) -> None:
    """Remove files beside a path, but for those that one of some indices names; none, if one cannot be read."""
    if not names:
        return
    try:
        used = set().union(*(_named(path.with_name(n)) for n in indices))
    except OSError:
        return
    for name in names - used:
        _remove(path.with_name(name))


def _remove(path: Path) -> None:
    """Remove a file where that is possible."""
    with contextlib.suppress(OSError):
        path.unlink()
