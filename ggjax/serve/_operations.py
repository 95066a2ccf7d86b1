"""What single operations do with a small array.

A rule takes the equation of the traced program and its operands, and gives the results, held ones among them.
It gives None, or a None among the results, where the operands have to be decoded after all.
"""

import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ggjax._internal import mesh, trees
from ggjax.serve import _kinds
from ggjax.serve._held import Held, is_held

Rule = Callable[[Any, list[Any]], list[Any] | None]


def _dot_general(eqn: Any, values: list[Any]) -> list[Any] | None:
    """As an einsum, of which the held operand is the second one."""
    summed, batch = eqn.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    names = [[""] * len(v.shape) for v in values]
    for pair in [*zip(*batch, strict=True), *zip(*summed, strict=True)]:
        c = next(letters)
        for name, a in zip(names, pair, strict=True):
            name[a] = c
    made = [names[0][a] for a in batch[0]]
    for name in names:
        free = [a for a, c in enumerate(name) if not c]
        for a in free:
            name[a] = next(letters)
        made += [name[a] for a in free]
    if is_held(values[0]):
        values, names = values[::-1], names[::-1]
    x, w = values
    if is_held(x) or None in w.order or not trees.is_weight_dtype(x.dtype):
        return None
    own = [names[1][w.order.index(a)] for a in range(len(w.order))]
    subscripts = f"{''.join(names[0])},{''.join(own)}->{''.join(made)}"
    asked = eqn.outvars[0].aval
    y = _kinds.einsum(subscripts, x, w.array, asked.dtype)
    return [y if mesh.explicit_sharding(y) is None else jax.reshard(y, asked.sharding)]


def _gather(eqn: Any, values: list[Any]) -> list[Any] | None:
    """Rows that are looked up, as ``jnp.take(w, indices, axis=0)`` does."""
    w, at = values
    if not is_held(w) or not w.in_order:
        return None
    p, shape = eqn.params, w.shape
    d, places, own = p["dimension_numbers"], at.ndim - 1, len(shape) - 1
    if d.operand_batching_dims or d.start_index_map != (0,) or d.collapsed_slice_dims != (0,):
        return None
    if p["slice_sizes"] != (1, *shape[1:]) or d.offset_dims != tuple(range(places, places + own)):
        return None
    at, last = _wide(at[..., 0]), shape[0] - 1
    found = _kinds.rows(w.array, jnp.clip(at, 0, last)).astype(w.dtype)
    if p["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return [found]
    fill = jnp.nan if p["fill_value"] is None else p["fill_value"]
    there = ((at >= 0) & (at <= last)).reshape(*at.shape, *(1,) * own)
    return [jnp.where(there, found, jnp.asarray(fill, found.dtype))]


def _convert(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,), dtype = values, jnp.dtype(eqn.params["new_dtype"])
    if not trees.is_weight_dtype(dtype) or dtype.itemsize < 2:
        return None
    if dtype != w.dtype and not _holds(w.dtype, dtype) and not _holds(w.dtype, w.array.dtype):
        return None  # what the dtype between them has rounded is not in the small array
    return [w._replace(dtype=dtype)]


def _holds(dtype: Any, other: Any) -> bool:
    """Whether the numbers of one floating dtype are all in the first."""
    a, b = jnp.finfo(dtype), jnp.finfo(other)
    return a.nmant >= b.nmant and a.maxexp >= b.maxexp


def _transpose(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,) = values
    return [w._replace(order=tuple(w.order[a] for a in eqn.params["permutation"]))]


def _expand(eqn: Any, values: list[Any]) -> list[Any] | None:
    """New axes of size 1."""
    w, *sizes = values
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    order: list[int | None] = [None] * len(shape)
    for a, place in zip(w.order, places, strict=True):
        order[place] = a
    held = w._replace(order=tuple(order))
    return None if sizes or held.shape != tuple(shape) else [held]


def _reshape(eqn: Any, values: list[Any]) -> list[Any] | None:
    w, *sizes = values
    if sizes or not w.in_order or eqn.params["dimensions"] is not None:
        return None
    array = _kinds.reshape(w.array, eqn.params["new_sizes"])
    return None if array is None else [Held(array, tuple(range(len(array.shape))), w.dtype)]


def _slice(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,), p = values, eqn.params
    strides = p["strides"] or (1,) * len(w.shape)
    cuts = zip(p["start_indices"], p["limit_indices"], strides, w.shape, strict=True)
    whole = slice(None)
    return [w.part(whole if (i, j, k) == (0, n, 1) else slice(i, j, k) for i, j, k, n in cuts)]


def _split(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,), axis, end = values, eqn.params["axis"], 0
    parts = []
    for size in map(int, eqn.params["sizes"]):
        parts.append(w.part([slice(None)] * axis + [slice(end, end + size)]))
        end += size
    return parts


def _squeeze(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,) = values
    return [w.without([a % len(w.shape) for a in eqn.params["dimensions"]])]


def _dynamic_slice(eqn: Any, values: list[Any]) -> list[Any] | None:
    """One layer of a stack, kept as a stack of one."""
    w, *starts = values
    if not is_held(w) or None in w.order or eqn.params["slice_sizes"] != (1, *w.shape[1:]):
        return None
    layer = w.without([0], jnp.clip(_wide(starts[0]), 0, w.shape[0] - 1))
    return None if layer is None else [layer._replace(order=(None, *layer.order))]


def _wide(at: jax.Array) -> jax.Array:
    """Indices in a dtype that holds the size of every axis: 8 bits would wrap in a comparison with it."""
    return at.astype(jnp.int32) if at.dtype.itemsize < 4 else at


def _each_part(eqn: Any, values: list[Any]) -> list[Any] | None:
    """The operation on each array of a small one: it changes what JAX knows of them, and no number."""
    (w,) = values
    return [w._replace(array=jax.tree.map(lambda a: eqn.primitive.bind(a, **eqn.params), w.array))]


def _same(eqn: Any, values: list[Any]) -> list[Any] | None:
    return values


OPERATIONS: dict[str, Rule] = {
    "broadcast_in_dim": _expand,
    "convert_element_type": _convert,
    "copy": _same,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "optimization_barrier": _same,
    "pvary": _each_part,  # what shard_map multiplies with what differs between devices
    "reshape": _reshape,
    "sharding_constraint": _same,  # a small array stays where it lies
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "transpose": _transpose,
}
"""By the names of JAX's primitives."""
