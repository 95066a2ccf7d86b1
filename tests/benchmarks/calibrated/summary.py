"""The README's tables of calibrated compression: ``python -m tests.benchmarks.calibrated.summary``."""

import json
import math
from typing import Any

from tests.benchmarks.calibrated import frontiers, measure, tables
from tests.benchmarks.calibrated.tables import DECIBELS, FILE, RISES

WAYS = {"uniform": "one step for all", "both": "calibrated", frontiers.COMPRESS: "calibrated, as asked"}
LOGITS = {
    "lm-adam": "language model, Adam",
    "lm-small": "the same from a small init",
    "lm-backslash": "the same with BackSlash",
    "speller": "the speller",
    "digits": "the digits network",
}


def markdown(found: dict[str, Any]) -> str:
    """The tables of everything that was measured, as ``tables.put`` keeps it."""
    rises = [f"+{100 * r:g} %" for r in RISES]
    lines = [["model", "way", "batches", *rises, *(f"by divergence, {r}" for r in rises[1:3])]]
    asked = [["model", "batches", *(f"{100 * r:g} %" for r in (0.002, 0.0035, *RISES))]]
    for name, title in LOGITS.items():
        model = found[name]
        loss = model["unit"] / model["share"]
        for row in _rows(model):
            by_loss = measure.bits_at_all(row["points"], lambda p: p["rise"], RISES)
            if name == "digits":
                by_loss = [math.nan] * len(RISES)  # 600 images tell divergences, but not so small rises
            by_kl = measure.bits_at_all(row["points"], lambda p, loss=loss: p["kl"] / loss, RISES[1:3])
            batches = str(row["batches"] or "")
            lines.append([title, WAYS[row["arm"]], batches, *map(_number, [*by_loss, *by_kl])])
            if row["arm"] == frontiers.COMPRESS:
                ratios = [
                    f"{p['kl'] / loss / p['asked']:.2f} ({p['rise'] / p['asked']:.2f})" for p in row["points"]
                ]
                asked.append([title, batches, *ratios])
    noises = [10 ** (-d / 10) for d in DECIBELS]
    encoder = [["the sentence encoder", "batches", *(f"{d:g} dB" for d in DECIBELS)]]
    for row in _rows(found["encoder"]):
        bits = measure.bits_at_all(row["points"], lambda p: 10 ** (-p["snr_db"] / 10), noises)
        encoder.append([WAYS[row["arm"]], str(row["batches"] or ""), *map(_number, bits)])
    return "\n\n".join("\n".join(tables.table(x)) for x in (lines, encoder, asked))


def _rows(model: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in model["frontiers"] if row["arm"] in WAYS]


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.2f}"


if __name__ == "__main__":
    print(markdown(json.loads(FILE.read_text())))
