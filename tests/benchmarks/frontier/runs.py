"""Trainings and frontiers that outlive the process: cells of JSON, and the trained weights beside them."""

import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ggjax._internal.atomic import new_file
from tests.benchmarks.calibrated import cells
from tests.benchmarks.calibrated.frontiers import say
from tests.benchmarks.frontier import on_grid, rounding, training
from tests.benchmarks.frontier.methods import METHODS, Run
from tests.benchmarks.frontier.problems import Problem, Split
from tests.benchmarks.frontier.training import Trained

VERSION = 1
"""Of the arithmetic of a cell; those of another one are not used."""


class Bench(NamedTuple):
    """A problem and where its results are kept."""

    problem: Problem
    once: cells.Once
    folder: Path

    def curve(self, run: Run, way: str, split: Split) -> dict[str, Any]:
        """The frontier of a run by a way of rounding; the run is trained if it has not been."""
        key = self.key(run) | {"way": way, "split": split}
        if way == "grid":  # a training of its own, whose schedule is part of the arithmetic
            key |= {"peak": METHODS[run.method].peak, "bits": on_grid.BITS}
        return self.once(key, lambda: self._measured(run, way, split))

    def told(self, run: Run) -> dict[str, float]:
        """What a training says of itself."""
        return self.once(self.key(run) | {"training": True}, lambda: trained(self, run).told)

    def key(self, run: Run) -> dict[str, Any]:
        """The name of a run."""
        named = {"version": VERSION, "problem": self.problem.name, "method": run.method}
        return named | run.setting._asdict() | {"seed": run.seed, "steps": run.steps}

    def _measured(self, run: Run, way: str, split: Split) -> dict[str, Any]:
        result = trained(self, run)
        self.once(self.key(run) | {"training": True}, lambda: result.told)
        begin = time.perf_counter()
        if way == "grid":
            found = on_grid.frontier(self.problem, run, result, split)
        else:
            found = rounding.frontier(self.problem, run.method, run.setting.own, result, way, split)
        seconds = time.perf_counter() - begin
        what = f"{self.problem.name} {run.method} {_short(run)}: {way}, {split}"
        say(f"{what}, loss {found['loss']:.4f}, {seconds:.0f} s")
        return found


@functools.lru_cache(maxsize=2)
def trained(bench: Bench, run: Run) -> Trained:
    """A training, from the folder if it is there."""
    problem, method = bench.problem, METHODS[run.method]
    name = hashlib.sha256(json.dumps(bench.key(run), sort_keys=True).encode()).hexdigest()[:16]
    path = bench.folder / f"{name}.npz"
    form = training.form_of(method, run.setting.own)

    def blank() -> Any:
        params, rest = problem.init(0, 1.0, 2.0)
        return (params if form is None else form.init(params)), rest

    treedef = jax.tree.structure(jax.eval_shape(blank))
    if path.exists():
        with np.load(path) as f:
            leaves = [f[f"leaf_{i}"] for i in range(treedef.num_leaves)]
            latent, rest = treedef.unflatten(leaves)
            return Trained(latent, rest, json.loads(str(f["told"])))
    found = training.train(problem, run)
    leaves = jax.tree.leaves((found.latent, found.rest))
    arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(leaves)}
    with new_file(path) as f:
        np.savez(f, **arrays, told=json.dumps(found.told))
    say(f"{problem.name} {run.method} {_short(run)}: trained in {found.told['seconds']:.0f} s")
    return found


def opened(problem: Problem, folder: Path) -> Bench:
    """The results of a problem, in a folder."""
    return Bench(problem, cells.opened(folder), folder)


def _short(run: Run) -> str:
    return f"{tuple(run.setting)} seed {run.seed} {run.steps} steps"
