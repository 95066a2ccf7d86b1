"""Products of two operands of any number of axes as products of matrices.

The second operand is an array in some coded form: it has ``shape``, ``ndim``, and the method ``grouped``, which
gives it as matrices. So each coded form has to say only how a matrix is multiplied.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Product = Callable[[jax.Array, Any, bool], jax.Array]
"""From x (B, K) and a coded matrix (K, N) to (B, N); the matrix is (N, K) where the last argument is true."""


def dot(product: Product, x: jax.Array, q: Any, dtype: DTypeLike) -> jax.Array:
    """``jnp.dot``: the last axis of x with the last but one (or the only one) of q."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    if not x.ndim or not q.ndim:
        raise ValueError(f"dot needs axes to sum over, got shapes {x.shape} and {q.shape}")
    at = max(q.ndim - 2, 0)
    if x.shape[-1] != q.shape[at]:
        raise ValueError(
            f"the last axis of x and axis {at} of q must be of one size, got shapes {x.shape} and {q.shape}"
        )
    of_x, rest = letters[: x.ndim], letters[x.ndim : x.ndim + q.ndim - 1]
    of_q = rest[:at] + of_x[-1] + rest[at:]
    return einsum(product, f"{of_x},{of_q}->{of_x[:-1]}{rest}", x, q, dtype)


def einsum(product: Product, subscripts: str, x: jax.Array, q: Any, dtype: DTypeLike) -> jax.Array:
    """``jnp.einsum`` of x and q; every letter of q is in x, in the result, or in both."""
    of_x, of_q, of_y = _letters(subscripts, x, q)
    batch = [c for c in of_q if c in of_x and c in of_y]
    summed = [c for c in of_q if c in of_x and c not in of_y]
    free = [c for c in of_q if c not in of_x]
    kept = [c for c in of_x if c in of_y and c not in batch]
    size = {**dict(zip(of_x, x.shape, strict=True)), **dict(zip(of_q, q.shape, strict=True))}

    def places(letters: list[str]) -> tuple[int, ...]:
        return tuple(of_q.index(c) for c in letters)

    order = [c for c in of_q if c not in batch]
    transposed = bool(summed) and bool(free) and order == free + summed
    groups = (batch, free, summed) if transposed else (batch, summed, free)
    matrices = q.grouped(*map(places, groups))
    x = x.transpose([of_x.index(c) for c in (*batch, *kept, *summed)])
    x = x.reshape(*(math.prod(size[c] for c in group) for group in (batch, kept, summed)))
    if batch:
        count = math.prod(size[c] for c in batch)  # what all of them share is there once
        matrices = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape[1:])), matrices)
        y = jax.vmap(lambda x, q: product(x, q, transposed))(x, matrices)
    else:
        y = product(x[0], matrices[0], transposed)
    made = (*batch, *kept, *free)
    y = y.astype(dtype).reshape([size[c] for c in made])
    return jnp.transpose(y, [made.index(c) for c in of_y])


def _letters(subscripts: str, x: jax.Array, q: Any) -> tuple[str, str, str]:
    text = subscripts.replace(" ", "")
    operands, arrow, of_y = text.partition("->")
    of_x, comma, of_q = operands.partition(",")
    letters = of_x + of_q + of_y
    if not arrow or not comma or not all(c.isalpha() for c in letters):
        raise ValueError(f'subscripts must be like "bk,kn->bn", letters only, got {subscripts!r}')
    for name, own in (("x", of_x), ("q", of_q), ("the result", of_y)):
        if len({*own}) != len(own):
            raise ValueError(f"subscripts {subscripts!r}: {name} has a letter twice")
    for name, own, shape in (("x", of_x, x.shape), ("q", of_q, q.shape)):
        if len(own) != len(shape):
            raise ValueError(f"subscripts {subscripts!r} give {name} {len(own)} axes, but its shape is {shape}")
    for c in of_y:
        if c not in of_x + of_q:
            raise ValueError(f"subscripts {subscripts!r}: {c!r} of the result is in neither operand")
    for c in of_x + of_q:
        if c not in of_y and not (c in of_x and c in of_q):
            raise ValueError(f"subscripts {subscripts!r}: {c!r} must be in the other operand or in the result")
    for c in {*of_x} & {*of_q}:
        if x.shape[of_x.index(c)] != q.shape[of_q.index(c)]:
            raise ValueError(
                f"subscripts {subscripts!r}: {c!r} must be of one size, got shapes {x.shape} and {q.shape}"
            )
    return of_x, of_q, of_y
