"""From the names of leaves to nested dicts."""

from typing import Any

from ggjax._internal import trees
from ggjax.codec.container._header import FormatError

MOST_PARENTS = 500
"""Dicts in dicts at most: beyond, functions over trees fail, some of them without an exception."""


def nested(path: Any, flat: dict[str, Any]) -> Any:
    """The leaves of a file, in dicts by the parts of their names between slashes.

    Raises:
      FormatError: there are no such dicts.
    """
    if list(flat) == [trees.ROOT]:
        return flat[trees.ROOT]
    out: dict[str, Any] = {}
    for name, x in flat.items():
        *parents, last = name.split("/")
        if len(parents) > MOST_PARENTS:
            raise FormatError(f"{path}: leaf {name!r:.200} lies {len(parents)} dicts deep: take flat=True")
        node: Any = out
        for p in parents:
            node = node.setdefault(p, {})
            if not isinstance(node, dict):
                raise FormatError(f"{path}: leaf {name!r:.200} lies under another leaf: take like or flat=True")
        if last in node:
            raise FormatError(f"{path}: leaf {name!r:.200} lies above another leaf: take like or flat=True")
        node[last] = x
    return out
