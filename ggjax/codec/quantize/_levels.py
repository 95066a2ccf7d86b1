"""Levels themselves, in place of the weights that a quantizer makes of them: for weights that stay on levels.

No file names this quantizer: it reads the keys of "uniform" and of "scaled".
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax.codec._host import namespace_of
from ggjax.codec.quantize._quantizer import FLOATS, Quantizer

MOST = 32767
"""Levels of this size and more are all given as this one."""

KINDS = ("uniform", "scaled")
"""The quantizers whose keys it reads."""


def _values_of(key: Any, dtype: str, arguments: tuple[Any, ...], zeros: Any) -> Any:
    xp = namespace_of(key)
    level = key.view(np.int32) if xp is np else lax.bitcast_convert_type(key, jnp.int32)
    return xp.clip(level, -MOST, MOST).astype(np.int16)


QUANTIZER = Quantizer(
    dtypes=FLOATS,
    signed=True,
    has_step=True,
    is_finite=True,
    prepare=lambda x, step, dead_zone, centroids: None,
    keys_of=lambda levels, settings, zeros: levels,
    values_of=_values_of,
    keys=lambda params, dtype, zeros: 1 << 32,
    stated=lambda params: {},
    read=lambda stated, dtype, shape: None,
    held=lambda dtype: "int16",
)
