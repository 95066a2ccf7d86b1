"""What gg_reinit makes of a leaf: by its name first, then by its number of axes."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from jax.nn.initializers import Initializer, ones, zeros

from ggjax._internal import names
from ggjax.init import _fans
from ggjax.init._fans import Axes, Mode

BatchAxis: TypeAlias = Axes | Callable[[str, Any], Axes]

_ATTENTION_AXES = {name: ((0,), (1, 2)) for name in ("query", "key", "value")} | {"out": ((0, 1), (2,))}
"""Axes of the inputs and of the outputs, of one layer: (features, heads, size) and (heads, size, features)."""


class Rules(NamedTuple):
    """How the kernels of a tree are drawn."""

    kernel: Callable[[Mode, Axes, Axes, Axes], Initializer]  # of (mode, in_axis, out_axis, batch_axis)
    mode: Mode
    in_axis: Axes  # these two are axes of one layer: batch_axis is not counted
    out_axis: Axes
    batch_axis: BatchAxis
    embeddings: bool  # draw them too
    attention: dict[str, str]  # leaf name -> query, key, value or out, for kernels of multi-head attention


def initializer(name: str, leaf: Any, rules: Rules) -> Initializer | None:
    """The initializer of a leaf, or None for one that stays as it is."""
    kind = names.kind_of(name)
    if 0 in leaf.shape:
        return None
    if kind == "bias":
        return zeros
    if kind == "scale":
        return ones
    if kind == "embedding" and rules.embeddings and leaf.ndim:
        return rules.kernel("fan_out", (), -1, tuple(range(leaf.ndim - 1)))
    if kind in ("weight", "other"):
        return _kernel(name, kind, leaf, rules)
    return None


def _kernel(name: str, kind: names.Kind, leaf: Any, rules: Rules) -> Initializer | None:
    batch, layer = _split_axes(leaf, rules.batch_axis, name)
    if len(layer) < 2:
        if len(leaf.shape) >= 2 and not callable(rules.batch_axis):
            raise ValueError(
                f"only {len(layer)} of its axes remain beside batch_axis={rules.batch_axis}, too few for a "
                "kernel; if only some layers are stacked, let batch_axis be a function of (leaf name, leaf)"
            )
        return ones if kind == "weight" else None
    found = rules.attention.get(name)
    in_axis, out_axis = _ATTENTION_AXES[found] if found else (rules.in_axis, rules.out_axis)
    inputs = tuple(layer[a] for a in _fans.positions("in_axis", in_axis, len(layer)))
    outputs = tuple(layer[a] for a in _fans.positions("out_axis", out_axis, len(layer)))
    return rules.kernel(rules.mode, inputs, outputs, batch)


def _split_axes(leaf: Any, batch_axis: BatchAxis, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a leaf along which layers are stacked, and those of one layer."""
    ndim = len(leaf.shape)
    if callable(batch_axis):
        batch_axis = batch_axis(name, leaf)
    elif ndim < 2:  # an axis given for all kernels does not concern what cannot be a stack of anything
        batch_axis = ()
    batch = _fans.positions("batch_axis", batch_axis, ndim)
    return batch, tuple(a for a in range(ndim) if a not in batch)


@contextlib.contextmanager
def naming(name: str, leaf: Any) -> Iterator[None]:
    """Have every ValueError inside say which leaf it is about."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"leaf {name!r} of shape {tuple(leaf.shape)}: {e}") from e


def attention_kernels(
    leaf_names: Sequence[str], leaves: Sequence[Any], batch_axis: BatchAxis
) -> dict[str, str]:
    """The kernels of Flax's MultiHeadDotProductAttention and MultiHeadAttention, and which of the four each is.

    A module is one of these if it has kernels of three axes named query and out, whose heads agree:
    convolutions may have the same names, but hardly these shapes.
    """
    modules: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, leaf in zip(leaf_names, leaves, strict=True):
        found = re.fullmatch(r"(.*/)?(query|key|value|out)/kernel(/value)?", name)
        if found and hasattr(leaf, "shape"):
            with naming(name, leaf):
                _, layer = _split_axes(leaf, batch_axis, name)
            modules.setdefault(found[1] or "", {})[found[2]] = name, tuple(leaf.shape[a] for a in layer)
    kernels = {}
    for parts in modules.values():
        if "query" in parts and "out" in parts:
            (_, query), (_, out) = parts["query"], parts["out"]
            if len(query) == len(out) == 3 and query[1:] == out[:2]:
                kernels |= {name: part for part, (name, shape) in parts.items() if len(shape) == 3}
    return kernels
