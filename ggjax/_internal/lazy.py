"""Names that a package loads when they are first used, so that what needs no JAX starts without it."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def loader(package: str, home: Mapping[str, str], seen: dict[str, Any]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
      package: its name.
      home: the module that each name comes from.
      seen: the package's ``globals()``, which get what was loaded.
    """

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        seen[name] = getattr(importlib.import_module(home[name]), name)
        return seen[name]

    return load
