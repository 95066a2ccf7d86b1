"""The product in Pallas: a tile is decoded in the registers of a GPU or the vector memory of a TPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ggjax._internal.tiled._loops import Decode

ROWS, COLUMNS, DEPTH = 16, 128, 128
"""A block of x, a block of columns, and how many rows of the arrays are decoded at a time."""


def fits(arrays: tuple[jax.Array, ...]) -> bool:
    """Whether the matrix divides into whole blocks: padding would copy it."""
    k, n = arrays[0].shape[0], arrays[0].shape[-1]
    return k > 0 and n > 0 and k % DEPTH == 0 and n % COLUMNS == 0


def dot(decode: Decode, platform: str, x: jax.Array, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """x (P, B, K) times the matrix of the arrays, which ``fits``: (B, N) float32.

    Args:
      decode, x, arrays: see the text of the package; x is float32 or bfloat16.
      platform: "cuda", "tpu", or "interpret" to compute what either would on any device.
    """
    from jax.experimental import pallas as pl

    planes, batch, k = x.shape
    padded = -(-batch // ROWS) * ROWS
    x = jnp.pad(x, ((0, 0), (0, padded - batch), (0, 0)))
    columns = arrays[0].shape[-1]
    in_specs = [pl.BlockSpec((planes, ROWS, k), lambda i, j: (0, i, 0))]
    for a in arrays:
        block, first = (*a.shape[:-1], min(a.shape[-1], COLUMNS)), (0,) * (a.ndim - 1)
        at = int(a.shape[-1] > 1)
        in_specs.append(pl.BlockSpec(block, lambda i, j, first=first, at=at: (*first, at * j)))
    y = pl.pallas_call(
        functools.partial(_block, decode),
        grid=(padded // ROWS, columns // COLUMNS),
        in_specs=in_specs,
        out_specs=pl.BlockSpec((ROWS, COLUMNS), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((padded, columns), jnp.float32),
        compiler_params=_params(platform),
        interpret=platform == "interpret",
    )(x, *arrays)
    return y[:batch]


def _block(decode: Decode, x_ref: Any, *refs: Any) -> None:
    from jax.experimental import pallas as pl

    *array_refs, y_ref = refs
    precision = lax.Precision.DEFAULT if x_ref.dtype == jnp.bfloat16 else lax.Precision.HIGHEST

    def add(i: Any, total: jax.Array) -> jax.Array:
        rows = pl.ds(i * DEPTH, DEPTH)
        some = (ref[rows] if ref.shape[0] > 1 else ref[...] for ref in array_refs)
        for p, w in enumerate(decode(*some)):
            part = jnp.dot(
                x_ref[p, :, rows],
                w.astype(x_ref.dtype),
                precision=precision,
                preferred_element_type=jnp.float32,
            )
            total = total + part
        return total

    start = jnp.zeros((ROWS, COLUMNS), jnp.float32)
    y_ref[...] = lax.fori_loop(0, array_refs[0].shape[0] // DEPTH, add, start)


def _params(platform: str) -> Any:
    if platform == "cuda":
        from jax.experimental.pallas import triton

        return triton.CompilerParams(num_warps=4, num_stages=2)
    if platform == "tpu":
        from jax.experimental.pallas import tpu

        return tpu.CompilerParams(dimension_semantics=("parallel", "parallel"))
    return None
