"""Compressed trees as state dicts of ``flax.serialization``, for its ``to_bytes`` and for orbax.

The streams of two arrays of one shape differ in length, and so does what a decoder has to know of them. A state
holds that too, as JSON, in an array of its bytes, since orbax keeps no texts. So the target need only be a tree
with the same names, shapes and dtypes, compressed or not: ``Compressed(params)`` of abstract ones will do.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from flax import serialization

from ggjax._internal import trees
from ggjax.codec._coded import STREAMS, Coded, Meta, Part
from ggjax.codec._compressed import Blocks, Compressed, is_coded
from ggjax.codec._grid import Grid
from ggjax.codec._shards import start_of
from ggjax.codec.quantize._quantizers import QUANTIZERS


def _as_array(what: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(what).encode(), np.uint8)


def _told(x: Any) -> dict[str, Any]:
    """What ``_as_array`` was given; older states have texts."""
    return json.loads(x if isinstance(x, str) else np.asarray(x, np.uint8).tobytes())


def _stated(meta: Meta) -> dict[str, Any]:
    return meta._replace(params=QUANTIZERS[meta.kind].stated(meta.params))._asdict()


def _meta_of(t: dict[str, Any]) -> Meta:
    shape, kind, dtype = tuple(t["shape"]), t["kind"], t["dtype"]
    params = QUANTIZERS[kind].read(t["params"], dtype, shape)
    grid = Grid(*map(tuple, t["grid"])) if t["grid"] else None
    parts = tuple(Part(*p) for p in t["parts"])
    return Meta(shape, dtype, kind, params, parts, t["axis"], t["coder"], grid, tuple(t.get("beyond", ())))


def _state_of(x: Any) -> dict[str, Any]:
    """The state of a coded array."""
    if isinstance(x, Blocks):
        what = {"starts": x.starts, "shape": x.shape, "dtype": str(np.dtype(x.dtype))}
        blocks = {str(i): _state_of(b) if isinstance(b, Coded) else b for i, b in enumerate(x.blocks)}
        return {"blocks": blocks, "frame": _as_array(what)}
    streams = {n: s for n, s in zip(STREAMS, x.streams, strict=True) if np.size(s)}
    return {**streams, "meta": _as_array(_stated(x.meta))}


def _leaf_of(state: Any, target: Any) -> Any:
    """The leaf of a state: coded if that was, whatever its target is."""
    if not isinstance(state, dict) or not state.keys() & {"meta", "frame"}:
        return serialization.from_state_dict(target, state)
    if "frame" in state:
        what = _told(state["frame"])
        states = [state["blocks"][str(i)] for i in range(len(state["blocks"]))]
        starts, shape = tuple(map(tuple, what["starts"])), tuple(what["shape"])
        sharding = getattr(target, "sharding", None)
        if sharding is not None and _starts(target, sharding) != set(starts):  # not sharded alike
            sharding = None
        leaf = Blocks(
            tuple(_leaf_of(s, None) for s in states), starts, shape, np.dtype(what["dtype"]), sharding
        )
    else:
        held = tuple(n for n in STREAMS if n in state)
        leaf = Coded.tree_unflatten((held, _meta_of(_told(state["meta"]))), [state[n] for n in held])
    if target is not None and (np.shape(target), target.dtype) != (leaf.shape, leaf.dtype):
        raise ValueError(
            f"the state is of an array {leaf.shape} of {leaf.dtype}, the target {np.shape(target)} of "
            f"{target.dtype} (at {serialization.current_path()})"
        )
    return leaf


def _starts(target: Any, sharding: Any) -> set[tuple[int, ...]]:
    """Where the shards of a target begin that lie in this process."""
    if isinstance(target, Blocks):
        return set(target.starts)
    return {start_of(i) for i in sharding.addressable_devices_indices_map(target.shape).values()}


def _tree_state(x: Compressed) -> dict[str, Any]:
    return {n: _state_of(leaf) if is_coded(leaf) else leaf for n, leaf in x.leaves()}


def _tree_of(target: Compressed, state: dict[str, Any]) -> Compressed:
    paths, treedef = jax.tree_util.tree_flatten_with_path(target.tree, is_leaf=is_coded)
    names = [trees.leaf_name(p) for p, _ in paths]
    if names_differ := sorted(state.keys() ^ set(names)):
        raise ValueError(f"leaf {names_differ[0]!r} is only in one of the state and its target")
    return dataclasses.replace(
        target, tree=treedef.unflatten([_leaf_of(state[n], x) for n, (_, x) in zip(names, paths, strict=True)])
    )


def state_of(x: Any) -> dict[str, Any]:
    """The state dict of a compressed tree or a coded array."""
    return _tree_state(x) if isinstance(x, Compressed) else _state_of(x)


def restored(target: Any, state: dict[str, Any]) -> Any:
    """The compressed tree, or coded array, of a state dict.

    Raises:
      ValueError: it is not like its target.
    """
    return _tree_of(target, state) if isinstance(target, Compressed) else _leaf_of(state, target)
