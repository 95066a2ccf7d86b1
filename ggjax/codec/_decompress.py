"""Decompressing a tree: on the host a group of arrays at a time, under jit one array after another."""

from typing import Any

import jax
import jax.numpy as jnp

from ggjax._internal import trees
from ggjax.codec import _decode, _traced
from ggjax.codec._coded import Coded
from ggjax.codec._compressed import Blocks, Compressed, is_coded
from ggjax.codec._groups import index_groups
from ggjax.codec._host import outside_trace
from ggjax.codec._shards import start_of
from ggjax.codec.quantize._quantizers import QUANTIZERS


def decompress(compressed: Any, *, keep_rf8: bool = False) -> Any:
    """The tree that a ``Compressed`` stands for. Under jit too: on the device, from the streams.

    Args:
      compressed: what ``compress`` gave, or any tree with coded arrays in it.
      keep_rf8: give RF8 leaves as ``rf8.RF8Array`` instead of in their own dtype.

    Returns:
      A tree of ``jax.Array`` in place of the coded leaves, with their shapes and dtypes, sharded as the
      leaves that were compressed; the other leaves as they are.

    Raises:
      ValueError: streams that no encoder wrote (outside jit), or an array coded by "zstd" under jit.

    >>> from ggjax.codec import compress
    >>> tree = {"w": jnp.arange(2000.0), "n": 3}
    >>> back = jax.jit(decompress)(compress(tree, lossless=True))
    >>> bool((back["w"] == tree["w"]).all()), int(back["n"])
    (True, 3)
    """
    tree = compressed.tree if isinstance(compressed, Compressed) else compressed
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_coded)
    out = list(leaves)
    whole = [i for i, x in enumerate(leaves) if isinstance(x, Coded)]
    if all(trees.is_concrete(*jax.tree.leaves(leaves[i])) for i in whole):
        for group in index_groups([(i, leaves[i].size) for i in whole]):
            for i, array in zip(group, _decode.arrays([leaves[i] for i in group]), strict=True):
                out[i] = _on_device(leaves[i], array, keep_rf8)
    else:
        for i in whole:
            out[i] = _on_device(leaves[i], _traced.array(leaves[i]), keep_rf8)
    for i, x in enumerate(leaves):
        if isinstance(x, Blocks):
            out[i] = _assembled(x, keep_rf8)
    return treedef.unflatten(out)


def _on_device(c: Coded, values: Any, keep_rf8: bool) -> Any:
    """A decoded array as the caller wants it, of the values that its quantizer holds."""
    meta, quantizer = c.meta, QUANTIZERS[c.meta.kind]
    if isinstance(values, jax.core.Tracer):
        if keep_rf8 and quantizer.wrapped:
            return quantizer.wrapped(values, meta.params, meta.dtype)
        return _decode.weights_of(c, values)
    with outside_trace():
        if keep_rf8 and quantizer.wrapped:
            return quantizer.wrapped(values, meta.params, meta.dtype)
        return jax.device_put(_decode.weights_of(c, values))  # jnp.asarray would compile for every shape


def _assembled(x: Blocks, keep_rf8: bool) -> Any:
    """The array of its blocks, on the devices that it was on."""
    if keep_rf8 and any(isinstance(b, Coded) and QUANTIZERS[b.meta.kind].wrapped for b in x.blocks):
        raise ValueError("keep_rf8 takes whole arrays, not sharded ones (each shard has its own exponent)")
    if x.sharding is None or not trees.is_concrete(*jax.tree.leaves(x)):
        return _put_together(x)
    with outside_trace():
        at = dict(zip(x.starts, (decompress(b) for b in x.blocks), strict=True))
        kind = x.sharding.memory_kind
        arrays = []
        for device, index in x.sharding.addressable_devices_indices_map(x.shape).items():
            place = jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
            arrays.append(jax.device_put(at[start_of(index)], place))
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, arrays)


def _put_together(x: Blocks) -> jax.Array:
    """The array of its blocks, which must all be here."""
    if x.size_at_hand != x.size:
        raise ValueError(
            f"an array of shape {x.shape} has {x.size_at_hand} of its {x.size} elements in this process: call "
            "decompress outside jit, where it gives an array over all processes"
        )
    # As bits: a floating type may be widened on the way, and its NaN changed.
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    bits = jnp.dtype(f"uint{8 * dtype.itemsize}")
    out = jnp.zeros(x.shape, bits)
    for start, block in zip(x.starts, x.blocks, strict=True):
        piece = jnp.asarray(decompress(block)).astype(dtype)
        out = jax.lax.dynamic_update_slice(out, jax.lax.bitcast_convert_type(piece, bits), start)
    return jax.lax.bitcast_convert_type(out, dtype)
