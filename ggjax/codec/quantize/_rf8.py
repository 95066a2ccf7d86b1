"""RF8 codes of weights, for the codec: one exponent for a whole array, and programs of few shapes.

A file states the exponent as a number; an ``RF8Array`` holds it as an array with as many dimensions as its
codes, each 1 long. In older files that hold an ``RF8Array`` itself, it has no dimensions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import rf8
from ggjax.codec._host import bucket, outside_trace, padded
from ggjax.codec.entropy._lanes import CHUNK


def encoded(x: np.ndarray) -> tuple[np.ndarray, int]:
    """(codes uint8, of the shape of x; their exponent) of weights on the host."""
    q = rf8.encode(_whole_chunks(x))  # zeros change nothing
    return np.asarray(q.codes)[: x.size].reshape(x.shape), np.asarray(q.exponents).item()


def decoded(codes: np.ndarray, exponent: int, dtype: str) -> np.ndarray:
    """The weights of codes, on the host, in the dtype that JAX has for ``dtype``."""
    with outside_trace():
        values = rf8.decode(array_of(jnp.asarray(_whole_chunks(codes)), exponent, dtype))
        return np.asarray(values)[: codes.size].reshape(codes.shape)


def array_of(codes: jax.Array, exponent: int, dtype: str) -> rf8.RF8Array:
    """The ``RF8Array`` of codes that share an exponent."""
    exponents = jnp.full((1,) * codes.ndim, exponent, jnp.int8)
    return rf8.RF8Array(codes, exponents, jax.dtypes.canonicalize_dtype(dtype))


def is_one_exponent(want: tuple[int, ...], got: tuple[int, ...]) -> bool:
    """Whether the shape of ``exponents`` in a file means the same as that of an array: one for all codes."""
    return got == () and all(n == 1 for n in want)


def is_encoded(x: Any) -> bool:
    """Whether this is an ``RF8Array``."""
    return isinstance(x, rf8.RF8Array)


def _whole_chunks(x: np.ndarray) -> np.ndarray:
    """The elements, in one row of a bucket of whole chunks: few programs are compiled."""
    return padded(x.reshape(-1), bucket(-(-x.size // CHUNK)) * CHUNK)
