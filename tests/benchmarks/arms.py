"""What a small init gives, and what BackSlash gives on top of it: ``python -m tests.benchmarks.arms``.

On the demo's language model, at the demo's size. First the settings are chosen, with seed 0 and judged on the
validation split:

  Adam        4 inits: Gaussian, of Glorot's variance times 1, 1/2, 1/4, 1/8
  AdamW       the init that is best for Adam, with 3 weight decays
  BackSlash   the same init, with 3 strengths; it follows the learning rate, clamps, and ends in fine-tuning

so that AdamW and BackSlash get as many trials as each other, from an init that was chosen for Adam. The score
of a trial, the lower the better, is the geometric mean of its bits per parameter at a loss of 1, 2 and 5 %
above that of Adam from Glorot's init (whose weights are not rounded). Bits are the entropy of the weights, all
of them rounded to multiples of one step.

Then Adam from Glorot's init, Adam from the best init, and the best of BackSlash are each trained with three
fresh seeds, and their bits taken on the test split, which nothing before has looked at; AdamW too, if it scored
better than Adam.

A training takes two to three minutes on one core, and as many run side by side as --workers says. Each uses
one thread, so that its result does not depend on how many cores there are. Results are kept in a folder, so
that the command can be stopped and started again. What is printed goes to tests/benchmarks/arms.json as well,
which --print prints.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import math
import multiprocessing
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import ggjax
from ggjax._internal.atomic import new_file
from ggjax.app import _lm, _measuring, _training
from ggjax.app._training import Settings
from tests.benchmarks import arms_report

VERSION = 2
"""Of the arithmetic of a run; runs that were cached by another one are not used."""

STEPS = tuple(2.0 ** (k / 4) for k in range(-32, -7))
"""Quantization steps, 2^-8, 2^-7.75, ..., 2^-2."""

RISES = (0.01, 0.02, 0.05)
INITS = (1.0, 0.5, 0.25, 0.125)
DECAYS = (0.1, 0.3, 1.0)
STRENGTHS = (0.01, 0.02, 0.05)
SEEDS = (1, 2, 3)
QUICK = Settings(steps=40, batch=4, context=32, test_windows=32, width=32, depth=1, heads=2, learning_rate=8e-3)


class Arm(NamedTuple):
    """How one model is trained."""

    init: float  # variance of the Gaussian init, as a share of Glorot's
    decay: float = 0.0  # weight decay of AdamW; 0 is Adam
    strength: float = 0.0  # of BackSlash; 0 is without


class Job(NamedTuple):
    """Everything that the result of one run depends on, but for the text."""

    arm: Arm
    seed: int
    split: str  # "validation" or "test"
    settings: Settings


Runner = Callable[[list[Job]], list[dict[str, Any]]]


@functools.cache  # so that runs that differ in their seeds or inits only are compiled once
def optimizer(arm: Arm, s: Settings) -> optax.GradientTransformationExtraArgs:
    """The optimizer of an arm."""
    if arm.strength:
        return _training.adam_backslash(s._replace(strength=arm.strength))
    if arm.decay:
        return optax.with_extra_args_support(optax.adamw(_training.schedule(s), weight_decay=arm.decay))
    return _training.adam(s)


def train(job: Job, text: _lm.Text) -> tuple[_lm.Model, Any]:
    """The model of a job and its trained parameters."""
    s = job.settings._replace(seed=job.seed)
    init = jax.nn.initializers.variance_scaling(job.arm.init, "fan_avg", "normal")
    model = _lm.Model(width=s.width, depth=s.depth, heads=s.heads)
    start = _lm.init(model.clone(kernel_init=init), s.seed)
    tx = optimizer(job.arm._replace(init=1.0), job.settings)
    return model, _training.train(model, tx, start, text, s, s.steps, lambda *_, **__: None, "")


def measure(job: Job, text: _lm.Text) -> dict[str, Any]:
    """Train, and measure on the job's split: "loss" of the unrounded model and its "frontier"."""
    begin = time.perf_counter()
    model, params = train(job, text)
    windows = _lm.windows_of(getattr(text, job.split), job.settings.test_windows, job.settings.context)

    def loss_of(params: Any) -> float:
        return float(_lm.evaluate(model, params, windows, batch=job.settings.batch))

    result = {
        "loss": loss_of(params),
        "frontier": _measuring.frontier(params, STEPS, loss_of),
        "gg_shape": float(ggjax.gennorm.fit(params).nu),
        "parameters": _training.size(params),
    }
    return result | {"seconds": round(time.perf_counter() - begin, 1)}


def cached(job: Job, cache: Path) -> dict[str, Any]:
    """The result of a job, from the cache if it is there."""
    text = load_text()
    settings = used(job.settings)
    if not job.arm.strength:
        del settings["fine_tune"]
    key = {
        "version": VERSION,
        "text": checksum(text),
        **job.arm._asdict(),
        "seed": job.seed,
        "split": job.split,
    }
    key |= {"settings": settings, "steps": STEPS}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())["result"]
    result = measure(job, text)
    cache.mkdir(parents=True, exist_ok=True)
    with new_file(path) as f:
        f.write(json.dumps({"key": key, "result": result}, indent=1).encode())
    return result


load_text = functools.cache(_lm.load_text)


@contextlib.contextmanager
def runner(cache: Path, workers: int) -> Iterator[Runner]:
    """A function that runs jobs and gives their results in order, in so many processes (0: in this one)."""

    def report(job: Job, result: dict[str, Any]) -> dict[str, Any]:
        print(
            f"{job.arm}, seed {job.seed}, {job.split}: loss {result['loss']:.4f}", file=sys.stderr, flush=True
        )
        return result

    def here(jobs: list[Job]) -> list[dict[str, Any]]:
        return [report(job, cached(job, cache)) for job in jobs]

    if not workers:
        yield here
        return
    os.environ["NPROC"] = "1"  # threads of XLA in the processes below, which begin anew
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:

        def beside(jobs: list[Job]) -> list[dict[str, Any]]:
            results = pool.map(cached, jobs, [cache] * len(jobs))
            return [report(job, result) for job, result in zip(jobs, results, strict=True)]

        yield beside


def used(s: Settings) -> dict[str, Any]:
    """The settings without those of the demo alone, and without those that the arm gives."""
    unused = ("seed", "gg_shape", "xi", "strength", "post_steps", "post_learning_rate", "calibrated")
    return {name: value for name, value in s._asdict().items() if name not in unused}


def checksum(text: _lm.Text) -> int:
    """CRC-32 of all of the text: results on another Python's library are others."""
    return zlib.crc32(b"".join(np.asarray(part).tobytes() for part in text))


def bits(result: dict[str, Any], loss: float) -> list[float]:
    """Bits per parameter at ``RISES`` above a loss; infinite where the model does not reach it."""
    found = [_measuring.bits_at(result["frontier"], (1 + rise) * loss) for rise in RISES]
    return [math.inf if b is None else b for b in found]


def score(result: dict[str, Any], loss: float) -> float:
    """The geometric mean of the bits at ``RISES`` above a loss."""
    return math.prod(bits(result, loss)) ** (1 / len(RISES))


def experiment(
    s: Settings, run: Runner, arms: dict[str, Sequence[float]], seeds: Sequence[int]
) -> dict[str, Any]:
    """All trials and the final runs: what arms.json holds."""
    text = load_text()
    trials: list[dict[str, Any]] = []

    def best(arms: list[Arm]) -> tuple[Arm, float]:
        """The best of some arms on the validation split, and its score."""
        results = run([Job(arm, 0, "validation", s) for arm in arms])
        level = trials[0]["loss"] if trials else results[0]["loss"]  # the first of all is Glorot's init
        for arm, result in zip(arms, results, strict=True):
            row = {"loss": result["loss"], "bits": bits(result, level), "score": score(result, level)}
            trials.append(arm._asdict() | row)
        scores = [row["score"] for row in trials[-len(arms) :]]
        return arms[int(np.argmin(scores))], min(scores)

    glorot = Arm(arms["init"][0])
    small, plain_score = best([Arm(x) for x in arms["init"]])
    decay, decay_score = best([small._replace(decay=x) for x in arms["decay"]])
    backslash, _ = best([small._replace(strength=x) for x in arms["strength"]])
    final = {"glorot": glorot, "init": small, "decay": decay, "backslash": backslash}
    if decay_score >= plain_score:
        del final["decay"]
    runs = run([Job(arm, seed, "test", s) for arm in final.values() for seed in seeds])
    results = {name: runs[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(final)}
    level = float(np.mean([r["loss"] for r in results["glorot"]]))
    table = []
    for name, arm in final.items():
        each = np.array([bits(r, level) for r in results[name]])
        losses = [r["loss"] for r in results[name]]
        row = {"arm": name, **arm._asdict(), "loss": float(np.mean(losses)), "loss_std": deviation(losses)}
        row |= {"bits": each.mean(0).tolist(), "bits_std": [deviation(column) for column in each.T]}
        table.append(row)
    return {
        "rises": list(RISES),
        "seeds": list(seeds),
        "trials": trials,
        "table": table,
        "settings": used(s) | {"parameters": results["glorot"][0]["parameters"]},
        "text": {"crc32": checksum(text), "bytes": {k: v.size for k, v in text._asdict().items()}},
        "versions": {"ggjax": ggjax.__version__, "jax": jax.__version__, "python": sys.version.split()[0]},
    }


def deviation(values: Any) -> float:
    """The standard deviation over seeds: NaN of one seed, infinite where a value is."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1)) if np.all(np.isfinite(values)) else math.inf


def finite(tree: Any) -> Any:
    """The same with None for what is not finite, which JSON has no numbers for."""
    if isinstance(tree, dict):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path.home() / ".cache/ggjax-arms"
    parser.add_argument("--cache", type=Path, default=home, help="folder of results (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file to write (default: arms.json; none with --quick)")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few trials: does it run at all?")
    parser.add_argument("--print", action="store_true", help="print the file, and train nothing")
    args = parser.parse_args(argv)
    if args.print:
        print(arms_report.show(json.loads((args.out or Path(__file__).with_suffix(".json")).read_text())))
        return
    settings, arms, seeds = _training.FULL, {"init": INITS, "decay": DECAYS, "strength": STRENGTHS}, SEEDS
    if args.quick:
        settings = QUICK
        arms, seeds = {"init": INITS[:2], "decay": DECAYS[:1], "strength": STRENGTHS[:1]}, seeds[:2]
    with runner(args.cache, 0 if args.quick else args.workers) as run:
        found = finite(experiment(settings, run, arms, seeds))
    out = args.out or (None if args.quick else Path(__file__).with_suffix(".json"))
    if out:
        with new_file(out) as f:
            f.write((json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    print(arms_report.show(found))


if __name__ == "__main__":
    main()
