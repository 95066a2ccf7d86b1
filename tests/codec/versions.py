"""Versions of a small checkpoint, as one process saves them or two, and which of them is in a folder."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ggjax import codec
from ggjax.codec._compressed import Blocks
from tests.codec import plain_decoder

VERSIONS = 6
SHAPE = (64, 64)
TENSORS = ("a", "b", "c")
INDEX = "model.ggjax.safetensors.index.json"


def arrays_of(version: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(version)
    return {n: rng.integers(-20, 20, SHAPE).astype(np.float32) for n in TENSORS}


def key_of(arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.asarray(arrays[n]).tobytes() for n in TENSORS)).hexdigest()


@functools.cache
def _keys() -> dict[str, int]:
    return {key_of(arrays_of(v)): v for v in range(VERSIONS)}


@functools.cache
def saved(version: int, processes: int) -> list[tuple[str, Any]]:
    """The leaves of a version as they are handed on to be written; for two processes, two of them in blocks."""
    arrays = arrays_of(version)
    on_host = {n: jax.tree.map(np.asarray, x) for n, x in codec.compress(arrays, step=1.0).leaves()}
    if processes == 1:
        return list(on_host.items())
    half = SHAPE[0] // 2
    leaves: list[tuple[str, Any]] = [("a", on_host["a"])]
    for n in TENSORS[1:]:
        parts = codec.compress({str(i): arrays[n][i : i + half] for i in (0, half)}, step=1.0)
        blocks = tuple(jax.tree.map(np.asarray, x) for _, x in parts.leaves())
        leaves.append((n, Blocks(blocks, ((0, 0), (half, 0)), SHAPE, np.dtype(np.float32), None)))
    return leaves


def versions_at(path: Path) -> dict[str, int]:
    """The versions that load, bit for bit, from the file and from the index, where these are."""
    found = {}
    for p in (path, path.with_name(INDEX)):
        if p.exists():
            arrays, again = plain_decoder.decode_file(p), codec.load_file(p)
            assert set(arrays) == set(again) == set(TENSORS), (p, set(arrays))
            assert key_of(arrays) == key_of(again)
            found[p.name] = _keys()[key_of(arrays)]
    return found
