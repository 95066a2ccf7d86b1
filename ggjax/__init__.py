"""ggjax: generalized-Gaussian priors for neural-network weights, as pure functions over parameter trees.

Names are loaded when they are first used, so that the command line answers before JAX is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggjax import codec as codec
    from ggjax import gennorm as gennorm
    from ggjax import rate as rate
    from ggjax import rf8 as rf8
    from ggjax._backslash import BackSlashState as BackSlashState
    from ggjax._backslash import backslash as backslash
    from ggjax._backslash import follow_learning_rate as follow_learning_rate
    from ggjax._deepshape import DeepShapeInfo as DeepShapeInfo
    from ggjax._deepshape import deepshape as deepshape
    from ggjax._initializers import gg_init as gg_init
    from ggjax._initializers import gg_reinit as gg_reinit
    from ggjax._stochastic import apply_updates_stochastic as apply_updates_stochastic
    from ggjax.codec import Compressed as Compressed
    from ggjax.codec import FormatError as FormatError
    from ggjax.codec import compress as compress
    from ggjax.codec import compress_file as compress_file
    from ggjax.codec import decompress as decompress
    from ggjax.codec import decompress_file as decompress_file
    from ggjax.codec import inspect_file as inspect_file
    from ggjax.codec import load_file as load_file
    from ggjax.codec import save_file as save_file
    from ggjax.codec import verify_file as verify_file

__version__ = "0.1.0"

_MODULES = ("codec", "gennorm", "rate", "rf8")
_NAMES = {
    "_backslash": ("BackSlashState", "backslash", "follow_learning_rate"),
    "_deepshape": ("DeepShapeInfo", "deepshape"),
    "_initializers": ("gg_init", "gg_reinit"),
    "_stochastic": ("apply_updates_stochastic",),
    "codec": (
        "Compressed",
        "FormatError",
        "compress",
        "compress_file",
        "decompress",
        "decompress_file",
        "inspect_file",
        "load_file",
        "save_file",
        "verify_file",
    ),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ggjax.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'ggjax' has no attribute {name!r}")
    thing = getattr(importlib.import_module(f"ggjax.{_WHERE[name]}"), name)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_WHERE} - {"Any", "TYPE_CHECKING", "importlib"})
