"""The picture of frontier.json: ``python -m tests.benchmarks.frontier.plot [FILE]`` (needs matplotlib)."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.frontier import pruning
from tests.benchmarks.frontier.methods import METHODS

STYLES = {"calibrated": "-", "grid": "-", "uniform": "--", "leaf": "--"}
"""Of ways of rounding; the kin that only round, and own ways, are dotted."""
MEANING = {
    "-": "calibrated, or on that grid",
    "--": "one step for all, or for each leaf",
    ":": "its own rounding",
}
OURS = ("backslash", "on_grid", "muon_backslash", "muon_on_grid", "to_rate")
"""Drawn with thicker lines where they are calibrated or on the grid."""


def draw(found: dict[str, Any], path: Path) -> None:
    """How far the test loss is above that of the best-tuned Adam, against the bits per weight that it takes.

    A panel for each model and length, a colour for each method; in a row below, the accuracy with more and more
    weights set to zero.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    panels, pruned = found["methods"], found.get("prune", {})
    columns, rows = max(len(panels), len(pruned)), 2 if pruned else 1
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.5 * columns, 2 + 4 * rows), squeeze=False, layout="constrained"
    )
    table20, more = (plt.get_cmap(name).colors for name in ("tab20", "tab20b"))  # type: ignore[attr-defined]
    colours = dict(zip(METHODS, table20 + more, strict=False))
    for ax in axes.flat[len(panels) : columns].tolist() + axes.flat[columns + len(pruned) :].tolist():
        ax.set_axis_off()
    for ax, (key, table) in zip(axes[0], panels.items(), strict=False):
        _bits_at_rises(ax, table, colours)
        seeds = len(table["seeds"])
        ax.set_title(f"{key}; {table['trials']} trials, {seeds} seed{'s' if seeds > 1 else ''}, or fewer")
    for ax, (key, table) in zip(axes[-1], pruned.items(), strict=False):
        for row in table["rows"]:
            title = f"{METHODS[row['method']].title}, {pruning.WAYS[row['by']]}"
            style = "-" if row["by"] == "magnitude" else "--"
            ax.plot(table["shares"], row["accuracy"], style, color=colours[row["method"]], label=title)
        ax.set(xlabel="share of the weights set to zero", ylabel="test accuracy", title=key)
        ax.legend(fontsize=6)
    trained = {row["method"] for table in panels.values() for row in table["rows"]}
    lines = [
        Line2D([], [], color=c, linewidth=2, label=METHODS[n].title) for n, c in colours.items() if n in trained
    ]
    lines += [Line2D([], [], color="0.3", linestyle=s, label=text) for s, text in MEANING.items()]
    # Below all panels, where it covers none of them.
    figure.legend(handles=lines, loc="outside lower center", fontsize=8, ncols=columns + 2)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _bits_at_rises(ax: Any, table: dict[str, Any], colours: dict[str, Any]) -> None:
    """The rows of a table, but for those of the other way of plain rounding; rises are on a scale of ratios."""
    for row in table["rows"]:
        if row["way"] in {"uniform", "leaf"} - {table["plain"]}:
            continue
        reached = [(b, 100 * r) for b, r in zip(row["bits"], table["rises"], strict=True) if b is not None]
        if reached:
            style, colour = STYLES.get(row["way"], ":"), colours[row["method"]]
            width = 2 if row["method"] in OURS and style == "-" else 1
            ax.plot(*zip(*reached, strict=True), style, marker=".", color=colour, linewidth=width)
    ticks = [100 * r for r in table["rises"]]
    ax.set(xlim=(0, 6.5), xlabel="bits per weight", ylabel="test loss over that of Adam, %", yscale="log")
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks], minor=False)
    ax.minorticks_off()
    ax.grid(axis="y", color="0.9")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[1] / "frontier.json"
    parser.add_argument("file", nargs="?", type=Path, default=default, help="default: %(default)s")
    path = parser.parse_args().file
    draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(path.with_suffix(".png"), file=sys.stderr)


if __name__ == "__main__":
    main()
