"""The tables of frontier.json as text."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.benchmarks.calibrated.tables import table as lines_of
from tests.benchmarks.frontier import plan, pruning, rounding
from tests.benchmarks.frontier.methods import METHODS

Table = dict[str, Any]


def show(found: dict[str, Any]) -> str:
    """Everything that the file holds, as Markdown."""
    parts = []
    for what, write in (("methods", methods), ("arms", arms), ("prune", prune)):
        for key, table in found.get(what, {}).items():
            parts.append(write(key, table))
        if what == "methods" and found.get(what):
            parts += [short(found[what]), *(headline(k, t) for k, t in found[what].items())]
    return "\n\n".join(parts)


def methods(key: str, table: Table) -> str:
    """Bits at equal loss, and where our methods stand."""
    adam = ", ".join(f"{k} {v:g}" for k, v in table["adam"].items() if k != "own")
    head = (
        f"### {key}: bits per weight at equal loss\n\n{table['trials']} trials of Adam on the validation "
        f"split, {_seeds(table)} on the test split. Rises are over the float loss of the best of them, "
        f"{table['loss']:.4f}{_spread(table['loss_std'], '.4f')} nats ({adam}); rows of fewer trials have been "
        f"compared with Adam of as many."
    )
    rows = [["method", "rounding", *_rises(table["rises"]), "float loss", "trials, seeds"]]
    for row in table["rows"]:
        cells = [_bits(b, s) for b, s in zip(row["bits"], row["bits_std"], strict=True)]
        name = METHODS[row["method"]].title
        counts = f"{row['trials']}, {len(row['seeds'])}"
        rows.append([name, rounding.WAYS[row["way"]], *cells, f"{row['loss']:.4f}", counts])
    notes = [
        f"{METHODS[r['method']].title}: the bits asked for are met within {100 * r['off_target']:.1f} %."
        for r in table["rows"]
        if r.get("off_target") is not None
    ][:1]
    lines = [head, "", *lines_of(rows), *["", *notes][: 2 * len(notes)]]
    return "\n".join([*lines, *(_tried(table) if table.get("tried") else [])])


def short(tables: dict[str, Table]) -> str:
    """The shortest training of each model side by side: bits at 2, 5 and 20 %, as trained and calibrated.

    An asterisk stands at rows of fewer trials than the others of the table.
    """
    shortest: dict[str, str] = {}
    for key in tables:
        name = key.split(",")[0]
        shortest[name] = min(key, shortest.get(name, key), key=lambda k: int(k.split()[1]))
    rises = {k: [r for r in tables[k]["rises"] if r in (0.02, 0.05, 0.2)] for k in shortest.values()}
    heads = [[f"{key}: {', '.join(_rises(at))}", "calibrated"] for key, at in rises.items()]
    lines = [["", *(cell for head in heads for cell in head)]]
    for method in METHODS:
        for way in rounding.ways_of(method):
            if way == "leaf":
                continue
            title = METHODS[method].title + (
                f", then {rounding.WAYS[way]}" if way in rounding.DATA_FREE else ""
            )
            cells = []
            for key, at in rises.items():
                cells += [_at(tables[key], method, way, at)]
                calibrated = way not in rounding.DATA_FREE
                cells += [_at(tables[key], method, "calibrated", at) if calibrated else ""]
            if any(cells):
                lines.append([title, *cells])
    return "\n".join(["### The short trainings", "", *lines_of(lines)])


HEADLINE = {
    ("adam", "uniform"): "Adam, then one step for all weights",
    ("adam", "entquant"): "Adam, then a scale for each row (EntQuant)",
    ("adam", "calibrated"): "Adam, then calibrated rounding",
    ("backslash", "calibrated"): "Adam and BackSlash, then calibrated rounding",
    ("on_grid", "grid"): "Adam and BackSlash, the last sixth on the grid of calibrated rounding",
    ("muon", "calibrated"): "Muon, then calibrated rounding",
    ("muon_on_grid", "grid"): "Muon and BackSlash, the last sixth on the grid of calibrated rounding",
}
"""What stands at the top of the README, by method and way of rounding."""


def headline(key: str, table: Table) -> str:
    """Some rows in words, at 2 and 5 %, and as multiples of the first of them."""
    rows = {(r["method"], r["way"]): r["bits"] for r in table["rows"]}
    at = [i for i, rise in enumerate(table["rises"]) if rise in (0.02, 0.05)]
    lines = [["", *(cell for head in _rises([table["rises"][i] for i in at]) for cell in (head, ""))]]
    first = next(iter(HEADLINE))
    for name, title in HEADLINE.items():
        if name in rows:
            pairs = [(rows[name][i], rows[first][i]) for i in at]
            lines.append([title, *(cell for b, f in pairs for cell in (_bits(b, None), _times(b, f)))])
    return "\n".join([f"### {key}, in short", "", *lines_of(lines)])


def _times(bits: float | None, first: float | None) -> str:
    return "-" if bits is None or first is None else f"{bits / first:.2f}x"


def _at(table: Table, method: str, way: str, rises: Sequence[float]) -> str:
    """The bits of a row at some rises; nothing where there is no such row."""
    for row in table["rows"]:
        if (row["method"], row["way"]) == (method, way):
            at = zip(table["rises"], row["bits"], strict=True)
            fewer = "*" if row["trials"] < table["trials"] else ""
            return ", ".join(_bits(b, None) for rise, b in at if rise in rises) + fewer
    return ""


def _tried(table: Table) -> list[str]:
    """The trials, from which one sees what the first weights and the strengths give."""
    rows = [["trial", "rounding", "variance / Glorot's", "own number", *_rises(table["rises"]), "float loss"]]
    for row in table["tried"]:
        cells = [
            METHODS[row["method"]].title,
            rounding.WAYS[row["way"]],
            f"{row['variance']:g}",
            f"{row['own']:g}",
        ]
        rows.append([*cells, *(_bits(b, None) for b in row["bits"]), f"{row['loss']:.4f}"])
    return [
        "",
        "The trials, on the validation split, over the loss of the best Adam there:",
        "",
        *lines_of(rows),
    ]


def arms(key: str, table: Table) -> str:
    """The experiment of arms: a row for each way to train and first law, a column for each variance."""
    rises = _rises(table["rises"])
    head = (
        f"### {key}: first weights, weight decay and BackSlash\n\nBits per weight on the validation split, one "
        f"seed, {rounding.WAYS[table['plain']]}, at rises of {', '.join(rises)} over a loss of "
        f"{table['loss']:.4f}. {len(table['rows'])} of 56 trainings are done."
    )
    rows = [["method", "init", "variance / Glorot's", "decay", *rises, "float loss"]]
    for row in table["rows"]:
        decay = row["own"] if METHODS[row["method"]].tunes == "decay" else row["decay"]
        cells = [_bits(b, None) for b in row["bits"]]
        own = [METHODS[row["method"]].title, _law(row), f"{row['variance']:g}", f"{decay:g}"]
        rows.append([*own, *cells, f"{row['loss']:.4f}"])
    return "\n".join([head, "", *lines_of(rows), *_means(table)])


def _law(row: Table) -> str:
    """Of the first weights."""
    return "Gaussian" if row["nu"] == 2 else f"GG, nu = {row['nu']:g}"


def _means(table: Table) -> list[str]:
    """What each of the things that vary gives, over all values of the others."""
    groupings: tuple[Callable[[Table], str], ...] = (
        lambda r: METHODS[r["method"]].title + (f", decay {r['own']:g}" if r["method"] == "adamw" else ""),
        _law,
        lambda r: f"{r['variance']:g} of Glorot's variance",
    )
    rows = [["mean over all with", *_rises(table["rises"]), "float loss"]]
    for of in groupings:
        for name in dict.fromkeys(map(of, table["rows"])):
            group = [r for r in table["rows"] if of(r) == name]
            logs = np.log([[plan.UNREACHED if b is None else b for b in r["bits"]] for r in group])
            cells = [_bits(b, None) for b in np.exp(logs.mean(0))]
            rows.append([name, *cells, f"{np.mean([r['loss'] for r in group]):.4f}"])
    unreached = f"Geometric means of the bits, a rise that is not reached with {plan.UNREACHED:g}:"
    return ["", unreached, "", *lines_of(rows)]


def prune(key: str, table: Table) -> str:
    """Accuracy and loss with a share of the weights at zero."""
    head = (
        f"### {key}: accuracy (and loss) with a share of the weights set to zero\n\nThe best of "
        f"{table['trials']} trials at 50 %, on the validation split; {_seeds(table)} on the test split."
    )
    rows = [["method", "which weights", *(f"{100 * s:g} %" for s in table["shares"])]]
    for row in table["rows"]:
        cells = [f"{a:.3f} ({x:.3f})" for a, x in zip(row["accuracy"], row["loss"], strict=True)]
        rows.append([METHODS[row["method"]].title, pruning.WAYS[row["by"]], *cells])
    return "\n".join([head, "", *lines_of(rows)])


def _seeds(table: Table) -> str:
    n = len(table["seeds"])
    return f"{n} seeds" if n > 1 else "1 seed"


def _rises(rises: Sequence[float]) -> list[str]:
    return [f"+{100 * r:g} %" for r in rises]


def _bits(mean: float | None, std: float | None) -> str:
    return "-" if mean is None else f"{mean:.2f}{_spread(std, '.2f')}"


def _spread(std: float | None, spec: str) -> str:
    return "" if std is None else f" ± {std:{spec}}"
