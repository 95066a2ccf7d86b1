"""The quantizers by name. A new one is a file beside this and a line here."""

import math
from typing import Any

from ggjax.codec.quantize import _dictionary, _levels, _lossless, _rf8, _scaled, _uniform
from ggjax.codec.quantize._quantizer import Quantizer

QUANTIZERS: dict[str, Quantizer] = {
    "uniform": _uniform.QUANTIZER,
    "rf8": _rf8.QUANTIZER,
    "lossless": _lossless.QUANTIZER,
    "dictionary": _dictionary.QUANTIZER,
    "scaled": _scaled.QUANTIZER,
}
"""By the identifiers that files have."""

DECODERS = QUANTIZERS | {"levels": _levels.QUANTIZER}
"""What arrays are decoded by."""

CHOICES: dict[str, tuple[str, ...]] = {"lossless": ("lossless", "dictionary")}
"""The quantizers that an array may have where one is asked for, those that keep the same of it: the shortest is
taken."""

MIN_SIZE = 1024
"""Arrays with fewer elements are kept as they are: their streams, one by one, would take more."""


def is_codable(x: Any, kind: str) -> bool:
    """Whether an array may be coded where a quantizer is asked for; others are kept as they are."""
    if not hasattr(x, "shape") or math.prod(x.shape) < MIN_SIZE:
        return False
    return bool(choices(x, kind))


def choices(x: Any, kind: str) -> list[str]:
    """The quantizers that may code an array where one is asked for."""
    return [k for k in CHOICES.get(kind, (kind,)) if str(x.dtype) in QUANTIZERS[k].dtypes]
