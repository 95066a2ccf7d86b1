"""Quantizer "scaled": levels with a step for every row and column, as calibrated rounding makes them.

The array is seen as b matrices of m rows and n columns. The weight (i, j) of one of them is its level times
step 2^(k / 8), where k is the smaller of row step i + column step j and the limit of the matrix.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import step_grid
from ggjax._internal.step_grid import HIGHEST, LARGEST, LOWEST, SMALLEST
from ggjax.codec._host import namespace_of
from ggjax.codec.quantize._quantizer import FLOATS, Quantizer, only
from ggjax.codec.quantize._uniform import clipped

_PIECE = 1 << 20
"""Weights that the host computes at a time, about."""


class Scaled(NamedTuple):
    """The parameters of the quantizer."""

    step: float  # a float32
    limits: tuple[int, ...]  # of every matrix
    rows: int  # of a matrix
    columns: int
    order: tuple[int, ...] = ()  # the axes of the array, those that count matrices first, then those of rows
    shape: tuple[int, ...] = ()  # of the array
    rise: float = 0.0  # what rounding should cost, by the quadratic model: for people, not for decoders

    @property
    def side(self) -> int:
        """How many steps of rows and columns there are: those of the rows of all matrices, then of columns."""
        return len(self.limits) * (self.rows + self.columns)


def steps_of(params: Scaled, numbers: Any) -> tuple[Any, Any]:
    """(steps of rows (b, m), steps of columns (b, n)) from one after another. NumPy or JAX."""
    b = len(params.limits)
    return numbers[: b * params.rows].reshape(b, -1), numbers[b * params.rows :].reshape(b, -1)


def _weights_of(levels: Any, params: Scaled, dtype: str, numbers: Any) -> Any:
    """The weights of levels, int32 (b m, n) or any shape of that order."""
    table = step_grid.table_of(np.float32(params.step))
    limits = np.array(params.limits, np.int32)
    traced = not isinstance(levels, np.ndarray)
    rows, columns = steps_of(params, jnp.asarray(numbers) if traced else np.asarray(numbers))
    levels = levels.reshape(len(params.limits), params.rows, params.columns)
    if traced:
        place = step_grid.place_of(rows, columns, limits)
        out = clipped(levels.astype(jnp.float32) * jnp.asarray(table)[place], dtype)
    else:
        out = np.empty(levels.shape, jnp.dtype(dtype))
        several = max(_PIECE // (params.rows * params.columns), 1)  # small matrices at a time
        height = max(_PIECE // params.columns, 1)
        for i in range(0, len(levels), several):
            of = slice(i, i + several)
            for j in range(0, params.rows, height):
                some = of, slice(j, j + height)
                place = step_grid.place_of(rows[some], columns[of], limits[of])
                out[some] = clipped(levels[some].astype(np.float32) * table[place], dtype)
    order = params.order or tuple(range(len(params.shape)))
    back = sorted(range(len(order)), key=order.__getitem__)
    return out.reshape([params.shape[a] for a in order]).transpose(back)


def _stated(params: Scaled) -> dict[str, Any]:
    out: dict[str, Any] = {"step": params.step, "limits": list(params.limits), "rows": params.rows}
    out |= {"order": list(params.order)} if params.order else {}
    return out | ({"rise": params.rise} if params.rise else {})


def _read(stated: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> Scaled:
    only(stated, "step", "limits", "rows", "order", "rise")
    step: Any = stated.get("step")
    limits: Any = stated.get("limits")
    rows: Any = stated.get("rows")
    order: Any = stated.get("order", [])
    rise: Any = stated.get("rise", 0)
    if type(step) not in (int, float) or not SMALLEST <= step <= LARGEST:
        raise ValueError(f"step must be a number from 2^-88 to 2^68, got {step!r:.50}")
    if float(str(np.float32(step))) != step:
        raise ValueError(f"step {step!r:.50} is no float32 in its shortest form")
    whole = isinstance(limits, list) and bool(limits) and all(type(x) is int for x in limits)
    if not whole or not all(LOWEST <= x <= HIGHEST for x in limits):
        raise ValueError(f"limits must be whole numbers from {LOWEST} to {HIGHEST}")
    if type(rows) is not int or rows < 1 or math.prod(shape) % (rows * len(limits)) or not math.prod(shape):
        raise ValueError(f"rows {rows!r:.50} of {len(limits)} matrices do not fit the shape {list(shape)}")
    if not isinstance(order, list) or order and sorted(order, key=str) != list(range(len(shape))):
        raise ValueError(f"order must list the axes of {list(shape)}, got {order!r:.50}")
    if type(rise) not in (int, float) or not 0 <= rise < math.inf:
        raise ValueError(f"rise must be a number, got {rise!r:.50}")
    columns = math.prod(shape) // (rows * len(limits))
    return Scaled(float(step), tuple(limits), rows, columns, tuple(order), tuple(shape), float(rise))


def _keys_of(levels: Any, settings: tuple[Any, ...], zeros: Any) -> Any:
    return levels.view(np.uint32) if namespace_of(levels) is np else lax.bitcast_convert_type(levels, np.uint32)


def _values_of(key: Any, dtype: str, arguments: tuple[Any, ...], zeros: Any) -> Any:
    return key.view(np.int32) if namespace_of(key) is np else lax.bitcast_convert_type(key, np.int32)


QUANTIZER = Quantizer(
    dtypes=FLOATS,
    signed=True,
    has_step=True,
    is_finite=True,
    prepare=lambda x, step, dead_zone, centroids: None,  # calibrated rounding makes the levels
    keys_of=_keys_of,
    values_of=_values_of,
    keys=lambda params, dtype, zeros: 1 << 32,
    stated=_stated,
    read=_read,
    held=lambda dtype: "int32",
    weights_of=_weights_of,
    has_classes=False,
)
