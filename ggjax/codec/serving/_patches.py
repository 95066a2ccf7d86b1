"""The few weights of an array that its small form has no number for: kept beside it, as they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import mesh


class Patches(NamedTuple):
    """Weights by their places. A matrix that has fewer than others has places outside of it at the end."""

    rows: jax.Array  # int32 (..., m), along the last but one axis
    columns: jax.Array  # int32 (..., m), along the last axis
    values: jax.Array  # (..., m), the weights: float32, or uint16, the bits of bfloat16


def of_places(where: np.ndarray, values: np.ndarray) -> Patches | None:
    """Patches for those weights of an array (..., K, N) that a mask of its shape tells; None for no such."""
    *lead, k, n = where.shape
    flat = where.reshape(-1, k * n)
    counts = flat.sum(1)
    most = int(counts.max(initial=0))
    if not most:
        return None
    matrix, place = np.nonzero(flat)
    slot = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, columns = np.full((len(flat), most), k, np.int32), np.full((len(flat), most), n, np.int32)
    found = np.zeros((len(flat), most), values.dtype)
    rows[matrix, slot], columns[matrix, slot] = place // n, place % n
    found[matrix, slot] = values[where]
    return Patches(*(jax.device_put(x.reshape(*lead, most)) for x in (rows, columns, found)))


def floats(values: jax.Array) -> jax.Array:
    """The weights of patches as float32."""
    if values.dtype != jnp.uint16:
        return values
    return jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)


def put_in(x: jax.Array, patches: Patches | None) -> jax.Array:
    """An array (..., K, N) with its patches, of values of its dtype."""
    if patches is None:
        return x
    lead = jnp.indices((*x.shape[:-2], 1), sparse=True)[:-1]
    return x.at[(*lead, patches.rows, patches.columns)].set(patches.values, mode="drop")


def add_products(y: jax.Array, x: jax.Array, patches: Patches | None, transposed: bool) -> jax.Array:
    """The product of x with a matrix whose patches were left out, y, with their part of it.

    Args:
      y: (B, N), or (B, K) where the matrix is transposed.
      x: (B, K) or (B, N).
      patches: of the matrix (K, N), vectors.
    """
    if patches is None:
        return y
    rows, columns, values = patches
    source, target = (columns, rows) if transposed else (rows, columns)
    sharding = mesh.explicit_sharding(y)
    whole = None if sharding is None else jax.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    x = x.astype(y.dtype)
    if whole is not None:  # otherwise every index below would have to be told of all axes
        x, source, target, values = (jax.reshard(a, whole) for a in (x, source, target, values))
    part = x.at[:, source].get(mode="fill", fill_value=0) * floats(values).astype(y.dtype)[None]
    total = jnp.zeros(y.shape, y.dtype, out_sharding=whole).at[:, target].add(part, mode="drop")
    return y + (total if sharding is None else jax.reshard(total, sharding))


def regrouped(patches: Patches | None, shape: Any, groups: Any) -> Patches | None:
    """The patches (batch, m) of an array of this shape that becomes matrices (batch, rows, columns), one axis
    for every group of its axes."""
    if patches is None:
        return None
    lead = jnp.indices((*shape[:-2], 1), sparse=True)[:-1]
    inside = (patches.rows < shape[-2]) & (patches.columns < shape[-1])
    places = [jnp.broadcast_to(i, patches.rows.shape) for i in lead] + [patches.rows, patches.columns]
    batch, rows, columns = (_raveled(places, shape, group) for group in groups)
    sizes = [int(np.prod([shape[a] for a in group], dtype=np.int64)) for group in groups]
    b = jnp.arange(sizes[0])[:, None]
    mine = inside.reshape(1, -1) & (batch.reshape(1, -1) == b)
    rows = jnp.where(mine, rows.reshape(1, -1), sizes[1])
    columns = jnp.where(mine, columns.reshape(1, -1), sizes[2])
    return Patches(rows, columns, jnp.broadcast_to(patches.values.reshape(1, -1), rows.shape))


def _raveled(places: list[jax.Array], shape: Any, group: Any) -> jax.Array:
    out = jnp.zeros_like(places[0])
    for a in group:
        out = out * shape[a] + places[a]
    return out
