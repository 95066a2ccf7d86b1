"""The quantizers by name. A new one is a file beside this and a line here."""

import math
from typing import Any

from ggjax.codec.quantize import _lossless, _rf8, _uniform
from ggjax.codec.quantize._quantizer import Quantizer

QUANTIZERS: dict[str, Quantizer] = {
    "uniform": _uniform.QUANTIZER,
    "rf8": _rf8.QUANTIZER,
    "lossless": _lossless.QUANTIZER,
}
"""By the identifiers that files have."""

MIN_SIZE = 1024
"""Arrays with fewer elements are kept as they are: their streams, one by one, would take more."""


def is_codable(x: Any, kind: str) -> bool:
    """Whether an array is coded by a quantizer; others are kept as they are."""
    if not hasattr(x, "shape") or math.prod(x.shape) < MIN_SIZE:
        return False
    return str(x.dtype) in QUANTIZERS[kind].dtypes
