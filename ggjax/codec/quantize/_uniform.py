"""Quantizer "uniform": levels q = round(w / step), halves to even, as 32-bit two's complement numbers.

A level stands for q step, or with centroids for (q + sign(q) c) step: c says how far the mean of the weights
of such a level lies from its middle, in steps.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec._host import namespace_of
from ggjax.codec.quantize._quantizer import FLOATS, Prepared, Quantizer, only

SMALLEST, LARGEST = 2.0**-120, 2.0**100
"""The range of a step: where float32 keeps all its digits, in the step and in what is computed with it."""

LOWEST_CENTROID = -0.5
"""A weight of level q is no nearer to 0 than |q| - 1/2 steps; a number that large, times the smallest step, is
far above the subnormal ones, which some devices round to 0."""

MOST_CENTROIDS = 255


class Uniform(NamedTuple):
    """The parameters of the quantizer."""

    step: float  # a float32
    centroids: tuple[float, ...] = ()  # of |q| = 1, 2, ..., the last one also for all beyond; in steps


def _prepare(x: np.ndarray, step: np.float32, dead_zone: float, centroids: tuple[float, ...]) -> Prepared:
    # str: the shortest decimal number that names this float32.
    return Prepared(x, Uniform(float(str(step)), centroids), (np.float32(step), np.float32(dead_zone)))


def _keys_of(x: Any, settings: tuple[Any, ...], zeros: Any) -> Any:
    """Levels are sign(w) floor(|w| / step + 1/2 - dead_zone) where there is a dead zone."""
    step, dead_zone = settings
    xp = namespace_of(x)
    t = x.astype(np.float32) / step
    shrunk = xp.sign(t) * xp.floor(xp.abs(t) + (np.float32(0.5) - dead_zone))
    level = xp.where(dead_zone > 0, shrunk, xp.round(t)).astype(np.int32)
    return level.view(np.uint32) if xp is np else lax.bitcast_convert_type(level, np.uint32)


def _arguments(params: Uniform) -> tuple[np.ndarray, ...]:
    return np.float32(params.step), np.array(params.centroids, np.float32)  # type: ignore[return-value]


def _values_of(key: Any, dtype: str, arguments: tuple[Any, ...], zeros: Any) -> Any:
    step, centroids = arguments
    xp = namespace_of(key)
    level = key.view(np.int32) if xp is np else lax.bitcast_convert_type(key, jnp.int32)
    number = level.astype(np.float32)
    if centroids.size:  # added before the product: one after it could be fused with it, and rounded otherwise
        size = xp.where(level < 0, 0 - key, key)
        index = xp.minimum(xp.maximum(size, 1) - 1, np.uint32(centroids.shape[0] - 1))
        found = centroids[index] if xp is np else centroids.at[index].get(mode="promise_in_bounds")
        number = number + xp.sign(number) * found
    with np.errstate(over="ignore"):
        return clipped(number * step, dtype)


def clipped(x: Any, dtype: str) -> Any:
    """Float32 numbers in a dtype, those beyond its range as its largest finite number. NumPy or JAX."""
    largest = min(float(jnp.finfo(dtype).max), float(jnp.finfo(jnp.float32).max))
    with np.errstate(over="ignore", under="ignore"):  # float16 has subnormal numbers here, as it should
        return namespace_of(x).clip(x, np.float32(-largest), np.float32(largest)).astype(jnp.dtype(dtype))


def _stated(params: Uniform) -> dict[str, Any]:
    return {"step": params.step} | ({"centroids": list(params.centroids)} if params.centroids else {})


def _read(stated: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> Uniform:
    only(stated, "step", "centroids")
    step: Any = stated.get("step")
    centroids: Any = stated.get("centroids", [])
    if type(step) not in (int, float):
        raise ValueError("step must be a number")
    if not SMALLEST <= step <= LARGEST:
        raise ValueError(f"step {step!r:.50} is out of range")
    if float(str(np.float32(step))) != step:
        raise ValueError(f"step {step!r:.50} is no float32 in its shortest form")
    listed = isinstance(centroids, list) and len(centroids) <= MOST_CENTROIDS
    if not listed or not all(type(c) in (int, float) and LOWEST_CENTROID <= c <= 1 for c in centroids):
        raise ValueError(f"centroids must be up to {MOST_CENTROIDS} numbers from {LOWEST_CENTROID} to 1")
    return Uniform(float(step), tuple(float(c) for c in centroids))


QUANTIZER = Quantizer(
    dtypes=FLOATS,
    signed=True,
    has_step=True,
    is_finite=True,
    prepare=_prepare,
    keys_of=_keys_of,
    arguments=_arguments,
    values_of=_values_of,
    keys=lambda params, dtype, zeros: 1 << 32,
    stated=_stated,
    read=_read,
)
