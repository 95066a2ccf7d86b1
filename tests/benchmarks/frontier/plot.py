"""The picture of frontier.json: ``python -m tests.benchmarks.frontier.plot [FILE]`` (needs matplotlib)."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.frontier import rounding
from tests.benchmarks.frontier.methods import METHODS

LINES = {"calibrated": "-", "uniform": "--", "leaf": "--"}
"""Of ways of rounding; the kin that only round, and own ways, are dotted."""


def draw(found: dict[str, Any], path: Path) -> None:
    """Bits per weight against test loss: a panel for each model and length, a colour for each method."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    panels = found["methods"]
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 6), squeeze=False)
    colours = dict(zip(METHODS, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    for ax, (key, table) in zip(axes[0], panels.items(), strict=True):
        shown = [r for r in table["rows"] if r["way"] not in {"uniform", "leaf"} - {table["plain"]}]
        for row in shown:
            title = f"{METHODS[row['method']].title}, {rounding.WAYS[row['way']]}"
            for i, points in enumerate(row["curves"]):
                bits, losses = zip(*sorted(points), strict=True)
                style = LINES.get(row["way"], ":")
                label = title if i == 0 else None
                ax.plot(bits, losses, style, color=colours[row["method"]], label=label, linewidth=1)
        top = 1 + 1.2 * max(table["rises"])
        ax.set(xlim=(0, 6), ylim=(0.97 * table["loss"], top * table["loss"]))
        ax.set(xlabel="bits per weight", ylabel="test loss, nats")
        seeds = len(table["seeds"])
        ax.set_title(f"{key}; {table['trials']} trials, {seeds} seed{'s' if seeds > 1 else ''}")
        for rise in table["rises"]:
            ax.axhline((1 + rise) * table["loss"], color="0.85", linewidth=0.6, zorder=0)
        ax.legend(fontsize=6, ncols=2)
    figure.tight_layout()
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
