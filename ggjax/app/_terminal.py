"""What the command line prints: text that any terminal takes, tables, JSON."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def prepare() -> None:
    """Let the output escape what its encoding does not have, instead of failing in the middle."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def shown(text: object) -> str:
    """A name as it may be printed: what is no plain character, as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text)
    )


def as_json(value: Any) -> str:
    """JSON, which has no NaN and no infinity: null stands for them."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def warn(*lines: str) -> None:
    """Lines on stderr."""
    for line in lines:
        print(f"ggjax: {shown(line)}", file=sys.stderr)


def table(rows: Iterable[Sequence[str]], left: int) -> str:
    """Aligned columns, the first ones to the left, below a head."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in pairs]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
