"""Results that outlive the process: one line of JSON for each finished cell, appended at once."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Once: TypeAlias = Callable[[Mapping[str, Any], Callable[[], dict[str, Any]]], dict[str, Any]]
"""The result of a cell, by what was measured; made if it is not there."""

FILE = "cells.jsonl"


def opened(folder: Path) -> Once:
    """The cells of a folder; a last line that was cut off is passed over."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text)
    lines = [json.loads(line) for line in text.splitlines()]
    found = {_name(cell["key"]): cell["result"] for cell in lines}

    def once(key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        name = _name(key)
        if name not in found:
            line = json.dumps({"key": dict(key), "result": make()})
            with path.open("a") as f:
                f.write(line + "\n")
            found[name] = json.loads(line)["result"]
        return found[name]

    return once


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)
