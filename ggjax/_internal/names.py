"""What a leaf is, as far as its name tells: the names that Flax, Haiku, Equinox and PyTorch give their leaves."""

import re
from typing import Literal

Kind = Literal["bias", "scale", "statistic", "token", "embedding", "weight", "other"]

_START, _END = r"(^|[/_.])", r"($|[/_.])"
_NORM = rf"(norm[^/.]*|{_START}(bn|gn|ln)(f|\d+|_\w+)?)"  # norm, LayerNorm_0, bn1, ln_f

_PATTERNS: dict[Kind, str] = {  # in the order of trial
    "statistic": rf"batch_stats|running_|{_START}(mean|var|ema|average)$",
    "bias": rf"{_START}(b|bias|biases|beta|offset)$",
    "scale": rf"{_START}(scale|gamma)$|{_NORM}[/.](w|weight)$",
    "token": rf"{_START}(cls|cls_token|class_token|mask_token|dist_token)$",
    "embedding": rf"embed|{_START}(wte|wpe|emb){_END}",
    "weight": rf"{_START}(w|kernel|weight|weights)$",
}


def kind_of(name: str) -> Kind:
    """What the leaf of this name (``params/LayerNorm_0/scale``) is; "other" when the name does not tell."""
    name = name.removesuffix("/value")  # nnx variables
    for kind, pattern in _PATTERNS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "other"
