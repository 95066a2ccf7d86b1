"""Writing compressed files: what they say of coded leaves and others, and their bytes."""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec._coded import Coded
from ggjax.codec._compressed import Blocks, is_array
from ggjax.codec._shards import owners_of
from ggjax.codec.container import _body, _metadata, _safetensors, _sections
from ggjax.codec.container._dtypes import Opaque
from ggjax.codec.container._header import METADATA
from ggjax.codec.container._metadata import Piece
from ggjax.codec.container._packs import Item, packed
from ggjax.codec.container._safetensors import Tensor, dtype_name, tensor_of


class _Said(NamedTuple):
    """What the metadata says of the tensors, as they are written."""

    stated: dict[str, dict[str, Any]]
    tables: dict[bytes, int]  # the number of each
    stack: list[np.ndarray]


class Ready(NamedTuple):
    """Leaves of which everything is known that a file says of them, before it is written."""

    path: Any  # of the file, for messages
    items: list[Item]
    entries: dict[str, Any]  # of the header
    said: _Said
    original: dict[str, str]


class Whole(NamedTuple):
    """A file that is ready to be written."""

    ready: Ready
    metadata: dict[str, str]
    size: _safetensors.Size


def write(
    f: BinaryIO | None,
    path: Any,
    leaves: Iterable[tuple[str, Any]],
    original: dict[str, str],
    *,
    reserve: int = 0,
) -> int:
    """Write named leaves, coded ones and others, one at a time; or only measure the file, where there is none.

    Args:
      f: the file, open for reading and writing; None to write nothing.
      path: of the file, for messages.
      leaves: (name, leaf); of leaves in blocks, those that this process owns are written.
      original: the metadata of the checkpoint that was compressed.
      reserve: bytes to leave for the header.

    Returns:
      The bytes of the file.
    """
    said = _Said({}, {}, [])
    tensors = (_tensor(item, said) for item in packed(_items(path, leaves)))

    def metadata() -> dict[str, str]:
        return _metadata_of(said, original, "")

    if f is None:
        entries = _safetensors.entries_of(tensors)
        return _safetensors.size_of(path, metadata(), entries, reserve=reserve).nbytes
    return _safetensors.write_to(f, path, tensors, metadata, reserve=reserve)


def ready(path: Any, leaves: Iterable[tuple[str, Any]], original: dict[str, str]) -> Ready:
    """Find out what a file will say of leaves. All are held in memory; arguments as for ``write``."""
    said, items = _Said({}, {}, []), list(packed(_items(path, leaves)))
    entries = _safetensors.entries_of(_tensor(item, said) for item in items)
    return Ready(path, items, entries, said, original)


def whole(r: Ready, save: str = "") -> Whole:
    """All that a file will say; ``save`` is the name of the save, for checkpoints of several files."""
    metadata = _metadata_of(r.said, r.original, save)
    return Whole(r, metadata, _safetensors.size_of(r.path, metadata, r.entries))


def write_whole(f: BinaryIO, w: Whole) -> int:
    """Write a file, open for reading and writing, from its first byte to its last; its bytes."""
    tensors = (_tensor(item, w.ready.said) for item in w.ready.items)
    return _safetensors.write_to(f, w.ready.path, tensors, lambda: w.metadata, reserve=w.size.header)


def _metadata_of(said: _Said, original: dict[str, str], save: str) -> dict[str, str]:
    return {_body.KEY: _metadata.dump(said.stated, said.stack, original, save)}


def _items(path: Any, leaves: Iterable[tuple[str, Any]]) -> Iterator[Item]:
    """The tensors of leaves, their names checked."""
    names: set[str] = set()
    for name, leaf in leaves:
        if name == METADATA:
            raise ValueError(f"a tensor cannot have the name {name!r}, which safetensors keeps for itself")
        if name in names:
            raise ValueError(f"two tensors of the name {name!r}")
        if not name.isascii():
            _check_text(path, name)
        names.add(name)
        if isinstance(leaf, Blocks):
            owners = owners_of(leaf)
            for start, block in zip(leaf.starts, leaf.blocks, strict=True):
                if owners[start] == jax.process_index():
                    yield Item(block_name(name, start), block, (name, start, leaf.shape))
        else:
            yield Item(name, leaf)


def _tensor(item: Item, said: _Said) -> Tensor:
    """The tensor of an item. What the metadata says of it is known when its pieces have been taken."""
    name, x, block, leaves = item
    if not isinstance(x, Coded):
        plain = tensor_of(name, x if isinstance(x, Opaque) else np.asarray(x))
        if name not in said.stated:
            (data,) = plain.pieces
            piece = Piece(len(data), zlib.crc32(data))
            said.stated[name] = _metadata.describe(
                plain.dtype, plain.shape, None, [], [piece], [], block, leaves
            )
        return plain
    numbers = []
    for table in np.asarray(x.tables):
        numbers.append(said.tables.setdefault(table.tobytes(), len(said.tables)))
        if numbers[-1] == len(said.stack):
            said.stack.append(table)
    dtype = dtype_name(name, np.dtype(jnp.dtype(x.meta.dtype)))

    def data() -> Iterator[bytes]:  # one chunk at a time
        sections, chunks = _sections.sections_of(x)
        every = itertools.chain((data for _, data in sections), chunks)
        if name in said.stated:
            yield from every
            return
        pieces = []
        for piece in every:
            pieces.append(Piece(len(piece), zlib.crc32(piece)))
            yield piece
        before = [(n, piece) for (n, _), piece in zip(sections, pieces, strict=False)]
        said.stated[name] = _metadata.describe(
            dtype, x.meta.shape, x.meta, before, pieces[len(before) :], numbers, block, leaves
        )

    return Tensor(name, "U8", (x.stream_bytes,), data())


def _check_text(path: Any, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: a name that is not valid text: {name!r:.200}") from None


def check_arrays(leaves: Iterable[tuple[str, Any]]) -> None:
    """Raise TypeError naming the first leaf that a file cannot hold."""
    for name, x in leaves:
        if not is_array(x):
            what = f"an array of dtype {x.dtype}" if hasattr(x, "dtype") else f"{x!r:.60} ({type(x).__name__})"
            raise TypeError(
                f"leaf {name!r}: a file holds arrays and numbers, got {what}: save the tree without it (of an "
                "Equinox module, eqx.filter(module, eqx.is_array); of an nnx state, "
                "nnx.state(module, nnx.Param); of PRNG keys, jax.random.key_data)"
            )
        if not isinstance(x, Coded):
            dtype_name(name, np.dtype(x.dtype) if hasattr(x, "dtype") else np.asarray(x).dtype)


def block_name(name: str, start: tuple[int, ...]) -> str:
    """The name of the tensor of a block."""
    return f"{name}@{','.join(map(str, start))}"
