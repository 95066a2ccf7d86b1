"""What calibrated compression gives: ``python -m tests.benchmarks.bench_calibrated [subject ...] [--quick]``.

Trained models are rounded in many ways, each at growing steps, and judged by data that neither the calibration
nor anything that chooses has seen. Bits are those of the codec per rounded weight: levels, tables, classes, and
the steps of rows and columns. Bits at a given loss are interpolated between measured points.

Subjects: digits, speller, encoder, lm-adam, lm-backslash, lm-small (see tests/benchmarks/calibrated). Every
finished point is kept in the folder --out, so that the command can be stopped and started again; it prints its
tables as Markdown at the end, and --json puts what is behind them into a file, beside what is there of other
arms: ``python -m tests.benchmarks.calibrated.tables`` prints all tables of tests/benchmarks/calibrated.json.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.calibrated import arms, cells, frontiers, gram, measure, speed, tables
from tests.benchmarks.calibrated.frontiers import Bench
from tests.benchmarks.calibrated.subject import Subject

SUBJECTS = ("digits", "speller", "encoder", "lm-adam", "lm-backslash", "lm-small")
BATCHES = (10, 50, 200)
ASKED = (0.002, 0.0035, 0.005, 0.01, 0.02, 0.05)
ASKED_OF_VALUES = (0.005, 0.01, 0.03, 0.06, 0.1, 0.16)
PARTS = ("arms", "asked", "measured", "compensated", "gram", "speed")


def load(name: str, args: argparse.Namespace) -> Subject:
    """A subject by name."""
    from tests.benchmarks.calibrated import digits, encoder, lm, speller

    kind, _, weights = name.partition("-")
    if kind == "digits":
        return digits.load(args.seed or 0)
    if kind == "lm":
        return lm.load(weights, args.seed or 1, args.lm_cache or lm.DEFAULT_CACHE)
    return (encoder if kind == "encoder" else speller).load(args.models)


def run(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for of one subject: frontiers and tables, by name."""
    found: dict[str, Any] = {"output": bench.subject.output, "unit": bench.judge.unit, "frontiers": []}
    found["share"] = bench.subject.share

    def add(arm: str, batches: int, points: list[measure.Point]) -> None:
        found["frontiers"].append({"arm": arm, "batches": batches, "points": points})

    asked = ASKED if bench.subject.output == "logits" else ASKED_OF_VALUES
    if args.quick:
        asked = asked[4:5]
    if "arms" in args.parts:
        for arm in args.arms:
            for batches in args.batches if arm in arms.CALIBRATED else (0,):
                add(arm, batches, frontiers.frontier(bench, arm, batches))
    if "asked" in args.parts:
        for batches in args.batches:
            add(frontiers.COMPRESS, batches, frontiers.asked(bench, batches, asked))
    if "measured" in args.parts and bench.subject.output == "logits":
        batches = max(args.batches)
        add(frontiers.MEASURED, batches, frontiers.asked(bench, batches, asked, loss=True))
    if "compensated" in args.parts:
        for batches in args.batches:
            add(frontiers.COMPENSATED, batches, frontiers.compensated(bench, batches, asked[2:]))
    if "gram" in args.parts and bench.name in gram.SUBJECTS:
        for batches in args.batches:
            exact = functools.cache(functools.partial(gram.grams, bench.subject, bench.name, batches))
            for arm in gram.ARMS:
                known = functools.partial(_known_by, bench, arm, batches, exact)
                add(arm, batches, frontiers.frontier(bench, arm, batches, known, "rows_columns"))
    if "speed" in args.parts and bench.name.startswith("lm"):
        key = {"subject": bench.name, "arm": "speed"}
        found["speed"] = bench.once(key, lambda: speed.update(bench.subject))
    return found


def _known_by(bench: Bench, arm: str, batches: int, exact: Callable[[], Any]) -> Any:
    """What an arm of the comparison with Gram matrices knows."""
    return gram.state_of(arm, frontiers.known_of(bench, batches), exact(), bench.name)


def main(argv: Sequence[str] | None = None, subjects: dict[str, Callable[[], Subject]] | None = None) -> None:
    """The command: see ``--help``.

    Args:
      argv: its arguments.
      subjects: others than those of the benchmark, by name.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path.home() / ".cache/ggjax-calibrated"
    every = [*arms.PLAIN, *arms.CALIBRATED]
    parser.add_argument("subjects", nargs="*", help="which subjects (default: all)")
    parser.add_argument("--quick", action="store_true", help="two arms and few points: does it run at all?")
    parser.add_argument("--out", type=Path, default=home, help="folder of results (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to put what is behind the tables into")
    parser.add_argument("--seed", type=int, help="of the trainings (default: 0, of the language model 1)")
    parser.add_argument("--models", help="folder of packages (default: the variable GGJAX_MODELS)")
    parser.add_argument("--lm-cache", type=Path, help="folder of the language model's weights")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--arms", nargs="+", choices=every, default=every, help="which arms")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="to calibrate on")
    args = parser.parse_args(argv)
    if args.quick:
        args.arms, args.batches, args.parts = ["uniform", "rows_columns"], [2], ["arms", "asked"]
    known = subjects or {name: functools.partial(load, name, args) for name in SUBJECTS}
    unknown = [name for name in args.subjects if name not in known]
    if unknown:
        parser.error(f"no subject {unknown[0]!r}, expected some of {', '.join(known)}")
    once, found = cells.opened(args.out), {}
    for name in args.subjects or known:
        subject = known[name]()
        full = name if args.seed is None else f"{name}-seed{args.seed}"
        bench = Bench(full, subject, measure.judge_of(subject), once, args.out)
        found[full] = run(bench, args)
        print(tables.markdown(full, found[full]), flush=True)
    if "speed" in args.parts:
        found["rounding"] = once({"arm": "speed of rounding"}, lambda: {"sizes": speed.rounding()})
        print(tables.rounding(found["rounding"]["sizes"]))
    if args.json:
        tables.put(found, args.json)


if __name__ == "__main__":
    main()
