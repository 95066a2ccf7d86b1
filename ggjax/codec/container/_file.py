"""Trees to compressed files and back: files that any safetensors reader opens.

A tensor that is coded stands under its own name as U8 bytes; the others stand there as they are. FORMAT.md
describes the bytes.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ggjax._internal import trees
from ggjax.codec._compressed import Compressed, is_array, is_coded
from ggjax.codec._shards import in_blocks
from ggjax.codec.container import _kept, _modules, _placed, _save, _write
from ggjax.codec.container._body import KEY
from ggjax.codec.container._dtypes import DTYPES, has_arrays, nbytes_of
from ggjax.codec.container._info import FileInfo, info_of
from ggjax.codec.container._kept import Form
from ggjax.codec.container._nested import nested
from ggjax.codec.container._sources import Checkpoint, Source, load, opened
from ggjax.codec.quantize import _rf8

Progress = Callable[[str, int], None]
"""Told of every tensor, when it is done: its name and its bytes (uncompressed)."""


def silent(name: str, nbytes: int) -> None:
    """The ``Progress`` that says nothing."""
    del name, nbytes


def save_file(
    params: Any,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> int:
    """Write a compressed checkpoint, replacing what is at the path in one step.

    With several processes (``jax.distributed``) all of them must call this. Each writes the shards that it
    owns to a file of its own beside the path, ``model-1f2e3d4c5b6a-00001-of-00002.ggjax.safetensors`` and so
    on, whose name has a checksum of what is saved. When all are done, the first process writes the index of
    them, ``model.ggjax.safetensors.index.json``, which ``load_file`` takes, and removes the files of older
    saves to this path. So an older checkpoint is replaced in one step here too, whether one process saved it or
    several; likewise, one process replaces what several have saved.

    Args:
      params: a tree of arrays, or what ``compress`` made of one. An ``nnx.Module`` is saved by its state: tied
        weights once, PRNG keys not at all.
      path: the file; ``.ggjax.safetensors`` is the usual end of its name.
      metadata: texts to be kept with the weights (a licence, say). ``inspect_file`` gives them as ``original``,
        and a plain file that ``decompress_file`` makes of this one has them as its ``__metadata__``.
      options: those of ``compress``, for a tree that is not compressed yet.

    Returns:
      The bytes of the file, or of the file of this process.

    Raises:
      ValueError: as ``compress``; options with a tree that is compressed already; two leaves of one name, a
        name that safetensors keeps for itself, or a single leaf with the key ``(root)``; a path that ends like
        that of an index.
      TypeError: a leaf that is neither an array nor a number, or of a dtype that safetensors does not have; the
        message names it; metadata that does not map strings to strings.
      OSError: the file cannot be written. The old file, if any, is then as it was.

    >>> import tempfile, os, jax.numpy as jnp
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ggjax.safetensors")
    >>> nbytes = save_file({"dense": {"kernel": jnp.zeros((64, 64))}}, path, step=2**-8)
    >>> load_file(path)["dense"]["kernel"].shape
    (64, 64)
    """
    texts, path, params = _texts(metadata or {}), Path(path), _modules.state_of(params)
    if path.suffix == ".json":
        raise ValueError(f"{path}: an index is written beside the files of several processes: name a file")
    if isinstance(params, Compressed):
        if options:
            raise ValueError(f"the tree is compressed already; {', '.join(options)} cannot be changed")
        compressed = params
        _write.check_arrays(compressed.leaves())
    else:
        _write.check_arrays(Compressed(params).leaves())
        from ggjax.codec._compress import compress  # with calibration, which reading needs nothing of

        compressed = compress(params, **options)
    leaves = [(name, in_blocks(x)) for name, x in compressed.leaves()]
    structure = jax.tree.structure(compressed.tree, is_leaf=is_coded)
    if [name for name, _ in leaves] == [trees.ROOT] and not jax.tree_util.treedef_is_leaf(structure):
        raise ValueError(f"the key {trees.ROOT!r} names a tree that is a single array: give this leaf another")
    save = _save.save_together if jax.process_count() > 1 else _save.save_alone
    return save(path, leaves, texts)


def _texts(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata of the caller, checked."""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata maps strings to strings, got {key!r:.100}: {value!r:.100}")
        try:
            (key + value).encode()
        except UnicodeEncodeError:
            raise ValueError(f"metadata that is not valid text: {key!r:.100}: {value!r:.100}") from None
    if KEY in metadata:
        raise ValueError(f"metadata cannot have the key {KEY!r}, which the format keeps for itself")
    return dict(metadata)


def load_file(
    path: str | os.PathLike[str],
    like: Any = None,
    sharding: Any = None,
    *,
    mask: Callable[[str], bool] | None = None,
    flat: bool = False,
    form: Form = "floats",
    max_bytes: float | None = None,
) -> Any:
    """Read a compressed checkpoint, tensor by tensor.

    Args:
      path: a file, the ``.safetensors.index.json`` of a checkpoint in several files, or the folder of either.
      like: a tree of arrays or of ``jax.ShapeDtypeStruct``: the result has its structure, and every leaf
        must be in the file with the same shape and dtype. Of an ``nnx.Module``, abstract or not, a new module
        is made. None gives nested dicts, split at the slashes of the names: where keys have slashes
        themselves, as Haiku's do, or are whole numbers, as those of an ``nnx.List``, take ``like`` or ``flat``.
      sharding: where to put the leaves: one ``jax.sharding.Sharding`` (or device) for all, or a tree of them
        like ``like``. None takes those of the structs of ``like``, where they have one. Of a large leaf that is
        to be sharded, a process reads and decodes only what its own devices get, and shard by shard where the
        shards lie apart in the file (as those by rows usually do; leaves of ``loss_rise=`` are decoded whole).
      mask: only the leaves whose name it is true of; not with ``like``.
      flat: give a dict of the leaves by their full names, instead of nested ones; not with ``like``.
      form: "floats"; or for ``codec.dot``, without decoding the weights: "resident", levels and RF8 codes as
        ``codec.resident`` has them; "coded", as they are in the file, to be decoded where they are used. Not
        with ``sharding``.
      max_bytes: of all arrays that are read, since a small file can hold a great many equal weights. While the
        largest of them is decoded it takes about as much again, of a dtype of 8 bits ten times as much. None
        for the usual limit: 256 MiB, and 2048 times the bytes of the file. ``math.inf`` for no limit.

    Returns:
      The tree, of ``jax.Array``. Where JAX runs without ``jax_enable_x64``, a leaf of a 64-bit dtype comes in
      the one of 32 bits if that can hold its values (integers exactly, float64 rounded), and as a NumPy array
      in its own dtype on the host otherwise. A tensor that no array can hold, of a dtype of 4 or 6 bits,
      comes as the vector of its bytes, uint8. Leaves of ``like`` that are neither arrays nor numbers
      (functions, say) come back as they are.

    Raises:
      FormatError: the file is damaged or not of this format, and the message names the place; or it holds more
        than ``max_bytes``, and the message says how much.
      ValueError: it does not fit ``like``; the message names the leaf.
      ImportError: the file was coded by "zstd", and the library is not there.
      OSError: the file cannot be read.

    >>> import tempfile, os, jax.numpy as jnp
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ggjax.safetensors")
    >>> _ = save_file({"a": [jnp.ones(3), jnp.zeros(2)]}, path, lossless=True)
    >>> load_file(path, like={"a": [jnp.ones(3), jnp.zeros(2)]})["a"][0].tolist()
    [1.0, 1.0, 1.0]
    """
    if form not in ("floats", "resident", "coded"):
        raise ValueError(f'form must be "floats", "resident" or "coded", got {form!r}')
    if form != "floats" and sharding is not None:
        raise ValueError(f"form={form!r} and sharding cannot be given together: put the arrays in place later")
    with opened(path) as checkpoint:
        leaves = checkpoint.leaves
        if like is not None:
            if mask is not None:
                raise ValueError("mask and like cannot be given together: leave the leaf out of like")
            if flat:
                raise ValueError("flat and like cannot be given together: the tree is that of like")
            tree, rebuilt = _modules.opened(like)
            return rebuilt(_load_like(path, checkpoint, tree, sharding, max_bytes, form))
        if sharding is not None and not isinstance(sharding, (jax.sharding.Sharding, jax.Device)):
            raise TypeError(f"without like, sharding must be one for all leaves, got {type(sharding).__name__}")
        names = [n for n in leaves if mask is None or mask(n)]
        arrays = _load(checkpoint, dict.fromkeys(names, sharding), max_bytes, form)
        return arrays if flat else nested(path, arrays)


def _load(
    checkpoint: Checkpoint, at: dict[str, Any], max_bytes: float | None, form: Form, shapes: Any = None
) -> Any:
    if form == "floats":
        return _placed.load_onto(checkpoint, at, max_bytes, shapes)
    return _kept.load(checkpoint, at, max_bytes, form)


def _load_like(
    path: Any, checkpoint: Checkpoint, like: Any, sharding: Any, max_bytes: float | None, form: Form
) -> Any:
    leaves = checkpoint.leaves
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [trees.leaf_name(p) for p, _ in paths]
    wanted = [x for _, x in paths]
    exponents = {
        trees.leaf_name((*p, jax.tree_util.GetAttrKey("exponents")))
        for p, x in jax.tree_util.tree_leaves_with_path(like, is_leaf=_rf8.is_encoded)
        if _rf8.is_encoded(x)
    }
    pairs = list(zip(names, wanted, strict=True))
    held = {n: x if hasattr(x, "dtype") else np.asarray(x) for n, x in pairs if is_array(x)}
    for name, x in held.items():
        if name not in leaves:
            raise ValueError(f"leaf {name!r} of like is not in {path}, which has {len(leaves)} leaves")
        dtype, full = _held_as(leaves[name][0])
        shape = tuple(np.shape(x))
        one_exponent = name in exponents and _rf8.is_one_exponent(shape, full)
        if shape != full and not one_exponent:
            raise ValueError(f"leaf {name!r} has shape {shape} in like, {full} in {path}")
        if x.dtype != dtype:
            raise ValueError(f"leaf {name!r} has dtype {x.dtype} in like, {dtype} in {path}")
    if sharding is None:
        places = [getattr(held.get(n), "sharding", None) for n in names]
    elif isinstance(sharding, (jax.sharding.Sharding, jax.Device)):
        places = [sharding] * len(names)
    else:
        places = treedef.flatten_up_to(sharding)
    at = {n: place for n, place in zip(names, places, strict=True) if n in held}
    loaded = _load(checkpoint, at, max_bytes, form, {n: np.shape(x) for n, x in held.items()})
    return treedef.unflatten([loaded.get(n, x) for n, x in pairs])


def _held_as(source: Source) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and the shape of the array that a leaf comes as."""
    if has_arrays(source.dtype, source.full):
        return np.dtype(DTYPES[source.dtype]), source.full
    return np.dtype(np.uint8), (nbytes_of(source.dtype, source.full),)


def inspect_file(path: str | os.PathLike[str]) -> FileInfo:
    """What a compressed file (or, by an index, several) holds, from its header alone.

    Raises:
      FormatError: it is not of this format; OSError: it cannot be read.

    >>> import tempfile, os, jax.numpy as jnp
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ggjax.safetensors")
    >>> _ = save_file({"w": jnp.zeros((64, 64))}, path, step=0.5)
    >>> [(t.name, t.kind, t.step) for t in inspect_file(path).tensors]
    [('w', 'uniform', 0.5)]
    """
    with opened(path, partial=True) as checkpoint:
        return info_of(checkpoint)


def verify_file(
    path: str | os.PathLike[str], *, progress: Progress = silent, max_bytes: float | None = None
) -> FileInfo:
    """Read all of a compressed file, check every CRC-32 and decode every tensor.

    Args:
      path: the file, or the index of several.
      progress: called for every tensor.
      max_bytes: of all arrays of the file; None for the usual limit, as ``load_file`` has it.

    Returns:
      What ``inspect_file`` gives.

    Raises:
      FormatError: it is damaged, and the message names the tensor and the chunk; or it is too large.
      OSError: it cannot be read.

    >>> import tempfile, os, jax.numpy as jnp
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ggjax.safetensors")
    >>> nbytes = save_file({"w": jnp.zeros((64, 64))}, path, step=0.5)
    >>> verify_file(path).nbytes == nbytes
    True
    """
    with opened(path) as checkpoint:
        for name, array in load(checkpoint, max_bytes=max_bytes):
            progress(name, array.nbytes)
        return info_of(checkpoint)
