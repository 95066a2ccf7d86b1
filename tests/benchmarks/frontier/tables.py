"""What frontier.json holds: tables that grow row by row, from the runs of the plan."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.benchmarks.arms import deviation
from tests.benchmarks.frontier import plan, pruning, rounding
from tests.benchmarks.frontier.methods import METHODS, Setting
from tests.benchmarks.frontier.problems import kernels_of
from tests.benchmarks.frontier.runs import Bench

Table = dict[str, Any]


def merged(old: Table | None, new: Table) -> Table:
    """Two tables of methods as one: of the rows for the same method and rounding the one of more trials.

    What stands above the rows is that of more trials too. Where they have equally many, the new one is taken.
    """
    if old is None:
        return new
    # The last one of a key stays; the sort leaves the old before the new where they have equally many.
    by_trials = sorted([*old["rows"], *new["rows"]], key=lambda row: row["trials"])
    rows = {(row["method"], row["way"]): row for row in by_trials}
    first, last = sorted([old, new], key=lambda table: table["trials"])
    names, ways = list(METHODS), list(rounding.WAYS)
    order = lambda k: (k[1] == "calibrated", names.index(k[0]), ways.index(k[1]))  # noqa: E731
    tried = {(t["method"], *(t[f] for f in Setting._fields)): t for t in [*first["tried"], *last["tried"]]}
    return last | {
        "rows": [rows[k] for k in sorted(rows, key=order)],
        "tried": sorted(tried.values(), key=lambda t: names.index(t["method"])),
    }


def methods(bench: Bench, names: Sequence[str], steps: int, trials: int, seeds: int) -> Iterator[Table]:
    """Bits at equal loss on the test split, of every method and way of rounding.

    First come the trials of all methods, then their plain roundings, then the calibrated ones. The table is
    given after every row.
    """
    problem = bench.problem
    for name in names:
        for run in plan.tried(bench, name, steps, trials):
            for way in rounding.ways_of(name):
                bench.curve(run, way, "validation")
    fresh = range(1, seeds + 1)
    best = plan.best_adam(bench, steps, trials)
    way = plan.main_way(problem, "adam")
    losses = [bench.curve(best._replace(seed=s), way, "test")["loss"] for s in fresh]
    level = float(np.mean(losses))
    table: Table = {"trials": trials, "seeds": list(fresh), "rises": list(problem.rises), "rows": []}
    table |= {"adam": best.setting._asdict(), "loss": level, "loss_std": deviation(losses), "plain": way}
    table["tried"] = list(_tried(bench, names, steps, trials))
    table["weights"] = sum(x.size for x in kernels_of(problem.init(0, 1.0, 2.0)[0]).values())
    for calibrated in (False, True):
        for name in names:
            for way in [w for w in plan.ways_of(name) if (w == "calibrated") == calibrated]:
                table["rows"].append(_row(bench, name, way, steps, trials, fresh, level))
                yield table


def _tried(bench: Bench, names: Sequence[str], steps: int, trials: int) -> Iterator[Table]:
    """Every trial on the validation split, at rises over the loss of the best Adam there."""
    level = plan.level_of(bench, steps, trials)
    for name in names:
        way = plan.main_way(bench.problem, name)
        for run in plan.tried(bench, name, steps, trials):
            curve = bench.curve(run, way, "validation")
            row = {"method": name, "way": way, **run.setting._asdict(), "loss": curve["loss"]}
            yield row | {"bits": plan.bits(curve, bench.problem, level)}


def _row(
    bench: Bench, name: str, way: str, steps: int, trials: int, seeds: Sequence[int], level: float
) -> dict[str, Any]:
    chosen = plan.chosen(bench, name, way, steps, trials)
    each, told, losses, curves = [], [], [], {}
    for seed in seeds:
        found = []
        for i, run in enumerate(chosen):
            run = run._replace(seed=seed)
            curve = bench.curve(run, way, "test")
            found.append(plan.bits(curve, bench.problem, level)[i])
            losses.append(curve["loss"])
            told.append(bench.told(run))
            curves[run] = [[p["bits"], p["loss"]] for p in curve["points"]]
        each.append(found)
    columns = np.array(each).T
    row: dict[str, Any] = {"method": name, "way": way, "trials": trials, "seeds": list(seeds)}
    row |= {"loss": float(np.mean(losses)), "settings": [r.setting._asdict() for r in chosen]}
    row |= {"bits": [float(np.mean(c)) for c in columns], "bits_std": [deviation(c) for c in columns]}
    if METHODS[name].target:
        asked = [r.setting.own for _ in seeds for r in chosen]
        row["off_target"] = max(abs(t["bits"] / a - 1) for t, a in zip(told, asked, strict=True))
    return row | {"curves": list(curves.values())}


def arms(bench: Bench, names: Sequence[str], steps: int, trials: int, seeds: int) -> Iterator[Table]:
    """The experiment of arms on the validation split, one seed: every init with every way to train."""
    del seeds
    way, problem = bench.problem.plain, bench.problem
    level = plan.level_of(bench, steps, trials)
    table: Table = {"trials": trials, "loss": level, "rises": list(problem.rises), "plain": way, "rows": []}
    for run in plan.factorial(steps):
        if run.method in names:
            curve = bench.curve(run, way, "validation")
            row = {"method": run.method, **run.setting._asdict(), "loss": curve["loss"]}
            table["rows"].append(row | {"bits": plan.bits(curve, problem, level)})
            yield table


def prune(bench: Bench, names: Sequence[str], steps: int, trials: int, seeds: int) -> Iterator[Table]:
    """Accuracy and loss on the test split with more and more weights set to zero, of the best-tuned arms."""
    table: Table = {"trials": trials, "seeds": list(range(1, seeds + 1)), "shares": list(pruning.SHARES)}
    table["rows"] = []
    for name in [n for n in pruning.METHODS if n in names]:
        best = pruning.best(bench, name, steps, trials)
        for by in pruning.WAYS:
            found = [pruning.curve(bench, best._replace(seed=s), by) for s in table["seeds"]]
            row: dict[str, Any] = {"method": name, "by": by, "setting": best.setting._asdict()}
            for what in ("loss", "accuracy"):
                columns = np.array([x[what] for x in found]).T
                row |= {what: [float(np.mean(c)) for c in columns]}
                row |= {f"{what}_std": [deviation(c) for c in columns]}
            table["rows"].append(row)
            yield table
