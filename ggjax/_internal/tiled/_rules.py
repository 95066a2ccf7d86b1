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


def dot(decode: Decode, x: jax.Array, arrays: Arrays) -> jax.Array:
    """The product of x with the matrix.

    Args:
      decode: gives the weights of some rows of the arrays.
      x: floating (P, B, K).
      arrays: the first one (K / P, ..., N), the others alike, or 1 long where all rows or columns share.

    Returns:
      (B, N): float32 for x of bfloat16, float16 and float32, float64 for float64.
    """
    return _linear(decode, False, *_placed(False, x, arrays))


def dot_transposed(decode: Decode, y: jax.Array, arrays: Arrays) -> jax.Array:
    """The product of y, floating (B, N), with the transposed matrix: (P, B, K), of a dtype as in ``dot``."""
    return _linear(decode, True, *_placed(True, y, arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(decode: Decode, transposed: bool, x: jax.Array, arrays: Arrays) -> jax.Array:
    return _on_devices(decode, transposed, x, arrays)


def _forward(decode: Decode, transposed: bool, x: jax.Array, arrays: Arrays) -> tuple[jax.Array, Any]:
    return _linear(decode, transposed, x, arrays), (arrays, jnp.zeros((), x.dtype))


def _backward(decode: Decode, transposed: bool, kept: Any, y: jax.Array) -> tuple[jax.Array, None]:
    arrays, like = kept
    return _linear(decode, not transposed, y, arrays).astype(like.dtype), None


_linear.defvjp(_forward, _backward)


def _placed(transposed: bool, x: jax.Array, arrays: Arrays) -> tuple[jax.Array, Arrays]:
    """x and the arrays, all divided like the first of the arrays where one lies on an Explicit mesh."""
    sharding = _common(x, arrays)
    if sharding is None:
        return x, arrays
    given, own = mesh.explicit_sharding(arrays[0]), mesh.explicit_sharding(x)
    spec = given.spec if given is not None else P()
    full = (*spec, *(None,) * (arrays[0].ndim - len(spec)))
    rows, columns = full[0], full[-1]
    at = 0 if transposed else 1
    batch = own.spec[at] if own is not None and len(own.spec) > at else None
    if {*_axes(batch)} & {*_axes(rows), *_axes(columns)}:
        batch = None

    def put(a: jax.Array, spec: P) -> jax.Array:
        return jax.reshard(a, jax.NamedSharding(sharding.mesh, spec))

    def spec_of(a: jax.Array) -> P:
        ends = (axis if n > 1 else None for axis, n in ((rows, a.shape[0]), (columns, a.shape[-1])))
        return P(next(ends), *(None,) * (a.ndim - 2), next(ends))

    of_arrays = tuple(put(a, spec_of(a)) for a in arrays)
    return put(x, P(batch, columns) if transposed else P(None, batch, rows)), of_arrays


def _on_devices(decode: Decode, transposed: bool, x: jax.Array, arrays: Arrays) -> jax.Array:
    """The product, on an Explicit mesh of what every device has, summed over those that share a result."""
    product = _batched(decode, transposed)
    sharding = _common(x, arrays)
    if sharding is None:
        return product(x, arrays)
    specs = [_spec(a) for a in (x, *arrays)]
    rows, columns = specs[1][0], specs[1][-1]
    over = _axes(columns if transposed else rows)

    def here(x: jax.Array, *arrays: jax.Array) -> jax.Array:
        y = product(x, arrays)
        return lax.psum(y, over) if over else y

    batch = specs[0][0 if transposed else 1]
    out = P(None, batch, rows) if transposed else P(batch, columns)
    return jax.shard_map(here, mesh=sharding.mesh, in_specs=tuple(specs), out_specs=out, check_vma=False)(
        x, *arrays
    )


def _common(x: jax.Array, arrays: Arrays) -> Any:
    return next((s for s in map(mesh.explicit_sharding, (x, *arrays)) if s is not None), None)


def _spec(a: jax.Array) -> P:
    """The sharding of an array with an entry for every axis."""
    spec = jax.typeof(a).sharding.spec
    return P(*spec, *(None,) * (a.ndim - len(spec)))


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
        x, arrays = lax.optimization_barrier((x, arrays))  # weights are not decoded ahead of the caller's loop
        return loops(decode, x.astype(wide), arrays)

    if transposed or wide != jnp.float32 or not _kernel.fits(arrays) or not x.shape[1]:
        return by_loops(x, arrays)

    def by_kernel(platform: str) -> Callable[[jax.Array, Arrays], jax.Array]:
        narrow = jnp.bfloat16 if x.dtype == jnp.bfloat16 else jnp.float32
        return lambda x, arrays: _kernel.dot(decode, platform, x.astype(narrow), arrays)

    kernels = {platform: by_kernel(platform) for platform in ("cuda", "tpu")}
    return lax.platform_dependent(x, arrays, default=by_loops, **kernels)
