"""Trees: every selected leaf encoded with exponents of its own, and back."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import pack, trees
from ggjax.rf8 import _calibrated
from ggjax.rf8._array import RF8Array, check_form
from ggjax.rf8._decode import decode
from ggjax.rf8._encode import Axis, encode_array, encode_on_host, has_axes, static_axis
from ggjax.rf8._format import NOT_FINITE, floats_on_host
from ggjax.rf8._pack import encode_packed
from ggjax.rf8._rounding import Rounding, check_rounding
from ggjax.sensitivity import Sensitivity

_SMALL = 1 << 16
"""Leaves with fewer weights, if their values are known, are worked on by NumPy.

XLA takes 10 to 50 ms of one core to compile a program for one more shape, and NumPy less than 2 ms for so many
weights: a tree of thousands of small leaves would otherwise take minutes the first time.
"""


def tree_encode(
    params: Any,
    *,
    axis: Axis = None,
    rounding: Rounding = "digits",
    mask: trees.Mask = None,
    sensitivity: Sensitivity | None = None,
) -> Any:
    """Encode the selected floating leaves of a tree, each with its own exponents.

    Args:
      params: a tree of arrays. Other leaves (integers, floats of 4 and 6 bits, functions, strings) pass
        through.
      axis: see ``encode``; leaves that lack one of the axes get one exponent.
      rounding: see ``encode``.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.
      sensitivity: what ``ggjax.sensitivity.estimate`` gives for these weights: the leaves that it covers are
        rounded with feedback, so that the error of each weight is made good by those after it. Outside jit.

    Returns:
      The tree with an ``RF8Array`` in place of every selected leaf and the other leaves as they were.

    Raises:
      ValueError: no floating leaf, a mask that does not fit, an unknown rounding, a sensitivity that has a leaf
        in another shape, or (unless the leaf is traced) a NaN or infinite weight; the message names the leaf.

    >>> tree = tree_encode({"w": jnp.ones((2, 3)), "step": jnp.array(7)})
    >>> tree["w"].codes.dtype, tree["step"].dtype
    (dtype('uint8'), dtype('int32'))
    """
    check_rounding(rounding)
    flat = trees.flatten(params, mask)
    encoded: list[Any] = flat.weights()
    packed: list[int] = []
    if sensitivity is not None:
        covered = [i for i, n in enumerate(flat.weight_names()) if n in sensitivity.factors]
        axes = [static_axis(axis) if has_axes(encoded[i].ndim, axis) else None for i in covered]
        names = [flat.weight_names()[i] for i in covered]
        found = _calibrated.encode_all(names, [encoded[i] for i in covered], axes, rounding, sensitivity)
        for i, q in zip(covered, found, strict=True):
            encoded[i] = q
    for i, (name, x) in enumerate(zip(flat.weight_names(), flat.weights(), strict=True)):
        if isinstance(encoded[i], RF8Array):
            continue
        options = {"axis": static_axis(axis) if has_axes(x.ndim, axis) else None, "rounding": rounding}
        if _is_small(x):
            encoded[i] = _on_host(functools.partial(_encode_small, name, **options), x)
        elif _can_be_packed(x, options["axis"]):
            packed.append(i)
        else:
            trees.check_finite([name], [x])  # one by one: leaves may lie on different devices
            encoded[i] = encode_array(jnp.asarray(x), **options)
    for run in pack.runs(packed, lambda i: encoded[i].dtype, at_most=pack.MOST):
        for i, q in zip(run, encode_packed([encoded[i] for i in run], rounding=rounding), strict=True):
            encoded[i] = q
    return flat.replace(encoded)


def tree_decode(tree: Any) -> Any:
    """The tree with every ``RF8Array`` decoded to its own dtype, and the other leaves as they were.

    >>> params = {"w": jnp.array([0.5, 0.6]), "step": jnp.array(7)}
    >>> tree_decode(tree_encode(params))["w"].tolist()
    [0.5, 0.625]
    """
    return jax.tree.map(_decode_leaf, tree, is_leaf=lambda x: isinstance(x, RF8Array))


def _decode_leaf(q: Any) -> Any:
    if not isinstance(q, RF8Array):
        return q
    if _is_small(q.codes) and _is_small(q.exponents):
        check_form(q, "q")
        return _on_host(lambda q: floats_on_host(q.codes, q.exponents, q.dtype), q)
    return decode(q)


def _encode_small(name: str, x: np.ndarray, **options: Any) -> RF8Array:
    with np.errstate(over="ignore"):  # without x64, float64 becomes float32 and may overflow
        q = encode_on_host(np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)), **options)
    if (q.exponents == NOT_FINITE).any():
        trees.check_finite([name], [x])
    return q


def _is_small(x: Any) -> bool:
    """Whether the array is in the memory of this process, on one device at most, and small."""
    if isinstance(x, jax.core.Tracer) or not isinstance(x, (np.ndarray, np.generic, jax.Array)):
        return False
    if isinstance(x, jax.Array) and not (x.is_fully_addressable and len(x.sharding.device_set) == 1):
        return False
    return x.size < _SMALL


def _can_be_packed(x: Any, axis: Axis) -> bool:
    """Whether a leaf is traced, small, with one exponent, and surely on one device: packing would gather a
    sharded one, and under jit it is not known which are sharded."""
    return isinstance(x, jax.core.Tracer) and axis is None and x.size < _SMALL and pack.one_device()


def _on_host(f: Callable[[Any], Any], x: Any) -> Any:
    """f of arrays that ``_is_small`` took, computed in NumPy; the results lie where the first array did."""
    first = jax.tree.leaves(x)[0]
    place = first.sharding if getattr(first, "committed", False) else None
    with jax.ensure_compile_time_eval():  # also inside jit, where device_put of a known array would be traced
        return jax.device_put(f(jax.device_get(x)), place)
