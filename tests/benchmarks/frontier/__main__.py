"""Every way to train and to round, on two models with one coder: ``python -m tests.benchmarks.frontier``.

Printed are the bits per weight at equal loss, over the float loss of the best-tuned Adam, of every method and
way of rounding: mean and deviation over seeds, on the test split. ``tests/benchmarks/frontier/plan.py`` says
what is tried and how it is chosen. The work is done in stages, each of which makes complete tables of what it
holds, with more trials, seeds and steps from stage to stage; every row says how many. Every training and
frontier is kept in the folder --out at once, so that the command can be stopped and started again.

On one core a training takes 15 to 40 seconds (four times that at the long length); all stages take a day. What
is printed goes to tests/benchmarks/frontier.json; ``python -m tests.benchmarks.frontier.plot`` makes a
picture of it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import ggjax
from ggjax._internal.atomic import new_file
from tests.benchmarks.arms import finite
from tests.benchmarks.frontier import plan, problems, report, runs, tables
from tests.benchmarks.frontier.methods import METHODS
from tests.benchmarks.frontier.runs import Bench

FILE = Path(__file__).parents[1] / "frontier.json"


class Stage(NamedTuple):
    """A part of the work."""

    long: bool  # which length
    trials: int
    seeds: int
    what: str = "methods"  # or "arms", "prune"


STAGES = (
    Stage(False, 2, 1),
    Stage(False, 2, 1, "prune"),
    Stage(False, 4, 3),
    Stage(False, 4, 1, "prune"),
    Stage(False, 4, 1, "arms"),
    Stage(False, plan.MOST_TRIALS, 3),
    Stage(False, plan.MOST_TRIALS, 3, "prune"),
    Stage(True, 2, 1),
    Stage(True, 4, 3),
    Stage(True, 4, 1, "prune"),
    Stage(True, 4, 1, "arms"),
    Stage(True, plan.MOST_TRIALS, 3),
)


def main(argv: Sequence[str] | None = None, benches: dict[str, Bench] | None = None) -> None:
    """The command: see ``--help``.

    Args:
      argv: its arguments.
      benches: others than those of the benchmark, by name.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path.home() / ".cache/ggjax-frontier"
    parser.add_argument("--out", type=Path, default=home, help="folder of results (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write (default: frontier.json; none with --quick)")
    parser.add_argument(
        "--quick", action="store_true", help="the digits, few steps, four methods: five minutes"
    )
    parser.add_argument("--only", choices=problems.PROBLEMS, help="one of the models")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which methods")
    parser.add_argument(
        "--stages", type=_range, default=slice(None), help="the first N stages, or A-B of them (default: all)"
    )
    parser.add_argument("--print", action="store_true", help="print the tables of the file and stop")
    args = parser.parse_args(argv)
    path = args.json or (None if args.quick else FILE)
    if args.print:
        print(report.show(json.loads((path or FILE).read_text())))
        return
    if "adam" not in args.methods:
        parser.error("the loss of Adam is what all are compared at: --methods needs adam")
    stages = STAGES[args.stages]
    if args.quick:
        stages, args.methods = STAGES[:1], ["adam", "backslash", "to_rate", "epr"]
    if benches is None:
        names = [args.only] if args.only else ["digits"] if args.quick else list(problems.PROBLEMS)
        short: dict[str, Any] = {"lengths": (60, 180)} if args.quick else {}
        benches = {n: runs.opened(problems.PROBLEMS[n](**short), args.out) for n in names}
    found: dict[str, Any] = {}
    if path and path.exists():
        found = json.loads(path.read_text())
    found["versions"] = {"ggjax": ggjax.__version__, "jax": jax.__version__, "python": sys.version.split()[0]}
    for stage in stages:
        for bench in benches.values():
            _run(bench, stage, args.methods, found, path)
    print(report.show(found))


def _range(text: str) -> slice:
    """The first four stages of "4", the third and the fourth of "3-4"."""
    first, _, last = text.rpartition("-")
    return slice(int(first or 1) - 1, int(last))


def _run(bench: Bench, stage: Stage, methods: Sequence[str], found: dict[str, Any], path: Path | None) -> None:
    """Do a stage, and put each state of its table into the file."""
    steps = bench.problem.lengths[stage.long]
    key = f"{bench.problem.name}, {steps} steps"
    make = {"methods": tables.methods, "arms": tables.arms, "prune": tables.prune}[stage.what]
    for table in make(bench, methods, steps, stage.trials, stage.seeds):
        old, new = found.setdefault(stage.what, {}).get(key), json.loads(json.dumps(finite(table)))
        if stage.what == "methods":
            found[stage.what][key] = tables.merged(old, new)
        elif old is None or old["trials"] <= stage.trials and len(old["rows"]) <= len(new["rows"]):
            found[stage.what][key] = new
        if path:
            with new_file(path) as f:
                f.write((json.dumps(found, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    main()
