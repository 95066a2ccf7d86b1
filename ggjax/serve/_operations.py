"""What single operations do with a small array.

A rule takes the equation of the traced program and its operands, and gives the results, small ones among them;
None where the operands have to be decoded after all.
"""

import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ggjax._internal import trees
from ggjax.serve import _kinds
from ggjax.serve._held import Held, is_held

Rule = Callable[[Any, list[Any]], list[Any] | None]


def _dot_general(eqn: Any, values: list[Any]) -> list[Any] | None:
    x, w = values
    if (is_held(x) and is_held(w)) or eqn.params.get("out_sharding") is not None:
        return None
    summed, batch = eqn.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    names = [[""] * len(v.shape) for v in values]
    for axes in (batch, summed):
        for pair in zip(*axes, strict=True):
            c = next(letters)
            for name, a in zip(names, pair, strict=True):
                name[a] = c
    free = [[i for i, c in enumerate(name) if not c] for name in names]
    for name, axes in zip(names, free, strict=True):
        for a in axes:
            name[a] = next(letters)
    made = [names[0][a] for a in batch[0]]
    made += [name[a] for name, axes in zip(names, free, strict=True) for a in axes]
    if is_held(x):
        x, w, names = w, x, names[::-1]
    if not trees.is_weight_dtype(x.dtype):
        return None
    own = [""] * len(w.order)
    for c, a in zip(names[1], w.order, strict=True):
        own[a] = c
    subscripts = f"{''.join(names[0])},{''.join(own)}->{''.join(made)}"
    return [_kinds.einsum(subscripts, x, w.array, eqn.outvars[0].aval.dtype)]


def _gather(eqn: Any, values: list[Any]) -> list[Any] | None:
    """Rows that are looked up, as ``jnp.take(w, indices, axis=0)`` does."""
    w, at = values
    if not is_held(w) or not w.in_order:
        return None
    p, shape = eqn.params, w.shape
    d, rows, places = p["dimension_numbers"], at.ndim - 1, len(shape) - 1
    if d.operand_batching_dims or d.start_index_map != (0,) or d.collapsed_slice_dims != (0,):
        return None
    if p["slice_sizes"] != (1, *shape[1:]) or d.offset_dims != tuple(range(rows, rows + places)):
        return None
    at, last = at[..., 0], shape[0] - 1
    found = _kinds.decode(_kinds.index(w.array, jnp.clip(at, 0, last))).astype(w.dtype)
    if p["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return [found]
    fill = jnp.nan if p["fill_value"] is None else p["fill_value"]
    there = ((at >= 0) & (at <= last)).reshape(*at.shape, *(1,) * places)
    return [jnp.where(there, found, jnp.asarray(fill, found.dtype))]


def _convert(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,), dtype = values, jnp.dtype(eqn.params["new_dtype"])
    if not trees.is_weight_dtype(dtype) or dtype.itemsize < 2:
        return None
    return [w._replace(dtype=dtype)]


def _transpose(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,) = values
    return [w._replace(order=tuple(w.order[a] for a in eqn.params["permutation"]))]


def _reshape(eqn: Any, values: list[Any]) -> list[Any] | None:
    w = values[0]
    shape = eqn.params["new_sizes"]
    if len(values) > 1 or not w.in_order or eqn.params["dimensions"] is not None:
        return None
    made = w.again(_kinds.reshape(w.array, shape))
    return None if made is None else [made]


def _slice(eqn: Any, values: list[Any]) -> list[Any] | None:
    p = eqn.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    return [_part(values[0], map(slice, p["start_indices"], p["limit_indices"], strides))]


def _split(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,), axis = values, eqn.params["axis"]
    parts, start = [], 0
    for size in map(int, eqn.params["sizes"]):
        parts.append(_part(w, [slice(None)] * axis + [slice(start, start + size)]))
        start += size
    return parts


def _squeeze(eqn: Any, values: list[Any]) -> list[Any] | None:
    (w,), gone = values, {a % len(values[0].shape) for a in eqn.params["dimensions"]}
    own = {w.order[a] for a in gone}
    left = [a for i, a in enumerate(w.order) if i not in gone]
    array = _kinds.index(w.array, tuple(0 if a in own else slice(None) for a in range(len(w.order))))
    return [Held(array, tuple(a - sum(g < a for g in own) for a in left), w.dtype)]


def _dynamic_slice(eqn: Any, values: list[Any]) -> list[Any] | None:
    """One layer of a stack."""
    w, *starts = values
    sizes = eqn.params["slice_sizes"]
    if not is_held(w) or not w.in_order or sizes != (1, *w.shape[1:]):
        return None
    layer = _kinds.index(w.array, jnp.clip(starts[0], 0, w.shape[0] - 1))
    return [w.again(_kinds.index(layer, None))]


def _part(w: Held, slices: Any) -> Held:
    own = [slice(None)] * len(w.order)
    for a, s in zip(w.order, slices, strict=False):
        own[a] = s
    return w._replace(array=_kinds.index(w.array, tuple(own)))


def _same(eqn: Any, values: list[Any]) -> list[Any] | None:
    return values


OPERATIONS: dict[str, Rule] = {
    "dot_general": _dot_general,
    "gather": _gather,
    "convert_element_type": _convert,
    "transpose": _transpose,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "dynamic_slice": _dynamic_slice,
    "copy": _same,
    "copy_p": _same,
    "stop_gradient": _same,
    "optimization_barrier": _same,
    "sharding_constraint": _same,  # a small array lies where it lies
}
