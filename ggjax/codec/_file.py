"""Compressed checkpoints: files that any safetensors reader opens, and that this module reads back.

A tensor that is coded stands under its own name as U8 bytes; the others stand there as they are. FORMAT.md
describes the bytes.
"""

import itertools
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import _tree
from ggjax.codec import _compress, _decode, _format, _safetensors, _steps
from ggjax.codec._coded import Coded
from ggjax.codec._compress import Blocks, Compressed, Options
from ggjax.codec._format import Piece, Stored
from ggjax.codec._safetensors import FormatError, Tensor

GROUP = 1 << 22
"""Tensors are read and coded together up to so many weights."""

SUFFIX = ".ggjax.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"


class TensorInfo(NamedTuple):
    """A tensor of a file, without its data."""

    name: str
    dtype: str  # safetensors name of the weights' dtype
    shape: tuple[int, ...]
    kind: str  # "uniform", "rf8", "lossless", or "raw" for one that is kept as it is
    step: float | None
    parts: int
    nbytes: int  # of its data in the file
    bits: float  # per parameter

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class FileInfo(NamedTuple):
    """What a compressed file holds."""

    version: int
    tensors: tuple[TensorInfo, ...]
    nbytes: int  # of the file
    tables: int
    original: dict[str, str]  # __metadata__ of the checkpoint that was compressed


Progress = Callable[[str, int], None]
"""Told of every tensor, when it is done: its name and its bytes (uncompressed)."""


def _silent(name: str, nbytes: int) -> None:
    del name, nbytes


def save_file(params: Any, path: str | os.PathLike[str], **options: Any) -> int:
    """Write a compressed checkpoint, replacing what is at the path in one step.

    With several processes (``jax.distributed``) all of them must call this. Each writes the shards that it
    owns to a file of its own beside the path, ``model-00001-of-00002.ggjax.safetensors`` and so on, and the
    first one writes the index of them, ``model.ggjax.safetensors.index.json``, when all are done:
    ``load_file`` takes the index.

    Args:
      params: a tree of arrays, or what ``compress`` made of one.
      path: the file; ``.ggjax.safetensors`` is the usual end of its name.
      options: those of ``compress``, for a tree that is not compressed yet.

    Returns:
      The bytes of the file, or of the file of this process.

    Raises:
      ValueError, TypeError: as ``compress``; options with a tree that is compressed already; two leaves of
        one name.
      OSError: the file cannot be written. The old file, if any, is then as it was.

    >>> import tempfile, os, jax.numpy as jnp
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ggjax.safetensors")
    >>> nbytes = save_file({"dense": {"kernel": jnp.zeros((64, 64))}}, path, step=2**-8)
    >>> load_file(path)["dense"]["kernel"].shape
    (64, 64)
    """
    if isinstance(params, Compressed):
        if options:
            raise ValueError(f"the tree is compressed already; {', '.join(options)} cannot be changed")
        compressed = params
    else:
        compressed = _compress.compress(params, **options)
    leaves = [(name, _in_blocks(x)) for name, x in compressed.leaves()]
    if jax.process_count() > 1:
        return _save_by_process(Path(path), leaves)
    return _write(path, leaves, {})


def _in_blocks(x: Any) -> Any:
    """An array that is not coded, in blocks where its shards lie in several processes."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    shards = _compress.shards(x)
    starts, blocks = tuple(s for s, _ in shards), tuple(np.asarray(b) for _, b in shards)
    return Blocks(blocks, starts, x.shape, np.dtype(x.dtype), x.sharding)


def _save_by_process(path: Path, leaves: list[tuple[str, Any]]) -> int:
    """Write the blocks of this process, and the index of all in the first one."""
    from jax.experimental.multihost_utils import sync_global_devices

    number, first = jax.process_count(), jax.process_index() == 0
    stem = path.name.removesuffix(SUFFIX).removesuffix(".safetensors")
    files = [f"{stem}-{i + 1:05d}-of-{number:05d}{SUFFIX}" for i in range(number)]
    weight_map = {}
    for name, x in leaves:
        if isinstance(x, Blocks) and x.sharding is not None:
            for start, process in _owners(x).items():
                weight_map[_block_name(name, start)] = files[process]
        else:
            weight_map[name] = files[0]
    mine = [(n, x) for n, x in leaves if first or isinstance(x, Blocks)]
    nbytes = _write(path.with_name(files[jax.process_index()]), mine, {})
    sync_global_devices("ggjax: all files are written")
    if first:
        write_index(path.with_name(f"{stem}.ggjax{INDEX_SUFFIX}"), {"weight_map": weight_map})
    sync_global_devices("ggjax: the index is written")
    return nbytes


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Write the index of a checkpoint in several files, in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(
    path: Any, leaves: Iterable[tuple[str, Any]], original: dict[str, str], overwrite: bool = True
) -> int:
    """Write named leaves, coded ones and others; or only measure the file, where the path is None."""
    stated: dict[str, dict[str, Any]] = {}
    tables: dict[bytes, int] = {}
    stack: list[np.ndarray] = []

    def tensors() -> Iterator[Tensor]:
        for name, leaf in leaves:
            if isinstance(leaf, Blocks):
                owners = _owners(leaf)
                for start, block in zip(leaf.starts, leaf.blocks, strict=True):
                    if owners.get(start, jax.process_index()) == jax.process_index():
                        yield tensor(_block_name(name, start), block, (name, start, leaf.shape))
            else:
                yield tensor(name, leaf, None)

    def tensor(name: str, x: Any, block: Any) -> Tensor:
        if not isinstance(x, Coded):
            array = np.asarray(x)
            dtype, data = _dtype_name(name, array.dtype), _safetensors.as_bytes(array)
            piece = Piece(len(data), zlib.crc32(data))
            stated[name] = _format.describe(dtype, array.shape, None, Piece(0, 0), [piece], [], block)
            return Tensor(name, dtype, array.shape, [data])
        numbers = []
        for table in np.asarray(x.tables):
            numbers.append(tables.setdefault(table.tobytes(), len(tables)))
            if numbers[-1] == len(stack):
                stack.append(table)
        dtype = _dtype_name(name, np.dtype(jnp.dtype(x.meta.dtype)))

        def data() -> Iterator[bytes]:  # one chunk at a time
            side, chunks = _format.chunk_bytes(x)
            pieces = []
            for piece in itertools.chain([side], chunks):
                pieces.append(Piece(len(piece), zlib.crc32(piece)))
                yield piece
            stated[name] = _format.describe(dtype, x.meta.shape, x.meta, pieces[0], pieces[1:], numbers, block)

        return Tensor(name, "U8", (x.stream_bytes,), data())

    def metadata() -> dict[str, str]:
        return {_format.KEY: _format.dump(stated, stack, original)}

    if path is None:
        return _safetensors.measure(tensors(), metadata)
    return _safetensors.write(path, tensors(), metadata, overwrite=overwrite)


def _dtype_name(name: str, dtype: np.dtype) -> str:
    if dtype not in _safetensors.NAMES:
        raise TypeError(f"leaf {name!r}: safetensors has no dtype for {dtype}")
    return _safetensors.NAMES[dtype]


def _block_name(name: str, start: tuple[int, ...]) -> str:
    return f"{name}@{','.join(map(str, start))}"


def _owners(x: Blocks) -> dict[tuple[int, ...], int]:
    """For the start of every block of a sharded array, the process that writes it: that of its first device."""
    first: dict[tuple[int, ...], int] = {}
    indices = x.sharding.devices_indices_map(x.shape) if x.sharding is not None else {}
    for device, index in indices.items():
        start = tuple(i.start or 0 for i in index)
        first[start] = min(first.get(start, device.process_index), device.process_index)
    return first


def load_file(
    path: str | os.PathLike[str],
    like: Any = None,
    sharding: Any = None,
    *,
    mask: Callable[[str], bool] | None = None,
) -> Any:
    """Read a compressed checkpoint, tensor by tensor.

    Args:
      path: a file, or the ``.safetensors.index.json`` of a checkpoint in several files.
      like: a tree of arrays or of ``jax.ShapeDtypeStruct``: the result has its structure, and every leaf
        must be in the file with the same shape and dtype. None gives nested dicts, split at the slashes of
        the names.
      sharding: where to put the leaves: one ``jax.sharding.Sharding`` (or device) for all, or a tree of them
        like ``like``. None takes those of the structs of ``like``, where they have one.
      mask: only the leaves whose name it is true of; not with ``like``.

    Returns:
      The tree, of ``jax.Array`` (64-bit leaves are 32-bit ones unless JAX runs with ``jax_enable_x64``).

    Raises:
      FormatError: the file is damaged or not of this format; the message names the place.
      ValueError: it does not fit ``like``; the message names the leaf.
      OSError: the file cannot be read.
    """
    leaves = leaves_of(path)
    if like is None:
        if sharding is not None and not isinstance(sharding, (jax.sharding.Sharding, jax.Device)):
            raise TypeError(f"without like, sharding must be one for all leaves, got {type(sharding).__name__}")
        names = [n for n in leaves if mask is None or mask(n)]
        return _nested(path, {n: _put(x, sharding) for n, x in load_leaves(leaves, names)})
    if mask is not None:
        raise ValueError("mask and like cannot be given together: leave the leaf out of like")
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [_tree.leaf_name(p) for p, _ in paths]
    wanted = dict(zip(names, (x for _, x in paths), strict=True))
    for name, x in wanted.items():
        if name not in leaves:
            raise ValueError(f"leaf {name!r} of like is not in {path}, which has {len(leaves)} leaves")
        dtype, shape = _dtype_and_shape(leaves[name])
        if tuple(np.shape(x)) != shape:
            raise ValueError(f"leaf {name!r} has shape {tuple(np.shape(x))} in like, {shape} in {path}")
        if np.dtype(x.dtype) != dtype:
            raise ValueError(f"leaf {name!r} has dtype {x.dtype} in like, {dtype} in {path}")
    if sharding is None:
        places = [getattr(x, "sharding", None) for x in wanted.values()]
    elif isinstance(sharding, (jax.sharding.Sharding, jax.Device)):
        places = [sharding] * len(names)
    else:
        places = treedef.flatten_up_to(sharding)
    at = dict(zip(names, places, strict=True))
    loaded = {n: _put(x, at[n]) for n, x in load_leaves(leaves, names)}
    return treedef.unflatten([loaded[n] for n in names])


def _put(x: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jax.device_put(x)
    if isinstance(sharding, jax.sharding.Sharding) and not sharding.is_fully_addressable:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    return jax.device_put(x, sharding)


def _nested(path: Any, flat: dict[str, Any]) -> Any:
    if list(flat) == ["(root)"]:
        return flat["(root)"]
    out: dict[str, Any] = {}
    for name, x in flat.items():
        *parents, last = name.split("/")
        node: Any = out
        for p in parents:
            node = node.setdefault(p, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: leaf {name!r} lies under another leaf: load it with like")
        if last in node:
            raise ValueError(f"{path}: leaf {name!r} lies above another leaf: load it with like")
        node[last] = x
    return out


class _Source(NamedTuple):
    """Where the bytes of a block are."""

    path: Path
    entry: _safetensors.Entry
    stored: Stored | None  # None: a tensor of a plain file
    tables: list[np.ndarray]
    name: str  # of the tensor


def leaves_of(path: str | os.PathLike[str], plain: bool = False) -> dict[str, list[_Source]]:
    """The blocks of every leaf of a compressed checkpoint; of a plain one too, if ``plain``.

    (A damaged file may look like a plain one: that is why this has to be said.)
    """
    leaves: dict[str, list[_Source]] = {}
    for file in files_of(path):
        header = _safetensors.read_header(file)
        meta = None if plain and not _format.is_compressed(header) else _format.load(file, header)
        for name, entry in header.entries.items():
            stored = meta.tensors[name] if meta else None
            source = _Source(file, entry, stored, meta.tables if meta else [], name)
            leaves.setdefault(stored.leaf if stored else name, []).append(source)
    for name, sources in leaves.items():
        _check_cover(path, name, sources)
    return leaves


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The safetensors files of a checkpoint: of an index those that it names, else the file itself.

    Raises:
      FormatError: the index is not one, or names a file outside its folder or one that is not there.
    """
    path = Path(path)
    if not path.name.endswith(".json"):
        return [path]
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise FormatError(f"{path}: not the index of a checkpoint: {e}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FormatError(f"{path}: names the file {name!r:.100}, expected one of the same folder")
        if not (path.parent / name).is_file():
            raise FormatError(f"{path}: names the file {name!r}, which is not there")
    return [path.parent / name for name in names]


def _check_cover(path: Any, name: str, sources: list[_Source]) -> None:
    """The blocks of a leaf fill it and do not overlap."""
    blocks = [s.stored for s in sources if s.stored is not None and s.stored.start is not None]
    if not blocks:
        if len(sources) > 1:
            raise FormatError(f"{path}: leaf {name!r} stands in several files")
        return
    first = blocks[0]
    same = len(blocks) == len(sources) and all((b.full, b.dtype) == (first.full, first.dtype) for b in blocks)
    filled = sum(math.prod(b.shape) for b in blocks) == math.prod(first.full)
    if not same or not filled or _overlap(blocks):
        raise FormatError(f"{path}: the {len(blocks)} blocks of leaf {name!r} do not fill it")


def _overlap(blocks: list[Stored]) -> bool:
    """Whether any two blocks have an element in common."""
    starts = np.array([b.start for b in blocks], np.int64).reshape(len(blocks), -1)
    ends = starts + np.array([b.shape for b in blocks], np.int64).reshape(starts.shape)
    for i in range(len(blocks) - 1):
        apart = (starts[i + 1 :] >= ends[i]) | (ends[i + 1 :] <= starts[i])
        if not apart.any(1).all():
            return True
    return False


def _dtype_and_shape(sources: list[_Source]) -> tuple[np.dtype, tuple[int, ...]]:
    s = sources[0]
    dtype, shape = (s.stored.dtype, s.stored.full) if s.stored else (s.entry.dtype, s.entry.shape)
    return np.dtype(_safetensors.DTYPES[dtype]), shape


def load_leaves(leaves: Mapping[str, list[_Source]], names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of leaves, a few decoded at a time."""
    sizes = [(n, sum(s.entry.nbytes for s in leaves[n])) for n in names]
    for group in _compress.index_groups(sizes, GROUP):
        sources = [s for n in group for s in leaves[n]]
        arrays = iter(_arrays(sources))
        for n in group:
            blocks = [(s, next(arrays)) for s in leaves[n]]
            dtype, shape = _dtype_and_shape(leaves[n])
            if len(blocks) == 1:
                yield n, blocks[0][1]
                continue
            out = np.empty(shape, dtype)
            for s, block in blocks:
                assert s.stored is not None and s.stored.start is not None
                out[tuple(slice(i, i + k) for i, k in zip(s.stored.start, block.shape, strict=True))] = block
            yield n, out


def _arrays(sources: list[_Source]) -> list[np.ndarray]:
    """The arrays of blocks, decoded together."""
    read: list[Any] = [_read(s) for s in sources]
    coded = [i for i, x in enumerate(read) if isinstance(x, Coded)]
    wheres = [f"{sources[i].path}: tensor {sources[i].name!r}" for i in coded]
    try:
        arrays = _decode.arrays([read[i] for i in coded], wheres)
    except _decode.Damaged as e:
        raise FormatError(str(e)) from None
    for i, array in zip(coded, arrays, strict=True):
        c = read[i]
        if c.meta.kind == "rf8":
            array = np.asarray(_compress.finished(c, array, False)).astype(jnp.dtype(c.meta.dtype))
        read[i] = array
    return read


def _read(s: _Source) -> Any:
    """The coded form of a block, or its array where it is kept as it is."""
    data = _safetensors.read_bytes(s.path, s.entry.begin, s.entry.end)
    where = f"{s.path}: tensor {s.name!r}"
    if s.stored is None:
        return _safetensors.as_array(data, s.entry.dtype, s.entry.shape)
    if s.stored.meta is None:
        if _safetensors.crc32(data) != s.stored.chunks[0].crc:
            raise FormatError(f"{where}: its CRC-32 does not fit")
        return _safetensors.as_array(data, s.stored.dtype, s.stored.shape)
    return _format.parse(where, s.stored, data, s.tables)


def inspect_file(path: str | os.PathLike[str]) -> FileInfo:
    """What a compressed file (or, by an index, several) holds, from its header alone.

    Raises:
      FormatError: it is not of this format; OSError: it cannot be read.
    """
    tensors: list[TensorInfo] = []
    nbytes = tables = 0
    original: dict[str, str] = {}
    for file in files_of(path):
        header = _safetensors.read_header(file)
        meta = _format.load(file, header)
        tensors.extend(_info(name, header.entries[name], s) for name, s in meta.tensors.items())
        nbytes, tables = nbytes + os.path.getsize(file), tables + len(meta.tables)
        original.update(meta.original)
    return FileInfo(_format.VERSION, tuple(tensors), nbytes, tables, original)


def _info(name: str, entry: _safetensors.Entry, s: Stored) -> TensorInfo:
    meta = s.meta
    size = max(math.prod(s.shape), 1)
    kind, step = ("raw", None) if meta is None else (meta.kind, meta.step if meta.kind == "uniform" else None)
    parts = len(meta.parts) if meta else 0
    return TensorInfo(name, s.dtype, s.shape, kind, step, parts, entry.nbytes, 8 * entry.nbytes / size)


def verify_file(path: str | os.PathLike[str], *, progress: Progress = _silent) -> FileInfo:
    """Read all of a compressed file, check every CRC-32 and decode every tensor.

    Args:
      path: the file, or the index of several.
      progress: called for every tensor.

    Returns:
      What ``inspect_file`` gives.

    Raises:
      FormatError: it is damaged; the message names the tensor and the chunk.
      OSError: it cannot be read.
    """
    info = inspect_file(path)
    leaves = leaves_of(path)
    for name, array in load_leaves(leaves, leaves):
        progress(name, array.nbytes)
    return info


# From checkpoint to checkpoint, without holding one.


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    *,
    select: Callable[[str], bool] = lambda name: True,
    overwrite: bool = True,
    progress: Progress = _silent,
    **options: Any,
) -> int:
    """Compress a safetensors file of any model, a few tensors at a time.

    Args:
      source: a safetensors file.
      target: the file to write; None to write none, and learn what it would take.
      select: whether to code the tensor of this name; the others are kept as they are.
      overwrite: replace the target if it is there.
      progress: called for every tensor.
      options: those of ``compress`` but mask.

    Returns:
      The bytes of the target.

    Raises:
      ValueError: as ``compress``, or the source is compressed already.
      FormatError: the source is not a safetensors file.
      FileExistsError: the target is there, and not to be replaced.
      OSError: one of them cannot be read or written.
    """
    given = parse_options(**options)
    header = _safetensors.read_header(source)
    if _format.is_compressed(header):
        raise ValueError(f"{source} is compressed already: decompress it first")
    path = Path(source)

    def leaves() -> Iterator[tuple[str, Any]]:
        known: list[np.ndarray] = []
        sizes = [(n, math.prod(e.shape)) for n, e in header.entries.items()]
        for group in _compress.index_groups(sizes, GROUP):
            arrays = {n: _read(_Source(path, header.entries[n], None, [], n)) for n in group}
            nbytes = {n: x.nbytes for n, x in arrays.items()}
            names = [n for n, x in arrays.items() if select(n) and _tree.is_weight(x)]
            coded = _compress.code({n: arrays.pop(n) for n in names}, given, known)
            arrays.update(zip(names, coded, strict=True))
            del coded
            for n in group:
                yield n, arrays.pop(n)
                progress(n, nbytes[n])

    return _write(target, leaves(), header.metadata, overwrite)


def decompress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    progress: Progress = _silent,
) -> int:
    """Write the plain safetensors file of a compressed one, a few tensors at a time.

    Args:
      source: a compressed file, or the index of several, all tensors of which go to one file.
      target: the file to write; it gets the metadata of the checkpoint that was compressed.
      overwrite: replace the target if it is there.
      progress: called for every tensor.

    Returns:
      The bytes of the target.

    Raises:
      FormatError: the source is damaged or not compressed.
      FileExistsError: the target is there, and not to be replaced.
      OSError: one of them cannot be read or written.
    """
    original = inspect_file(source).original
    leaves = leaves_of(source)

    def tensors() -> Iterator[Tensor]:
        for name, array in load_leaves(leaves, leaves):
            dtype = _safetensors.NAMES[array.dtype]
            yield Tensor(name, dtype, array.shape, [_safetensors.as_bytes(array)])
            progress(name, array.nbytes)

    return _safetensors.write(target, tensors(), lambda: original, overwrite=overwrite)


def parse_options(
    *,
    step: float | None = None,
    bits: float | None = None,
    snr_db: float | None = None,
    step_per_std: float | None = None,
    rf8: bool = False,
    lossless: bool = False,
    dead_zone: float = 0.0,
    centroids: bool = False,
    coder: str = "rans",
) -> Options:
    """The checked options of ``compress``."""
    want = _steps.Want(step, bits, snr_db, step_per_std)
    return _compress.options(want, rf8, lossless, dead_zone, centroids, coder)
