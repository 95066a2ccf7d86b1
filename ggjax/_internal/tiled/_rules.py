"""What the products are to JAX: linear in x, batched by more rows of x, local on the devices of a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from ggjax._internal import mesh, trees
from ggjax._internal.tiled import _kernel, _loops
from ggjax._internal.tiled._loops import Decode

Arrays = tuple[jax.Array, ...]


def planes_of(x: jax.Array, planes: int) -> jax.Array:
    """x (B, K) as (P, B, K / P): columns 0, P, 2 P, ..., then 1, P + 1, ..."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, planes), -1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dot(decode: Decode, x: jax.Array, arrays: Arrays) -> jax.Array:
    """The product of x with the matrix.

    Args:
      decode: gives the weights of some rows of the arrays.
      x: floating (P, B, K).
      arrays: each (K, ..., N).

    Returns:
      (B, N): float32 for x of bfloat16, float16 and float32, float64 for float64.
    """
    return _local(decode, False, x, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dot_transposed(decode: Decode, y: jax.Array, arrays: Arrays) -> jax.Array:
    """The product of y, floating (B, N), with the transposed matrix: (P, B, K), of a dtype as in ``dot``."""
    return _local(decode, True, y, arrays)


def _dot_forward(decode: Decode, x: jax.Array, arrays: Arrays) -> tuple[jax.Array, Any]:
    return dot(decode, x, arrays), (arrays, jnp.zeros((), x.dtype))


def _dot_backward(decode: Decode, kept: Any, y: jax.Array) -> tuple[jax.Array, None]:
    return dot_transposed(decode, y, kept[0]).astype(kept[1].dtype), None


def _transposed_backward(decode: Decode, kept: Any, x: jax.Array) -> tuple[jax.Array, None]:
    return dot(decode, x, kept[0]).astype(kept[1].dtype), None


dot.defvjp(_dot_forward, _dot_backward)
dot_transposed.defvjp(
    lambda decode, y, arrays: (dot_transposed(decode, y, arrays), (arrays, jnp.zeros((), y.dtype))),
    _transposed_backward,
)


def _local(decode: Decode, transposed: bool, x: jax.Array, arrays: Arrays) -> jax.Array:
    """The product on every device of an Explicit mesh of what it has, summed where rows are divided."""
    product = _batched(decode, transposed)
    sharding = next((s for s in map(mesh.explicit_sharding, (x, *arrays)) if s is not None), None)
    if sharding is None:
        return product(x, arrays)
    given = mesh.explicit_sharding(arrays[0])
    spec = given.spec if given is not None else P()
    full = (*spec, *(None,) * (arrays[0].ndim - len(spec)))
    rows, columns = full[0], full[-1]
    own = mesh.explicit_sharding(x)
    at = 0 if transposed else 1
    batch = own.spec[at] if own is not None and len(own.spec) > at else None
    if {*_axes(batch)} & {*_axes(rows), *_axes(columns)}:
        batch = None
    wide, narrow = P(None, batch, rows), P(batch, columns)
    specs = [P(rows, *(None,) * (a.ndim - 2), columns) for a in arrays]
    over = _axes(columns if transposed else rows)

    def here(x: jax.Array, *arrays: jax.Array) -> jax.Array:
        y = product(x, arrays)
        return lax.psum(y, over) if over else y

    x = jax.reshard(x, jax.NamedSharding(sharding.mesh, narrow if transposed else wide))
    arrays = tuple(
        jax.reshard(a, jax.NamedSharding(sharding.mesh, s)) for a, s in zip(arrays, specs, strict=True)
    )
    return jax.shard_map(
        here,
        mesh=sharding.mesh,
        in_specs=(narrow if transposed else wide, *specs),
        out_specs=wide if transposed else narrow,
        check_vma=False,
    )(x, *arrays)


def _axes(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


@functools.cache
def _batched(decode: Decode, transposed: bool) -> Callable[[jax.Array, Arrays], jax.Array]:
    """The product; ``vmap`` over x makes more rows of x, and over the arrays a loop, one matrix at a time."""
    at = 0 if transposed else 1  # the axis of x that counts its rows
    out = 1 - at

    @jax.custom_batching.custom_vmap
    def product(x: jax.Array, arrays: Arrays) -> jax.Array:
        return _on_platform(decode, transposed, x, arrays)

    @product.def_vmap
    def rule(size: int, batched: Any, x: jax.Array, arrays: Arrays) -> tuple[jax.Array, bool]:
        x_batched, arrays_batched = batched
        if any(arrays_batched):
            moving = [a for a, b in zip(arrays, arrays_batched, strict=True) if b]

            def one(of_one: Any) -> jax.Array:
                own, parts = of_one
                parts = iter(parts)
                mixed = tuple(next(parts) if b else a for a, b in zip(arrays, arrays_batched, strict=True))
                return product(own if x_batched else x, mixed)

            return lax.map(one, (x if x_batched else None, moving)), True
        x = jnp.moveaxis(x, 0, at)
        many = x.reshape(*x.shape[:at], -1, x.shape[-1])
        y = product(many, arrays)
        y = y.reshape(*y.shape[:out], size, -1, y.shape[-1])
        return jnp.moveaxis(y, out, 0), True

    return product


def _on_platform(decode: Decode, transposed: bool, x: jax.Array, arrays: Arrays) -> jax.Array:
    wide = trees.wide_dtype(x.dtype)
    loops = _loops.dot_transposed if transposed else _loops.dot

    def by_loops(x: jax.Array, arrays: Arrays) -> jax.Array:
        return loops(decode, x.astype(wide), arrays)

    if transposed or wide != jnp.float32 or not _kernel.fits(arrays) or not x.shape[1]:
        return by_loops(x, arrays)

    def by_kernel(platform: str) -> Callable[[jax.Array, Arrays], jax.Array]:
        narrow = jnp.bfloat16 if x.dtype == jnp.bfloat16 else jnp.float32
        return lambda x, arrays: _kernel.dot(decode, platform, x.astype(narrow), arrays)

    kernels = {platform: by_kernel(platform) for platform in ("cuda", "tpu")}
    return lax.platform_dependent(x, arrays, default=by_loops, **kernels)
