"""``ggjax demo``: the life of one model, from its initial weights to 8-bit floats, on real text.

A byte-level language model learns the standard library's source text twice, with the same number of steps on
the same bytes: (a) Glorot init and Adam; (b) GG init, Adam and BackSlash, then fine-tuning without BackSlash.
DeepShape reshapes the weights of (b), a short training repairs them, RF8 rounds all of them, and the codec
writes them to files.

Part of what (b) saves is due to its init, which has half of Glorot's variance. In 3600 steps, bits per
parameter at the loss of (a) + 1 %, 2 %, 5 %, 10 %: (a) 4.16, 3.62, 3.03, 2.64; GG init and Adam without
BackSlash 3.74, 3.37, 2.83, 2.55; (b) 3.53, 2.86, 2.05, 1.61.
"""

import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ggjax
from ggjax import codec, gennorm, rate, rf8
from ggjax._internal.atomic import new_file
from ggjax.app import _lm
from ggjax.app._progress import Report, progress

FINE, MIDDLE = 2.0**-13, 2.0**-8
FRONTIER_STEPS = tuple(2.0 ** (k / 2) for k in range(-20, -7))
"""Quantization steps of the frontier, 2^-10, 2^-9.5, ..., 2^-4."""

LOSS_RISES = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Loss levels at which the two frontiers are compared, relative to Adam's loss before quantization."""

LABELS = {
    "adam": "Adam",
    "backslash": "BackSlash",
    "deepshape": "+ DeepShape",
    "post_trained": "+ post-train",
}
LEGEND = """\
Adam         Glorot init, Adam
BackSlash    GG init, Adam + BackSlash, fine-tuned with Adam: as many steps, same bytes
+ DeepShape  the weights of BackSlash reshaped;  + post-train  and trained a little more
loss         bits per byte on held-out files;  RF8  the same, every weight in one byte
nu           shape of the fitted law: 2 Gaussian, 1 Laplace
bits         per parameter, by entropy/by exp-Golomb codes, at quantization steps 2^-13,
             2^-8, and the coarsest step that costs at most 1 % loss"""
FILES_LEGEND = """\
Files        at that coarsest step, read back before their loss was taken; bits per
             parameter of the whole file, beside the entropy; the same tensors as
             plain safetensors, and those through zstd -19"""


class Settings(NamedTuple):
    """The size of a run. Two runs with the same settings on one machine give the same numbers."""

    steps: int = 2400  # of each of the two trainings
    post_steps: int = 300  # after DeepShape
    batch: int = 16
    context: int = 64  # bytes
    test_windows: int = 1024  # of `context` bytes
    width: int = 128
    depth: int = 3
    heads: int = 4
    learning_rate: float = 2e-3  # at its peak
    gg_shape: float = 1.5  # nu of the GG init
    xi: float = 0.5  # its gain: half of Glorot's variance
    rate_weight: float = 70.0  # lambda where the learning rate is at its peak
    fine_tune: float = 0.3  # the share of steps at the end without BackSlash
    min_count: int = 300  # of DeepShape: as the published 1000 does for larger models, spares the rare weights
    post_learning_rate: float = 1e-4
    seed: int = 0


FULL = Settings()
QUICK = Settings(steps=200, post_steps=40, test_windows=128)


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
    measures = 4 * 10 + 2 * len(FRONTIER_STEPS)
    stages = {
        "Adam": (s.steps, 1.0),
        "BackSlash": (s.steps, 1.05),
        "post-training": (s.post_steps, 1.0),
        "measuring": (measures, s.test_windows / s.batch / 3),
    }
    with progress(stages, quiet=quiet) as report:
        models = train_all(text, s, report)
        with tempfile.TemporaryDirectory(dir=out, prefix=".models-") as folder:
            results = measure_all(models, text, s, report, Path(folder))
            for file in Path(folder).iterdir():  # complete, and read back
                file.replace(out / file.name)
    results["settings"] = {**s._asdict(), "parameters": _size(models["adam"]), "ggjax": ggjax.__version__}
    figure = plots.life(models, results)
    with new_file(out / "life.png") as f:
        figure.savefig(f, format="png", dpi=150)
    with new_file(out / "results.json") as f:
        f.write(json.dumps(results, indent=1).encode())
    return results


def train_all(text: _lm.Text, s: Settings, report: Report) -> dict[str, Any]:
    """The parameters of the four models of the table, by name."""
    models = {}
    model = _model(s)
    tx = optax.adam(schedule(s))
    models["adam"] = train(model, tx, _lm.init(model, s.seed), text, s, s.steps, report, "Adam")

    model_gg = _model(s).clone(kernel_init=ggjax.gg_init(shape=s.gg_shape, xi=s.xi, mode="fan_avg"))
    tx = optax.chain(optax.adam(schedule(s)), ggjax.backslash(rate_weights(s), clamp=True))
    params = train(model_gg, tx, _lm.init(model_gg, s.seed), text, s, s.steps, report, "BackSlash")
    models["backslash"] = params

    models["deepshape"], _ = ggjax.deepshape(params, step=FINE, min_count=s.min_count)
    tx = optax.adam(optax.cosine_decay_schedule(s.post_learning_rate, s.post_steps))
    start = jax.tree.map(jnp.copy, models["deepshape"])  # training consumes what it is given
    post = train(model, tx, start, text, s, s.post_steps, report, "post-training", key=1)
    models["post_trained"] = post
    return models


def schedule(s: Settings) -> optax.Schedule:
    """The learning rate of both trainings: a short rise, then a cosine to 0."""
    return optax.warmup_cosine_decay_schedule(0.0, s.learning_rate, min(100, s.steps // 10), s.steps)


def rate_weights(s: Settings) -> optax.Schedule:
    """The rate weight follows the learning rate, and is 0 while fine-tuning."""
    follow = ggjax.follow_learning_rate(s.rate_weight, schedule(s), peak=s.learning_rate)
    last = round((1 - s.fine_tune) * s.steps)
    return lambda count: jnp.where(jnp.asarray(count) < last, follow(count), 0.0)


def train(
    model: _lm.Model,
    tx: Any,
    params: Any,
    text: _lm.Text,
    s: Settings,
    steps: int,
    report: Report,
    stage: str,
    *,
    key: int = 0,
) -> Any:
    """Train for a number of steps, reporting about every second; consumes ``params``."""
    state = tx.init(params)
    keys = jax.random.fold_in(jax.random.key(s.seed), key)
    done = 0
    while done < steps:
        goal = min(done + 50, steps)
        sizes = {"batch": s.batch, "context": s.context}
        params, state, loss = _lm.train_steps(model, tx, params, state, text.train, keys, done, goal, **sizes)
        done = goal
        bits = rate.bits(params, MIDDLE)
        report(stage, done, loss=float(loss) / np.log(2), nu=float(gennorm.fit(params).nu), bits=float(bits))
    return params


def measure_all(
    models: dict[str, Any], text: _lm.Text, s: Settings, report: Report, folder: Path
) -> dict[str, Any]:
    """The table, the frontiers of "adam" and "backslash", and the bits saved at equal loss.

    The models go to files in ``folder``, each at the coarsest step of its row.
    """
    model = _model(s)
    windows = _lm.held_out(text, s.test_windows, s.context)
    done = 0

    def loss_of(params: Any) -> float:
        nonlocal done
        value = float(_lm.evaluate(model, params, windows, batch=s.batch))
        done += 1
        report("measuring", done, loss=value)
        return value

    table = [measure(name, params, loss_of) for name, params in models.items()]
    with ThreadPoolExecutor() as pool:  # zstd -19 is slow: it runs beside the rest
        zstd_bytes = []
        for row, params in zip(table, models.values(), strict=True):
            path = folder / f"{row['model']}.ggjax.safetensors"
            sizes, plain = measure_file(path, params, row["step_1%"], loss_of)
            row |= sizes
            zstd_bytes.append(pool.submit(_zstd_bytes, plain))
        frontier = [
            {
                "model": name,
                "step": step,
                "bits": float(rate.bits(models[name], step)),
                "loss": loss_of(quantize(models[name], step)),
            }
            for name in ("adam", "backslash")
            for step in FRONTIER_STEPS
        ]
        for row, size in zip(table, zstd_bytes, strict=True):
            row["zstd_bytes"] = size.result()
    return {"table": table, "frontier": frontier, "saved": saved_bits(frontier, table[0]["loss"])}


def measure(name: str, params: Any, loss_of: Callable[[Any], float]) -> dict[str, Any]:
    """One row of the table."""
    loss = loss_of(params)
    coarse, coarse_loss = coarsest_step(params, 1.01 * loss, loss_of)
    row = {"model": name, "loss": loss, "nu": float(gennorm.fit(params).nu)}
    for key, step in (("2^-13", FINE), ("2^-8", MIDDLE), ("1%", coarse)):
        bits = rate.report(params, step, codes=("entropy", "exp_golomb")).total.bits
        row |= {f"entropy_{key}": bits["entropy"], f"exp_golomb_{key}": bits["exp_golomb"]}
    row |= {"step_1%": coarse, "loss_1%": coarse_loss}
    row["rf8_loss"] = loss_of(rf8.tree_decode(rf8.tree_encode(params)))
    return row


def measure_file(
    path: Path, params: Any, step: float, loss_of: Callable[[Any], float]
) -> tuple[dict[str, float | int], bytes]:
    """Write a model to a compressed file and read it back; the sizes and the loss, and the plain tensors."""
    nbytes = codec.save_file(params, path, step=step)
    back = codec.load_file(path, like=params)
    plain = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(back))
    sizes = {
        "file_bytes": nbytes,
        "file_bits": 8 * nbytes / _size(params),
        "file_loss": loss_of(back),
        "safetensors_bytes": len(plain),
    }
    return sizes, plain


def _zstd_bytes(plain: bytes) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=19).compress(plain))


def coarsest_step(params: Any, limit: float, loss_of: Callable[[Any], float]) -> tuple[float, float]:
    """The coarsest of the steps 2^-13, 2^-12.75, ..., 2^-2 whose loss is within the limit, and that loss.

    By bisection: the loss is taken to rise with the step.
    """
    steps = [2.0 ** (k / 4) for k in range(-52, -7)]
    low, high, loss = 0, len(steps), loss_of(quantize(params, steps[0]))
    while high - low > 1:
        middle = (low + high) // 2
        value = loss_of(quantize(params, steps[middle]))
        if value <= limit:
            low, loss = middle, value
        else:
            high = middle
    return steps[low], loss


@jax.jit
def quantize(params: Any, step: jax.Array | float) -> Any:
    """The parameters rounded to multiples of step."""
    return jax.tree.map(lambda x: jnp.round(x / step) * step, params)


def saved_bits(frontier: list[dict[str, Any]], loss: float) -> list[dict[str, float]]:
    """Bits of both models at equal loss after quantization, interpolated between the points of the frontier.

    Args:
      frontier: as in results.json.
      loss: Adam's loss before quantization; the levels are ``LOSS_RISES`` above it.

    Returns:
      {"rise", "loss", "adam", "backslash", "saved"} for every level that both frontiers reach; "saved" is the
      share of Adam's bits.
    """
    rows = []
    for rise in LOSS_RISES:
        at = (1 + rise) * loss
        adam, ours = (_bits_at(frontier, name, at) for name in ("adam", "backslash"))
        if adam is not None and ours is not None:
            rows.append({"rise": rise, "loss": at, "adam": adam, "backslash": ours, "saved": 1 - ours / adam})
    return rows


def _bits_at(frontier: list[dict[str, Any]], model: str, loss: float) -> float | None:
    points = sorted((p["step"], p["loss"], p["bits"]) for p in frontier if p["model"] == model)
    losses = np.maximum.accumulate([p[1] for p in points])
    if not losses[0] <= loss <= losses[-1]:
        return None
    return float(np.interp(loss, losses, [p[2] for p in points]))


def show(results: dict[str, Any], out: str | os.PathLike[str]) -> None:
    """Print the table, the bits saved, and where the files are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 80)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for head in ("loss", "nu", "bits 2^-13", "bits 2^-8", "bits, step <= 1 %", "RF8"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in results["table"]:
        bits = [f"{row['entropy_' + k]:.2f}/{row['exp_golomb_' + k]:.2f}" for k in ("2^-13", "2^-8", "1%")]
        bits[2] += f" 2^{np.log2(row['step_1%']):g}"
        numbers = [f"{row['loss']:.3f}", f"{row['nu']:.2f}", *bits, f"{row['rf8_loss']:.3f}"]
        table.add_row(LABELS[row["model"]], *numbers)
    console.print(table)
    console.print(LEGEND)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("file of", no_wrap=True)
    for head in ("step", "loss", "entropy", "bits", "bytes", "safetensors", "zstd -19"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in results["table"]:
        sizes = [f"{row[k]:,}" for k in ("file_bytes", "safetensors_bytes", "zstd_bytes")]
        bits = [f"{row['entropy_1%']:.3f}", f"{row['file_bits']:.3f}"]
        step = f"2^{np.log2(row['step_1%']):g}"
        table.add_row(LABELS[row["model"]], step, f"{row['file_loss']:.3f}", *bits, *sizes)
    console.print(table)
    console.print(FILES_LEGEND)
    console.print()
    console.print("Entropy bits per parameter at equal loss after quantization:")
    for row in results["saved"]:
        console.print(
            f"  loss {row['loss']:.3f} (Adam's + {100 * row['rise']:g} %): "
            f"Adam {row['adam']:.2f}, BackSlash {row['backslash']:.2f} ({-100 * row['saved']:+.0f} %)"
        )
    console.print(f"\nWrote life.png, results.json and the files of the models to {Path(out)}")


def _model(s: Settings) -> _lm.Model:
    return _lm.Model(width=s.width, depth=s.depth, heads=s.heads)


def _size(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
