"""Reading checkpoints: which tensors of which files make up each leaf, and their arrays, a few at a time."""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ggjax.codec import _decode
from ggjax.codec._coded import Coded
from ggjax.codec._groups import index_groups
from ggjax.codec.container import _body, _cover, _limits, _parse, _safetensors, _sections
from ggjax.codec.container._dtypes import DTYPES, as_array, nbytes_of
from ggjax.codec.container._header import FormatError
from ggjax.codec.container._index import Index, index_of
from ggjax.codec.container._metadata import Metadata, Stored
from ggjax.codec.container._safetensors import File
from ggjax.codec.entropy._chunks import Damaged

GROUP = 1 << 22
"""Tensors are read and decoded together up to so many weights."""

PER_CHUNK = 1 << 10
"""A chunk counts as so many weights more: objects that it takes while it is decoded."""


class Source(NamedTuple):
    """Where a block of a leaf is: a tensor of a file."""

    file: File
    name: str  # of the tensor
    stored: Stored | None  # None: a tensor of a plain file
    tables: Mapping[int, np.ndarray]
    small: tuple[int, tuple[int, ...]] | None = None  # where a small leaf begins in its tensor, and its shape

    @property
    def where(self) -> str:
        return f"{self.file.path}: tensor {self.name!r}"

    @property
    def key(self) -> tuple[int, str]:
        """What sources in one tensor have in common."""
        return id(self.file), self.name

    @property
    def dtype(self) -> str:
        """The safetensors name of the weights' dtype."""
        return self.stored.dtype if self.stored else self.file.header.entries[self.name].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the block."""
        if self.small:
            return self.small[1]
        return self.stored.shape if self.stored else self.file.header.entries[self.name].shape

    @property
    def full(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        return self.stored.full if self.stored and not self.small else self.shape


class Checkpoint(NamedTuple):
    """An open checkpoint, of one file or of several."""

    path: Any
    leaves: dict[str, list[Source]]
    files: list[tuple[File, Metadata | None]]


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, plain: bool = False, partial: bool = False) -> Iterator[Checkpoint]:
    """A compressed checkpoint.

    Args:
      path: a file, or the index of several.
      plain: allow files that are not compressed (a damaged file may look like one).
      partial: allow leaves of which some blocks are missing, as in one file of several.

    Raises:
      FormatError: it is not of this format, or its files do not belong together.
      OSError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        index = index_of(path)
        files: list[tuple[File, Metadata | None]] = []
        for name in index.files:
            file = stack.enter_context(_safetensors.opened(name))
            is_plain = plain and not _body.is_compressed(file.header)
            files.append((file, None if is_plain else _parse.load(name, file.header)))
        saves = {meta.save for _, meta in files if meta is not None}
        if len(saves) > 1:
            raise FormatError(f"{path}: its files were not written together: {', '.join(map(repr, saves))}")
        leaves: dict[str, list[Source]] = {}
        for file, meta in files:
            for leaf, source in _in_order(file, meta, names_of(index, file, meta)):
                leaves.setdefault(leaf, []).append(source)
        if not partial:
            for leaf, sources in leaves.items():
                _check_cover(path, leaf, sources)
        yield Checkpoint(path, leaves, files)


def names_of(index: Index, file: File, meta: Metadata | None) -> set[str]:
    """The tensors of a file that belong to a checkpoint, and the small leaves in them that do."""
    small = [leaf for s in meta.tensors.values() for leaf, _ in s.leaves] if meta else []
    return set(index.tensors_of(file, {*file.header.entries, *small}))


def _in_order(file: File, meta: Metadata | None, names: set[str]) -> list[tuple[str, Source]]:
    """(leaf, its source) of those leaves of a file that ``names_of`` has, in the order of the checkpoint."""
    at: dict[int, tuple[str, Source]] = {}
    separate: list[tuple[str, Source]] = []
    for name in file.header.entries:
        stored = meta.tensors[name] if meta else None
        source = Source(file, name, stored, meta.tables if meta else {})
        if stored is None or not stored.leaves:
            separate.append((stored.leaf if stored else name, source))
            continue
        begin = 0
        for (leaf, shape), place in zip(stored.leaves, stored.places, strict=True):
            at[place] = leaf, source._replace(small=(begin, shape))
            begin += math.prod(shape)
    rest = iter(separate)
    every = [at[i] if i in at else next(rest) for i in range(len(at) + len(separate))]
    return [(leaf, s) for leaf, s in every if s.name in names and (not s.small or leaf in names)]


def _check_cover(path: Any, name: str, sources: list[Source]) -> None:
    """The blocks of a leaf fill it and do not overlap."""
    blocks = [s.stored for s in sources if s.stored is not None and s.stored.start is not None]
    if not blocks:
        if len(sources) > 1:
            raise FormatError(f"{path}: leaf {name!r} stands in several files, and no index says which counts")
        return
    first = blocks[0]
    same = len(blocks) == len(sources) and all((b.full, b.dtype) == (first.full, first.dtype) for b in blocks)
    places = [(b.start, b.shape) for b in blocks if b.start is not None]
    if not same or not _cover.fill(first.full, places):
        raise FormatError(f"{path}: the {len(blocks)} blocks of leaf {name!r} do not fill it")


def load(
    checkpoint: Checkpoint, names: Iterable[str] | None = None, max_bytes: float | None = None
) -> Iterator[tuple[str, Any]]:
    """(name, array, or ``Opaque``) of leaves, a few decoded at a time.

    Args:
      checkpoint: an open one.
      names: of the leaves; None for all.
      max_bytes: of all arrays; None for what is usual.

    Raises:
      FormatError: a tensor is damaged, or all of them take more than ``max_bytes``.
    """
    leaves = checkpoint.leaves
    names = list(leaves if names is None else names)
    check_size(checkpoint, names, max_bytes)
    waiting = Counter(s.key for n in names for s in leaves[n] if s.small)
    packs: dict[tuple[int, str], np.ndarray] = {}
    for group in index_groups(list(costs(leaves, names)), GROUP):
        arrays = iter(_arrays([s for n in group for s in leaves[n]], packs, waiting))
        for n in group:
            blocks = [(s, next(arrays)) for s in leaves[n]]
            if len(blocks) == 1:
                yield n, blocks[0][1]
                continue
            out = np.empty(blocks[0][0].full, DTYPES[blocks[0][0].dtype])
            for s, block in blocks:
                assert s.stored is not None and s.stored.start is not None
                out[tuple(slice(i, i + k) for i, k in zip(s.stored.start, block.shape, strict=True))] = block
            yield n, out


def check_size(checkpoint: Checkpoint, names: Iterable[str], max_bytes: float | None) -> None:
    """Raise FormatError where the tensors that some leaves are in take more bytes than they may."""
    tensors = {s.key: s._replace(small=None) for n in names for s in checkpoint.leaves[n]}
    nbytes = sum(nbytes_of(s.dtype, s.shape) for s in tensors.values())
    size = sum(os.fstat(file.handle.fileno()).st_size for file, _ in checkpoint.files)
    _limits.check(checkpoint.path, nbytes, size, max_bytes)


def costs(leaves: Mapping[str, list[Source]], names: list[str]) -> Iterator[tuple[str, int]]:
    """(name, what it takes to decode it, in weights); small leaves of one tensor are decoded with the first."""
    seen = set()
    for n in names:
        new = {s.key: s._replace(small=None) for s in leaves[n] if s.key not in seen}
        seen.update(new)
        chunks = sum(len(s.stored.chunks) for s in new.values() if s.stored)
        yield n, PER_CHUNK * chunks + sum(math.prod(s.shape) for s in new.values())


def plain_bytes(checkpoint: Checkpoint) -> int:
    """The bytes of all tensors before compression."""
    return sum(nbytes_of(s.dtype, s.shape) for sources in checkpoint.leaves.values() for s in sources)


def _arrays(
    sources: list[Source], packs: dict[tuple[int, str], np.ndarray], waiting: Counter[tuple[int, str]]
) -> list[np.ndarray]:
    """The arrays of blocks, decoded together; a tensor of several small leaves once for all of them.

    ``packs`` has those tensors whose leaves are still wanted, ``waiting`` how many of them.
    """
    new = {s.key: s for s in sources if s.key not in packs}
    read = dict(zip(new, _tensors(list(new.values())), strict=True))
    packs.update((key, read[key]) for key, s in new.items() if s.small)
    out = []
    for s in sources:
        out.append(_part_of(packs[s.key] if s.small else read[s.key], s))
        if s.small:
            waiting[s.key] -= 1
            if not waiting[s.key]:
                del packs[s.key]
    return out


def _part_of(array: np.ndarray, s: Source) -> np.ndarray:
    """The array of a block, or a copy of the small leaf that is meant."""
    if s.small is None:
        return array
    begin, shape = s.small
    return array[begin : begin + math.prod(shape)].reshape(shape).copy()


def _tensors(sources: list[Source]) -> list[np.ndarray]:
    """The arrays of tensors, decoded together."""
    read: list[Any] = [read_coded(s) for s in sources]
    coded = [i for i, x in enumerate(read) if isinstance(x, Coded)]
    try:
        arrays = _decode.arrays([read[i] for i in coded], [sources[i].where for i in coded])
    except Damaged as e:
        raise FormatError(str(e)) from None
    for i, array in zip(coded, arrays, strict=True):
        read[i] = _decode.weights_of(read[i], array)
    return read


def read_coded(s: Source) -> Any:
    """The coded form of a block, or its array where it is kept as it is."""
    e = s.file.header.entries[s.name]
    if s.stored is None:
        return _safetensors.read_array(s.file, s.name)
    if s.stored.problem:
        raise FormatError(f"{s.where}: {s.stored.problem}")
    data = _safetensors.read_bytes(s.file, e.begin, e.end)
    if s.stored.meta is not None:
        return _sections.coded_of(s.where, s.stored, data, s.tables)
    if _safetensors.crc32(data) != s.stored.chunks[0].crc:
        raise FormatError(f"{s.where}: its CRC-32 does not fit")
    return as_array(data, s.stored.dtype, s.stored.shape)
