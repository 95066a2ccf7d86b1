"""The picture of frontier.json: ``python -m tests.benchmarks.frontier.plot [FILE]`` (needs matplotlib)."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.frontier import pruning, rounding
from tests.benchmarks.frontier.methods import METHODS

LINES = {"calibrated": "-", "grid": "-", "uniform": "--", "leaf": "--"}
"""Of ways of rounding; the kin that only round, and own ways, are dotted."""


def draw(found: dict[str, Any], path: Path) -> None:
    """Bits per weight against test loss: a panel for each model and length, a colour for each method.

    In a row below, the accuracy with more and more weights set to zero.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    panels, pruned = found["methods"], found.get("prune", {})
    columns, rows = max(len(panels), len(pruned)), 2 if pruned else 1
    figure, axes = plt.subplots(
        rows, columns, figsize=(7 * columns, 4 + 4 * rows), squeeze=False, layout="constrained"
    )
    table20, more = (plt.get_cmap(name).colors for name in ("tab20", "tab20b"))  # type: ignore[attr-defined]
    colours = dict(zip(METHODS, table20 + more, strict=False))
    for ax in axes.flat[len(panels) : columns].tolist() + axes.flat[columns + len(pruned) :].tolist():
        ax.set_axis_off()
    for ax, (key, table) in zip(axes[0], panels.items(), strict=False):
        shown = [r for r in table["rows"] if r["way"] not in {"uniform", "leaf"} - {table["plain"]}]
        for row in shown:
            title = f"{METHODS[row['method']].title}, {rounding.WAYS[row['way']]}"
            for i, points in enumerate(row["curves"]):
                bits, losses = zip(*sorted(points), strict=True)
                style = LINES.get(row["way"], ":")
                label = title if i == 0 else None
                ax.plot(bits, losses, style, color=colours[row["method"]], label=label, linewidth=1)
        top = 1 + 1.2 * max(table["rises"])
        ax.set(xlim=(0, 6), ylim=(0.93 * table["loss"], top * table["loss"]))
        ax.set(xlabel="bits per weight", ylabel="test loss, nats")
        seeds = len(table["seeds"])
        ax.set_title(f"{key}; {table['trials']} trials, {seeds} seed{'s' if seeds > 1 else ''}, or fewer")
        for rise in table["rises"]:
            ax.axhline((1 + rise) * table["loss"], color="0.85", linewidth=0.6, zorder=0)
    for ax, (key, table) in zip(axes[-1], pruned.items(), strict=False):
        for row in table["rows"]:
            title = f"{METHODS[row['method']].title}, {pruning.WAYS[row['by']]}"
            style = "-" if row["by"] == "magnitude" else "--"
            ax.plot(table["shares"], row["accuracy"], style, color=colours[row["method"]], label=title)
        ax.set(xlabel="share of the weights set to zero", ylabel="test accuracy", title=key)
        ax.legend(fontsize=6)
    named = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    # Below all panels, where it covers none of them.
    figure.legend(named.values(), named.keys(), loc="outside lower center", fontsize=7, ncols=columns + 2)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[1] / "frontier.json"
    parser.add_argument("file", nargs="?", type=Path, default=default, help="default: %(default)s")
    path = parser.parse_args().file
    draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(path.with_suffix(".png"), file=sys.stderr)


if __name__ == "__main__":
    main()
