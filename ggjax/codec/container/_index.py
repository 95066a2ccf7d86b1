"""Checkpoints of one file or of several with an index: which files, which tensors of each, and new names."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ggjax._internal.atomic import check_target
from ggjax.codec.container import _safetensors
from ggjax.codec.container._header import FormatError
from ggjax.codec.container._safetensors import File

PLAIN, SUFFIX = ".safetensors", ".ggjax.safetensors"
"""The usual ends of the names of plain and of compressed files."""

INDEX = ".safetensors.index"
"""What stands in the name of an index, before ``.json`` (or, say, ``.fp16.json``)."""


class Index(NamedTuple):
    """Which file of a checkpoint holds each of its tensors."""

    files: list[Path]
    weight_map: dict[str, str] | None  # the file of each tensor; None: a checkpoint of one file
    rest: dict[str, Any]  # what else the index says
    named: dict[str, list[str]]  # the tensors that the index says are in each file

    def tensors_of(self, file: File, held: Collection[str] | None = None) -> list[str]:
        """The tensors of an open file that belong to the checkpoint, in the order of their data.

        Where the index names another file for one of them, that one counts. ``held`` are the names that the
        index may speak of, where these are others than those of the tensors.

        Raises:
          FormatError: the index names a tensor of this file that it does not have.
        """
        held, name = file.header.entries if held is None else held, Path(file.path).name
        if self.weight_map is None:
            return list(held)
        missing = [t for t in self.named.get(name, ()) if t not in held]
        if missing:
            raise FormatError(f"{file.path}: has no tensor {missing[0]!r:.200}, which the index says is in it")
        return [t for t in held if self.weight_map.get(t, name) == name]


def checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """The checkpoint at a path: of a folder, the index in it, or else its only safetensors file.

    Raises:
      FormatError: a folder that has none, or several.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX}*.json")) or sorted(path.glob(f"*{PLAIN}"))
    if len(found) != 1:
        named = f"several checkpoints: name {' or '.join(f.name for f in found[:9])}" if found else "none"
        raise FormatError(
            f"{path}: a folder of a checkpoint has an index or a {PLAIN} file; this one has {named}"
        )
    return found[0]


def index_of(path: str | os.PathLike[str]) -> Index:
    """The index at a path, or in a folder; of a single file, one that takes it as it is.

    Raises:
      FormatError: it is not an index, or names a file outside its folder or one that is not there.
      OSError: it cannot be read.
    """
    path = checkpoint_at(path)
    if path.suffix != ".json":
        return Index([path], None, {}, {})
    try:
        rest = json.loads(path.read_text("utf-8"))
        weight_map = rest.pop("weight_map")
        names = sorted(set(weight_map.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise FormatError(f"{path}: not the index of a checkpoint: {e}") from None
    if not names:
        raise FormatError(f"{path}: an index that names no tensor")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FormatError(f"{path}: names the file {name!r:.100}, expected one of the same folder")
        if not (path.parent / name).is_file():
            raise FormatError(f"{path}: names the file {name!r}, which is not there")
    if not isinstance(rest.get("metadata") or {}, dict):
        raise FormatError(f"{path}: its metadata is no object")
    named: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        named.setdefault(name, []).append(tensor)
    return Index([path.parent / name for name in names], weight_map, rest, named)


class Plan(NamedTuple):
    """What a command reads and writes."""

    source: Path
    pairs: list[tuple[Path, Path]]  # each file, and the one to make of it
    index: Path | None  # to be written, for several files


def plan(source: str | os.PathLike[str], out: str | os.PathLike[str] | None, *, compressed: bool) -> Plan:
    """The files to be made of those of a checkpoint.

    Args:
      source: a file, the index of several, or the folder of either.
      out: for a file, the file to write; for an index, the folder. None: beside the source, under another name.
      compressed: whether the new files are the compressed ones.
    """
    source = checkpoint_at(source)
    files = index_of(source).files
    if source.suffix != ".json":
        return Plan(source, [(source, Path(out or source.with_name(renamed(source.name, compressed))))], None)
    folder = Path(out or source.parent)
    stem, _, end = source.name.removesuffix(".json").partition(INDEX)
    stem = f"{stem}.ggjax" if compressed else stem.removesuffix(".ggjax")
    pairs = [(f, folder / renamed(f.name, compressed)) for f in files]
    twice = [t for t, n in Counter(t for _, t in pairs).items() if n > 1]
    if twice:
        raise ValueError(f"{source}: two of its files would both become {twice[0]}")
    return Plan(source, pairs, folder / f"{stem}{INDEX}{end}.json")


def renamed(name: str, compressed: bool) -> str:
    """The usual name of the compressed form of a file, or of the plain form of a compressed one."""
    if compressed:
        return name.removesuffix(PLAIN) + SUFFIX
    plain = name.removesuffix(SUFFIX)
    return (plain if plain != name else name.removesuffix(PLAIN) + ".plain") + PLAIN


def make_room(p: Plan, *, overwrite: bool, dry_run: bool = False) -> None:
    """Check that all targets may be written, then make the folder of a checkpoint in several files.

    Args:
      p: what is to be read and written.
      overwrite: whether targets that are there are to be replaced.
      dry_run: only check, the folder too.

    Raises:
      ValueError: one of them is also read, or two are one file.
      FileExistsError: one is there, and not to be replaced; OSError: it cannot be written.
    """
    targets = [*(t for _, t in p.pairs), *([p.index] if p.index else [])]
    refuse_same(p.source, targets)
    real = Counter(os.path.realpath(t) for t in targets)
    for path in targets:
        if real[os.path.realpath(path)] > 1:
            raise ValueError(f"{path} and another output are links to one file, {os.path.realpath(path)}")
        if path.parent.is_dir():
            check_target(path, overwrite=overwrite)
    if p.source.suffix == ".json":
        _make_folder(targets[0].parent, dry_run=dry_run)
        if dry_run:
            return
    for path in targets:
        check_target(path, overwrite=overwrite)


def _make_folder(folder: Path, *, dry_run: bool) -> None:
    """Make a folder and those above it, where they are not there, or only check that this can be done."""
    above = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{folder}: {above} is a file")
    if above != folder and not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: no folder can be made in {above}")
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)


def refuse_same(source: str | os.PathLike[str], targets: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ValueError where a target is the source, or one of the files that its index names."""
    sources = [p for p in (Path(source), *index_of(source).files) if p.exists()]
    for path in map(Path, targets):
        if os.path.exists(path) and any(os.path.samefile(path, s) for s in sources):
            raise ValueError(f"{path} is the input: choose another output")


def as_text(index: dict[str, Any]) -> bytes:
    """The bytes of an index."""
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def text_for(p: Plan, files: Mapping[Path, str | os.PathLike[str]]) -> bytes:
    """The index of the files of a plan, by what is in them.

    Args:
      p: the plan.
      files: where each target is at present.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for _, target in p.pairs:
        with _safetensors.opened(files[target]) as f:
            weight_map |= dict.fromkeys(f.header.entries, target.name)
            total += sum(e.nbytes for e in f.header.entries.values())
    rest = index_of(p.source).rest
    metadata = {**(rest.get("metadata") or {}), "total_size": total}
    return as_text({**rest, "weight_map": weight_map, "metadata": metadata})
