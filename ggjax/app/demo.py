"""``ggjax demo``: the life of one model, from its initial weights to 8-bit floats, on real text.

A byte-level language model learns the standard library's source text twice, from the same initial weights, with
the same number of steps on the same bytes: (a) by Adam; (b) by Adam and BackSlash, then fine-tuned without
BackSlash. DeepShape reshapes the weights of (b), a short training repairs them, RF8 rounds all of them, and the
codec writes them to files.

The init is the one that suits (a) best: a Gaussian of a share of Glorot's variance. What that init gives by
itself, and what BackSlash gives on top of it, with several seeds, is measured by tests/benchmarks/arms.py.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import ggjax
from ggjax._internal.atomic import new_file
from ggjax.app import _calibrating, _lm, _measuring, _training
from ggjax.app._progress import progress
from ggjax.app._training import FULL as FULL
from ggjax.app._training import QUICK as QUICK
from ggjax.app._training import Settings as Settings

LABELS = {
    "adam": "Adam",
    "adam_calibrated": "+ calibrated",
    "backslash": "BackSlash",
    "backslash_calibrated": "+ calibrated",
    "deepshape": "+ DeepShape",
    "post_trained": "+ post-train",
}
"""What the rows are called, in the order in which they are shown."""

LEGEND = """\
Adam         from a small Gaussian init, {xi:g} of Glorot's variance
BackSlash    from the same init, with as many steps on the same bytes: Adam + BackSlash,
             then fine-tuning with Adam alone
+ DeepShape  the weights of BackSlash reshaped;  + post-train  and trained a little more
loss         bits per byte on held-out files;  RF8  the same, every weight in one byte
nu           shape of the fitted law: 2 Gaussian, 1 Laplace
bits         per parameter, by entropy/by exp-Golomb codes, at quantization steps 2^-13,
             2^-8, and the coarsest step that costs at most 1 % of the loss
+ calibrated the weights of the row above, a step for each row and column of a matrix,
             and every error made good by the weights after it, by what {batches} batches say;
             asked to cost 1 % of the loss on validation text; bits of the file"""
FILES_LEGEND = """\
Files        at that coarsest step, or as asked, read back before their loss was taken;
             bits per parameter of the whole file, beside the entropy; the same tensors as
             plain safetensors, and those through zstd -19"""


def run(out: str | os.PathLike[str], settings: Settings = FULL, *, quiet: bool = False) -> dict[str, Any]:
    """Run the demo and write ``life.png``, ``results.json`` and a compressed file of every model.

    Args:
      out: the folder to write to, made if need be; each file appears there complete or not at all.
      settings: the size of the run.
      quiet: no progress on stderr.

    Returns:
      What results.json holds: "table" (a list of rows), "frontier" (a list of {"model", "step", "bits",
      "loss"}: entropy in bits per parameter, loss after quantization in bits per byte), "saved" (bits at equal
      loss), "settings".

    Raises:
      FileNotFoundError: no Python source text to train on.
      OSError: the folder cannot be written.
    """
    from ggjax.app import plots  # loads matplotlib

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    text = _lm.load_text()
    s = settings
    stages = {
        "Adam": (s.steps, 1.0),
        "BackSlash": (s.steps, 1.05),
        "post-training": (s.post_steps, 1.0),
        "measuring": (_measuring.LOSSES_OF_ALL, s.test_windows / s.batch / 3),
    }
    with progress(stages, quiet=quiet) as report:
        models = _training.train_all(text, s, report)
        with tempfile.TemporaryDirectory(dir=out, prefix=".models-") as folder:
            results = _measuring.measure_all(models, text, s, report, Path(folder))
            for file in Path(folder).iterdir():  # complete, and read back
                file.replace(out / file.name)
    parameters = _training.size(models["adam"])
    results["settings"] = {**s._asdict(), "parameters": parameters, "ggjax": ggjax.__version__}
    figure = plots.life(models, results)
    with new_file(out / "life.png") as f:
        figure.savefig(f, format="png", dpi=150)
    with new_file(out / "results.json") as f:
        f.write(json.dumps(results, indent=1).encode())
    return results


def show(results: dict[str, Any], out: str | os.PathLike[str]) -> None:
    """Print the table, the bits saved, and where the files are."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 80)
    table = _table("model", "loss", "nu", "bits 2^-13", "bits 2^-8", "bits, step <= 1 %", "RF8")
    rows = sorted(results["table"], key=lambda row: [*LABELS].index(row["model"]))
    for row in rows:
        if "asked_loss" in row:
            bits, rf8 = ["", "", f"{row['file_bits']:.2f}     "], ""
        else:
            bits = [f"{row['entropy_' + k]:.2f}/{row['exp_golomb_' + k]:.2f}" for k in ("2^-13", "2^-8", "1%")]
            bits[2] += f" {_step(row)}"
            rf8 = f"{row['rf8_loss']:.3f}"
        numbers = [f"{row['loss']:.3f}", f"{row['nu']:.2f}", *bits, rf8]
        table.add_row(LABELS[row["model"]], *numbers)
    console.print(table)
    console.print(LEGEND.format(xi=results["settings"]["xi"], batches=_calibrating.BATCHES))
    table = _table("file of", "step", "loss", "entropy", "bits", "bytes", "safetensors", "zstd -19")
    for row in rows:
        sizes = [f"{row[k]:,}" for k in ("file_bytes", "safetensors_bytes", "zstd_bytes")]
        step, entropy = ("", "") if "asked_loss" in row else (_step(row), f"{row['entropy_1%']:.3f}")
        loss = f"{row['file_loss']:.3f}"
        table.add_row(LABELS[row["model"]], step, loss, entropy, f"{row['file_bits']:.3f}", *sizes)
    console.print(table)
    console.print(FILES_LEGEND)
    console.print()
    console.print("Bits per parameter at equal loss after quantization, all from the same init, by entropy;")
    console.print("calibrated: of the coded tensors, steps and tables included")
    names = ("adam", "backslash", "adam_calibrated", "backslash_calibrated")
    table = _table("loss", "Adam's +", "Adam", "BackSlash", "Adam, cal.", "BackSlash, cal.")
    for row in results["saved"]:
        bits = [f"{row[n]:.2f} ({100 * (row[n] / row['adam'] - 1):+.0f} %)" if n in row else "" for n in names]
        bits[0] = f"{row['adam']:.2f}"
        table.add_row(f"{row['loss']:.3f}", f"{100 * row['rise']:g} %", *bits)
    console.print(table)
    console.print("What the init itself gives: see the README, or run python -m tests.benchmarks.arms")
    console.print(f"\nWrote life.png, results.json and the files of the models to {Path(out)}")


def _table(first: str, *others: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for head in others:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _step(row: dict[str, Any]) -> str:
    return f"2^{np.log2(row['step_1%']):g}"
