"""The tables of the benchmark as Markdown, from what was measured: ``python -m
tests.benchmarks.calibrated.tables [FILE]``."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ggjax._internal.atomic import new_file
from tests.benchmarks.calibrated import arms, frontiers, gram, measure
from tests.benchmarks.calibrated.measure import Point

NAMES = (
    arms.PLAIN
    | arms.CALIBRATED
    | gram.ARMS
    | {
        frontiers.COMPRESS: "`compress(loss_rise=, sensitivity=)`",
        frontiers.MEASURED: "`compress(loss_rise=, sensitivity=, loss=)`",
        frontiers.COMPENSATED: "`sensitivity.compensate`",
    }
)
RISES = (0.005, 0.01, 0.02, 0.05)
COSINES = (0.999, 0.99, 0.97)
DECIBELS = (8.5, 10.9)


FILE = Path(__file__).parents[1] / "calibrated.json"
DIGITS = 5
"""Of the numbers in the file."""


def put(found: dict[str, Any], path: Path) -> None:
    """Put what was found into a file, in place of what it has of the same arms and batches."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    for name, new in found.items():
        old = whole.get(name, {})
        if "frontiers" in new:
            rows = {(r["arm"], r["batches"]): r for r in [*old.get("frontiers", []), *new["frontiers"]]}
            order = {arm: i for i, arm in enumerate(NAMES)}
            new = new | {"frontiers": sorted(rows.values(), key=lambda r: (order[r["arm"]], r["batches"]))}
        whole[name] = old | new
    with new_file(path) as f:
        f.write((json.dumps(_short(whole)) + "\n").replace('{"arm"', '\n{"arm"').encode())


def _short(x: Any) -> Any:
    """The same with fewer digits."""
    if isinstance(x, dict):
        return {n: _short(v) for n, v in x.items()}
    if isinstance(x, list):
        return [_short(v) for v in x]
    return float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x


def markdown(name: str, found: dict[str, Any]) -> str:
    """All tables of a subject."""
    lines = [f"### {name}", ""]
    for title, heads, cost, targets in _views(found):
        lines += [title, "", *_frontiers(found["frontiers"], heads, cost, targets), ""]
    lines += _asked(found)
    if "speed" in found:
        lines += [f"`update` takes {found['speed']['ratio']:.2f}x of the gradient of one batch.", ""]
    return "\n".join(lines)


def rounding(sizes: Sequence[dict[str, Any]]) -> str:
    """The speed of the rounding."""
    lines = [["matrix", "feedback", "million weights/s", "in products of the matrix with its factor"]]
    for x in sizes:
        n = x["size"]
        speed = f"{x['weights_per_second'] / 1e6:.1f}"
        lines.append([f"{n} x {n}", f"{x['sides']} side(s)", speed, f"{x['products']:.1f}"])
    return "\n".join(table(lines))


def _views(found: dict[str, Any]) -> list[tuple[str, list[str], Callable[[Point], float], Sequence[float]]]:
    """(title, heads, cost, targets) of every table of bits."""
    if found["output"] == "values":
        cosines, noises = [1 - c for c in COSINES], [10 ** (-d / 10) for d in DECIBELS]
        return [
            ("Bits at a mean cosine", [f"{c:g}" for c in COSINES], lambda p: 1 - p["cosine"], cosines),
            ("Bits at an SNR", [f"{d:g} dB" for d in DECIBELS], lambda p: 10 ** (-p["snr_db"] / 10), noises),
        ]
    heads = [f"+{100 * r:g} %" for r in RISES]
    loss = found["unit"] / found.get("share", 1)
    return [
        ("Bits where the loss has risen", heads, lambda p: p["rise"], RISES),
        ("Bits where the divergence is such a share of the loss", heads, lambda p: p["kl"] / loss, RISES),
    ]


def _frontiers(
    rows: Sequence[dict[str, Any]], heads: list[str], cost: Callable[[Point], float], targets: Sequence[float]
) -> list[str]:
    base = next((r for r in rows if r["arm"] == "uniform"), None)
    least = measure.bits_at_all(base["points"], cost, targets) if base else [math.nan] * len(targets)
    lines = [["arm", "batches", *heads]]
    for row in rows:
        bits = measure.bits_at_all(row["points"], cost, targets)
        cells = [_with_share(b, u) if row is not base else _number(b) for b, u in zip(bits, least, strict=True)]
        lines.append([NAMES.get(row["arm"], row["arm"]), str(row["batches"] or ""), *cells])
    return table(lines)


def _asked(found: dict[str, Any]) -> list[str]:
    """Predicted against measured."""
    lines = [["arm", "batches", "asked", "bits", "measured / asked", "divergence / asked", "EAR"]]
    if found["output"] == "values":
        lines = [["arm", "batches", "asked", "bits", "measured / asked"]]
    for row in found["frontiers"]:
        for p in row["points"]:
            if "asked" not in p:
                continue
            own = [NAMES[row["arm"]], str(row["batches"]), f"{100 * p['asked']:g} %", f"{p['bits']:.3f}"]
            if found["output"] == "values":
                ratios = [f"{10 ** (-p['snr_db'] / 10) / p['asked']:.2f}"]
            else:
                loss = found["unit"] / found.get("share", 1)
                ratios = [
                    f"{p['rise'] / p['asked']:.2f}",
                    f"{p['kl'] / loss / p['asked']:.2f}",
                    f"{p['ear']:.4f}",
                ]
            lines.append(own + ratios)
    return ["Asked and measured", "", *table(lines), ""] if len(lines) > 1 else []


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.3f}"


def _with_share(x: float, base: float) -> str:
    return _number(x) if math.isnan(x / base) else f"{x:.3f} ({x / base:.2f}x)"


def table(lines: list[list[str]]) -> list[str]:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help="default: %(default)s")
    for name, found in json.loads(parser.parse_args().file.read_text()).items():
        print(rounding(found["sizes"]) if name == "rounding" else markdown(name, found))


if __name__ == "__main__":
    main()
