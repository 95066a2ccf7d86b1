"""Quantizer "rf8": the codes of ``ggjax.rf8``, one exponent for a whole array.

A key is the code with its sign moved to the end: 0 for zero, otherwise 2 (code & 127) + sign - 1.

A file states the exponent as a number; an ``RF8Array`` holds it as an array with as many dimensions as its
codes, each 1 long. In older files that hold an ``RF8Array`` itself, it has no dimensions.

``ggjax.rf8`` is loaded when it is first used: most files have no such codes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ggjax
from ggjax.codec._host import bucket, namespace_of, outside_trace, padded
from ggjax.codec.quantize._quantizer import FLOATS, Prepared, Quantizer, only

LOWEST, HIGHEST = -125, 113
"""The exponents that arrays can have."""

PIECE = 1 << 18
"""Weights are encoded by programs for whole pieces, so that few are compiled."""


class RF8(NamedTuple):
    """The parameters of the quantizer."""

    exponent: int


def _prepare(x: np.ndarray, step: np.float32, dead_zone: float, centroids: tuple[float, ...]) -> Prepared:
    q = ggjax.rf8.encode(padded(x.reshape(-1), bucket(-(-x.size // PIECE)) * PIECE))  # zeros change nothing
    codes = np.asarray(q.codes)[: x.size].reshape(x.shape)
    return Prepared(codes, RF8(np.asarray(q.exponents).item()), ())


def _keys_of(codes: Any, settings: tuple[Any, ...], zeros: Any) -> Any:
    code = codes.astype(np.uint32)
    return namespace_of(codes).where(code == 0, np.uint32(0), ((code & 127) << 1) + (code >> 7) - 1)


def _values_of(key: Any, dtype: str, arguments: tuple[Any, ...], zeros: Any) -> Any:
    code = (key + 1) >> 1 | (((key + 1) & 1) << 7)
    return namespace_of(key).where(key == 0, 0, code).astype(np.uint8)


def _weights_of(codes: Any, params: RF8, dtype: str, steps: Any = None) -> Any:
    if not isinstance(codes, np.ndarray):
        return ggjax.rf8.decode(array_of(codes, params, dtype))
    with outside_trace():  # 256 numbers are all that there are
        table = ggjax.rf8.decode(array_of(jnp.arange(256, dtype=jnp.uint8), params, dtype))
        return np.asarray(table).astype(jnp.dtype(dtype))[codes]


def array_of(codes: Any, params: RF8, dtype: str) -> "ggjax.rf8.RF8Array":
    """The ``RF8Array`` of codes that share an exponent."""
    if isinstance(codes, np.ndarray):
        codes = jax.device_put(codes)  # jnp.asarray would compile a program for every shape
    exponents = jnp.full((1,) * codes.ndim, params.exponent, jnp.int8)
    return ggjax.rf8.RF8Array(codes, exponents, jax.dtypes.canonicalize_dtype(dtype))


def is_one_exponent(want: tuple[int, ...], got: tuple[int, ...]) -> bool:
    """Whether the shape of ``exponents`` in a file means the same as that of an array: one for all codes."""
    return got == () and all(n == 1 for n in want)


def is_encoded(x: Any) -> bool:
    """Whether this is an ``RF8Array``."""
    return isinstance(x, ggjax.rf8.RF8Array)


def _read(stated: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> RF8:
    only(stated, "exponent")
    exponent = stated.get("exponent")
    if type(exponent) is not int or not LOWEST <= exponent <= HIGHEST:
        raise ValueError(f"bad exponent {exponent!r:.50}")
    return RF8(exponent)


QUANTIZER = Quantizer(
    dtypes=FLOATS,
    signed=False,
    has_step=False,
    is_finite=True,
    prepare=_prepare,
    keys_of=_keys_of,
    values_of=_values_of,
    keys=lambda params, dtype, zeros: 255,
    stated=lambda params: params._asdict(),
    read=_read,
    held=lambda dtype: "uint8",
    weights_of=_weights_of,
    wrapped=array_of,
    has_classes=False,
)
