"""ggjax: generalized-Gaussian priors for neural-network weights, as pure functions over parameter trees.

Names are loaded when they are first used, so that the command line answers before JAX is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of the list below (a test compares the two)
    from ggjax import baselines as baselines
    from ggjax import codec as codec
    from ggjax import gennorm as gennorm
    from ggjax import init as init
    from ggjax import masks as masks
    from ggjax import rate as rate
    from ggjax import reshape as reshape
    from ggjax import rf8 as rf8
    from ggjax import sensitivity as sensitivity
    from ggjax import serve as serve
    from ggjax import train as train
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
    from ggjax.init import gg_init as gg_init
    from ggjax.init import gg_reinit as gg_reinit
    from ggjax.reshape import DeepShapeInfo as DeepShapeInfo
    from ggjax.reshape import deepshape as deepshape
    from ggjax.train import BackSlashState as BackSlashState
    from ggjax.train import BackSlashToRateState as BackSlashToRateState
    from ggjax.train import apply_updates_stochastic as apply_updates_stochastic
    from ggjax.train import backslash as backslash
    from ggjax.train import backslash_to_rate as backslash_to_rate
    from ggjax.train import follow_learning_rate as follow_learning_rate

__version__ = "0.1.0"

_PUBLIC = {
    "baselines": (),
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
    "gennorm": (),
    "init": ("gg_init", "gg_reinit"),
    "masks": (),
    "rate": (),
    "reshape": ("DeepShapeInfo", "deepshape"),
    "rf8": (),
    "sensitivity": (),
    "serve": (),
    "train": (
        "BackSlashState",
        "BackSlashToRateState",
        "apply_updates_stochastic",
        "backslash",
        "backslash_to_rate",
        "follow_learning_rate",
    ),
}
"""The public packages, and the names of each that can be had from ``ggjax`` itself."""

_HOME = {name: package for package, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_PUBLIC, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return importlib.import_module(f"ggjax.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'ggjax' has no attribute {name!r}")
    thing = getattr(importlib.import_module(f"ggjax.{_HOME[name]}"), name)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted(__all__)
