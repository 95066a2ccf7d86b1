"""What ``arms`` found, as text for people and as the README's table."""

from typing import Any

NAMES = {
    "glorot": "Adam, Glorot's init",
    "init": "Adam, best init",
    "decay": "AdamW, best init",
    "backslash": "Adam + BackSlash, best init",
}
GAINS = (
    ("init", "glorot", "the init gives, against Glorot's"),
    ("decay", "init", "weight decay gives on top of the init"),
    ("backslash", "init", "BackSlash gives on top of the init"),
    ("backslash", "decay", "BackSlash gives against weight decay"),
)
"""An arm, the arm that it is compared with, and what the comparison shows."""

Found = dict[str, Any]
"""What arms.json holds."""


def show(found: Found) -> str:
    """The trials, the table, and what the init and BackSlash give."""
    heads = [f"+{100 * rise:g} %" for rise in found["rises"]]
    lines = ["Trials, seed 0, validation split", ""]
    lines.append(
        _row([(6, "init"), (8, "decay"), (10, "strength"), (9, "loss"), *_all(9, heads), (9, "score")])
    )
    for t in found["trials"]:
        settings = [(6, f"{t['init']:g}"), (8, f"{t['decay']:g}"), (10, f"{t['strength']:g}")]
        numbers = [_number(x, ".3f") for x in (*t["bits"], t["score"])]
        lines.append(_row([*settings, (9, f"{t['loss']:.4f}"), *_all(9, numbers)]))
    seeds = ", ".join(map(str, found["seeds"]))
    lines += ["", f"Test split, mean and standard deviation of seeds {seeds}; bits per parameter", ""]
    lines.append(_row([(-42, ""), (15, "loss"), *_all(13, heads)]))
    for row in found["table"]:
        cells = [_spread(b, s) for b, s in zip(row["bits"], row["bits_std"], strict=True)]
        loss = _number(row["loss"], ".3f") + " ± " + _number(row["loss_std"], ".3f")
        lines.append(_row([(-42, NAMES[row["arm"]]), (15, loss), *_all(13, cells)]))
    lines.append("")
    for what, cells in _gains(found):
        lines.append(_row([(-42, what), (15, ""), *_all(13, cells)]))
    return "\n".join(lines)


def markdown(found: Found) -> str:
    """The table of the test split, as it stands in the README."""
    heads = ["", "loss, not quantized", *(f"bits at +{100 * rise:g} %" for rise in found["rises"])]
    rows = [heads, ["---"] * len(heads)]
    for row in found["table"]:
        bits = [_spread(b, s) for b, s in zip(row["bits"], row["bits_std"], strict=True)]
        rows.append([_describe(row), f"{row['loss']:.3f} ± {row['loss_std']:.3f}", *bits])
    rows += [[what, "", *cells] for what, cells in _gains(found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def changes(row: dict[str, Any], other: dict[str, Any]) -> list[float | None]:
    """The change of the bits against another row, in percent; None where one of them has no bits."""
    pairs = zip(row["bits"], other["bits"], strict=True)
    return [None if a is None or b is None else 100 * (a / b - 1) for a, b in pairs]


def _gains(found: Found) -> list[tuple[str, list[str]]]:
    rows = {row["arm"]: row for row in found["table"]}
    return [
        (what, [_number(x, "+.0f") + " %" for x in changes(rows[name], rows[other])])
        for name, other, what in GAINS
        if name in rows and other in rows
    ]


def _describe(row: dict[str, Any]) -> str:
    """The settings of an arm in words."""
    init = "Glorot's init" if row["init"] == 1 else f"init of {row['init']:g} times Glorot's variance"
    how = f"AdamW, weight decay {row['decay']:g}" if row["decay"] else "Adam"
    backslash = f" + BackSlash, strength {row['strength']:g}" if row["strength"] else ""
    return f"{how}{backslash}, {init}"


def _spread(mean: float | None, std: float | None) -> str:
    return f"{_number(mean, '.2f')} ± {_number(std, '.2f')}"


def _number(x: float | None, spec: str) -> str:
    return "-" if x is None else format(x, spec)


def _all(width: int, texts: list[str]) -> list[tuple[int, str]]:
    return [(width, text) for text in texts]


def _row(cells: list[tuple[int, str]]) -> str:
    """Texts set in columns; a negative width sets to the left."""
    return "".join(f"{text:<{-width}}" if width < 0 else f"{text:>{width}}" for width, text in cells).rstrip()
