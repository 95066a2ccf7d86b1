"""Writing compressed files: coded leaves and others, by this process or by each of several."""

import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax.codec._coded import Coded
from ggjax.codec._compressed import Blocks, is_array
from ggjax.codec._shards import owners_of
from ggjax.codec.container import _body, _metadata, _safetensors, _sections
from ggjax.codec.container._dtypes import Opaque
from ggjax.codec.container._header import METADATA
from ggjax.codec.container._index import INDEX, PLAIN, SUFFIX, write_index
from ggjax.codec.container._metadata import Piece
from ggjax.codec.container._packs import Item, packed
from ggjax.codec.container._safetensors import Tensor, dtype_name, tensor_of

Stated = dict[str, dict[str, Any]]


def write(
    path: str | os.PathLike[str] | None,
    leaves: Iterable[tuple[str, Any]],
    original: dict[str, str],
    *,
    overwrite: bool = True,
    save: Callable[[Stated], str] = lambda stated: "",
) -> int:
    """Write named leaves, coded ones and others; or only measure the file, where the path is None.

    Args:
      path: the file.
      leaves: (name, leaf); of leaves in blocks, those that this process owns are written.
      original: the metadata of the checkpoint that was compressed.
      overwrite: replace the file if it is there.
      save: gives the name of the save, for checkpoints of several files; called when all tensors are written.

    Returns:
      The bytes of the file.
    """
    stated: Stated = {}
    names: set[str] = set()
    tables: dict[bytes, int] = {}
    stack: list[np.ndarray] = []

    def checked() -> Iterator[tuple[str, Any]]:
        for name, leaf in leaves:
            if name == METADATA:
                raise ValueError(f"a tensor cannot have the name {name!r}, which safetensors keeps for itself")
            if name in names:
                raise ValueError(f"two tensors of the name {name!r}")
            if not name.isascii():
                _check_text(path, name)
            names.add(name)
            yield name, leaf

    def tensors() -> Iterator[Tensor]:
        return map(tensor, packed(items()))

    def items() -> Iterator[Item]:
        for name, leaf in checked():
            if isinstance(leaf, Blocks):
                owners = owners_of(leaf)
                for start, block in zip(leaf.starts, leaf.blocks, strict=True):
                    if owners[start] == jax.process_index():
                        yield Item(block_name(name, start), block, (name, start, leaf.shape))
            else:
                yield Item(name, leaf)

    def tensor(item: Item) -> Tensor:
        name, x, block, leaves = item
        if not isinstance(x, Coded):
            plain = tensor_of(name, x if isinstance(x, Opaque) else np.asarray(x))
            (data,) = plain.pieces
            piece = Piece(len(data), zlib.crc32(data))
            stated[name] = _metadata.describe(plain.dtype, plain.shape, None, [], [piece], [], block, leaves)
            return plain
        numbers = []
        for table in np.asarray(x.tables):
            numbers.append(tables.setdefault(table.tobytes(), len(tables)))
            if numbers[-1] == len(stack):
                stack.append(table)
        dtype = dtype_name(name, np.dtype(jnp.dtype(x.meta.dtype)))

        def data() -> Iterator[bytes]:  # one chunk at a time
            sections, chunks = _sections.sections_of(x)
            pieces = []
            for piece in itertools.chain((data for _, data in sections), chunks):
                pieces.append(Piece(len(piece), zlib.crc32(piece)))
                yield piece
            before = [(n, piece) for (n, _), piece in zip(sections, pieces, strict=False)]
            stated[name] = _metadata.describe(
                dtype, x.meta.shape, x.meta, before, pieces[len(before) :], numbers, block, leaves
            )

        return Tensor(name, "U8", (x.stream_bytes,), data())

    def metadata() -> dict[str, str]:
        return {_body.KEY: _metadata.dump(stated, stack, original, save(stated))}

    if path is None:
        return _safetensors.measure(tensors(), metadata)
    return _safetensors.write(path, tensors(), metadata, overwrite=overwrite)


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
                "Equinox module, eqx.filter(module, eqx.is_array); of PRNG keys, jax.random.key_data)"
            )
        if not isinstance(x, Coded):
            dtype_name(name, np.dtype(x.dtype) if hasattr(x, "dtype") else np.asarray(x).dtype)


def block_name(name: str, start: tuple[int, ...]) -> str:
    """The name of the tensor of a block."""
    return f"{name}@{','.join(map(str, start))}"


def write_by_process(path: Path, leaves: list[tuple[str, Any]], metadata: dict[str, str]) -> int:
    """Write the blocks of this process to its file and, in the first process, the index of all files.

    All files bear the name of the save, a checksum of what they hold, so that those of two saves are never
    taken for one checkpoint. If one process fails, all do.
    """
    from jax.experimental.multihost_utils import process_allgather, sync_global_devices

    number, first = jax.process_count(), jax.process_index() == 0
    stem = path.name.removesuffix(SUFFIX).removesuffix(PLAIN)
    files = [f"{stem}-{i + 1:05d}-of-{number:05d}{SUFFIX}" for i in range(number)]
    weight_map = {}
    for name, x in leaves:
        if isinstance(x, Blocks):
            weight_map |= {block_name(name, start): files[process] for start, process in owners_of(x).items()}
    mine = [(n, x) for n, x in leaves if first or isinstance(x, Blocks)]
    agreed = False

    def agree(good: int, crc: int) -> str:
        nonlocal agreed
        agreed = True
        all_of_them = np.asarray(process_allgather(np.array([good, crc], np.uint32))).reshape(-1, 2)
        if not all_of_them[:, 0].all():
            raise RuntimeError(
                f"process {int(np.argmin(all_of_them[:, 0]))} could not write its file of {path}"
            )
        return f"{zlib.crc32(all_of_them.tobytes()):08x}"

    def wrote(stated: Stated) -> str:
        weight_map.update((name, files[0]) for name in stated if name not in weight_map)
        return agree(1, zlib.crc32(json.dumps(stated, sort_keys=True).encode()))

    try:
        nbytes = write(
            path.with_name(files[jax.process_index()]),
            mine,
            metadata,
            save=wrote,
        )
    except BaseException:
        if not agreed:
            with_failure = agree
            try:
                with_failure(0, 0)
            except RuntimeError:
                pass  # the cause is on its way
        raise
    sync_global_devices("ggjax: all files are written")
    if first:
        write_index(path.with_name(f"{stem}.ggjax{INDEX}.json"), weight_map)
    sync_global_devices("ggjax: the index is written")
    return nbytes
