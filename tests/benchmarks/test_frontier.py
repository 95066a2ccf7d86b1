"""The frontier at a tiny size: it runs, it resumes, and its arithmetic is what it says."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import baselines, sensitivity
from tests.benchmarks.frontier import __main__ as frontier
from tests.benchmarks.frontier import (
    on_grid,
    plan,
    plot,
    pruning,
    report,
    rounding,
    runs,
    tables,
    training,
)
from tests.benchmarks.frontier.methods import METHODS, Run, Setting
from tests.benchmarks.tiny import tiny


def test_runs_and_resumes(tmp_path, capsys, monkeypatch):
    command = ["--stages", "1", "--json", str(tmp_path / "found.json"), "--methods", "adam", "to_rate"]
    monkeypatch.setattr(rounding, "DATA_FREE", ("entquant",))
    problem = tiny()
    frontier.main(command, {"tiny": runs.opened(problem, tmp_path)})
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    table = found["methods"]["tiny, 30 steps"]
    assert printed.strip() == report.show(found).strip()
    assert "2 trials of Adam" in printed and "1 seed on the test split" in printed
    rows = {(r["method"], r["way"]) for r in table["rows"]}
    kin = {("adam", way) for way in ("uniform", "leaf", *rounding.DATA_FREE)}
    ours = {("to_rate", "uniform"), ("to_rate", "leaf")}
    assert rows == kin | ours | {(n, "calibrated") for n in ("adam", "to_rate")}
    assert all(r["settings"][0]["variance"] in (0.25, 1.0) for r in table["rows"])
    tried = [(r["method"], r["variance"]) for r in table["tried"]]
    assert tried == [(n, v) for n in ("adam", "to_rate") for v in (0.25, 1.0)]

    # The table's level is the test loss of the trial of Adam with the best validation loss, with a fresh seed.
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    adam = [c for c in cells if c["key"]["method"] == "adam" and c["key"].get("way") == "uniform"]
    best = min((c for c in adam if c["key"]["split"] == "validation"), key=lambda c: c["result"]["loss"])
    level = [
        c["result"]["loss"]
        for c in adam
        if c["key"]["split"] == "test" and c["key"]["variance"] == best["key"]["variance"]
    ]
    assert level and table["loss"] == pytest.approx(level[0], rel=1e-6)
    assert {c["key"]["seed"] for c in cells if c["key"].get("split") == "test"} == {1}

    pytest.importorskip("matplotlib")
    plot.draw(found, tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")

    # What is there is not trained again.
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    frontier.main(command, {"tiny": runs.opened(problem, tmp_path)})
    assert capsys.readouterr().out == printed


def test_training_on_the_grid_wins_back_what_rounding_cost(monkeypatch, tmp_path):
    """At few bits the loss is below that of calibrated rounding of the same weights."""
    monkeypatch.setattr(on_grid, "BITS", (0.8, 0.7))
    bench, run = runs.opened(tiny(), tmp_path), Run("on_grid", Setting(0.01), 0, 600)
    curve = bench.curve(run, "grid", "validation")
    before = rounding.frontier(tiny(), "on_grid", 0.01, runs.trained(bench, run), "calibrated", "validation")
    points = np.transpose(sorted((p["bits"], p["loss"]) for p in before["points"]))
    for point in curve["points"]:
        assert point["loss"] < np.interp(point["bits"], points[0], points[1])
    assert plan.ways_of("on_grid") == ("grid",)


def test_bits_are_those_of_the_coded_levels():
    levels = np.random.default_rng(0).integers(-2, 2, (64, 64)).astype(np.int32)
    frozen = baselines.Frozen({"kernel": jnp.asarray(levels)}, {"kernel": jnp.asarray(levels)}, 4096)
    _, bits = rounding.coded(frozen)
    assert 1 + 2 <= bits < 1 + 2.1  # one of side information; four levels alike
    assert rounding.coded(frozen._replace(side_bits=0))[1] == pytest.approx(bits - 1)


def test_tables_of_several_stages_are_one():
    def table(trials, *rows):
        rows = [{"method": m, "way": w, "trials": trials, "bits": [b]} for m, w, b in rows]
        tried = [{"method": r["method"], "bits": r["bits"], **Setting(1.0)._asdict()} for r in rows]
        return {"trials": trials, "loss": trials, "rows": rows, "tried": tried}

    few = table(2, ("quest", "own", 3), ("adam", "calibrated", 2), ("adam", "uniform", 4))
    many = table(4, ("adam", "uniform", 5))
    for found in (tables.merged(few, many), tables.merged(many, few)):
        assert [(r["method"], r["way"], r["bits"][0]) for r in found["rows"]] == [
            ("adam", "uniform", 5),
            ("quest", "own", 3),
            ("adam", "calibrated", 2),
        ]
        assert found["loss"] == 4 and [t["bits"] for t in found["tried"]] == [[5], [3]]
    again = table(2, ("quest", "own", 2.5))
    assert tables.merged(few, again)["rows"][1]["bits"] == [2.5] and tables.merged(None, few) == few
    # A first look that is taken again renews its own rows beside the longer ones.
    assert tables.merged(tables.merged(few, many), again)["rows"][1]["bits"] == [2.5]


def test_stages_by_number():
    assert frontier.STAGES[frontier._range("2")] == frontier.STAGES[:2]
    assert frontier.STAGES[frontier._range("9-10")] == frontier.STAGES[8:10]
    assert [s.what for s in frontier.STAGES[frontier._range("9-10")]] == ["methods", "prune"]


@pytest.mark.parametrize(
    ("mark", "what", "key", "write"),
    [
        ("frontier table", "methods", "language, 2400 steps", report.methods),
        ("frontier in short", "methods", "language, 2400 steps", report.headline),
        ("arms of the frontier, language, 600 steps", "arms", "language, 600 steps", report.arms),
    ],
)
def test_the_readme_shows_what_is_printed(mark, what, key, write):
    printed = write(key, json.loads(frontier.FILE.read_text())[what][key]).splitlines()
    shown = readme_between(mark)
    assert len(shown) > 8 and set(shown) <= set(printed)


def test_the_readme_shows_the_short_trainings():
    printed = report.short(json.loads(frontier.FILE.read_text())["methods"]).splitlines()
    shown = readme_between("short trainings of the frontier")
    assert len(shown) > 8 and set(shown) <= set(printed)


def test_the_short_trainings_say_which_rows_had_fewer_trials():
    rows = [
        {"method": "adam", "way": "uniform", "trials": 4, "bits": [9.0, 2.0, 1.5]},
        {"method": "epr", "way": "own", "trials": 2, "bits": [9.0, None, 1.2]},
    ]
    shown = report.short(
        {"tiny, 9 steps": {"trials": 4, "rises": [0.01, 0.02, 0.05], "rows": rows}}
    ).splitlines()
    assert shown[2] == "|  | tiny, 9 steps: +2 %, +5 % | calibrated |"
    assert shown[4:] == ["| Adam | 2.00, 1.50 |  |", "| EPR, logistic prior | -, 1.20* |  |"]


def readme_between(mark):
    readme = (Path(frontier.FILE).parents[2] / "README.md").read_text()
    return readme.split(f"<!-- {mark} -->")[1].split(f"<!-- end of {mark} -->")[0].strip().splitlines()


def test_the_arms_end_with_means():
    row = {"method": "adam", "own": 1.0, "decay": 0.0, "nu": 2.0}
    rows = [row | {"variance": v, "loss": x, "bits": [b]} for v, x, b in ((1.0, 1.2, 2.0), (0.25, 1.0, None))]
    shown = report.arms("tiny", {"rises": [0.02], "plain": "uniform", "loss": 1.0, "rows": rows})
    assert "| Adam | 5.66 | 1.1000 |" in shown  # of 2 bits and 16 for what is not reached
    assert "| 0.25 of Glorot's variance | 16.00 | 1.0000 |" in shown


def test_bits_at_rises():
    problem = tiny()._replace(rises=(0.0, 0.1, 1.0))
    curve = {"points": [{"bits": b, "loss": x} for b, x in ((3.0, 1.0), (2.0, 1.2), (1.0, 1.5))]}
    assert plan.bits(curve, problem, 1.0) == pytest.approx([3.0, 2.5, 1.0])  # beyond the last point its bits do
    assert plan.bits(curve, problem, 0.5) == [math.inf, math.inf, 3.0]
    beaten, luck = {"bits": 4.0, "loss": 1.6}, {"bits": 1.5, "loss": 1.15}
    curve["points"] += [beaten, luck]
    assert plan.bits(curve, problem, 1.0) == pytest.approx([3.0, 2.5, 1.0])
    assert plan.score(curve, problem, 0.1) == 4.0  # of the bits that stand for what is not reached


def test_trials_follow_the_best(monkeypatch, tmp_path):
    """A search over a score that is known: it ends at the best of what it may try, with so many trials."""

    def curve(self, run, way, split):
        s = run.setting
        cost = abs(math.log2(s.variance / 0.125)) + abs(s.own - 0.1) * 10 + abs(s.decay - 0.1)
        return {"loss": 1.0, "points": [{"bits": 1 + cost, "loss": 1.0}]}

    monkeypatch.setattr(runs.Bench, "curve", curve)
    bench = runs.opened(tiny(), tmp_path)
    for name in METHODS:
        found = [r.setting for r in plan.tried(bench, name, 30, plan.MOST_TRIALS)]
        assert len(found) == plan.MOST_TRIALS and {s.variance for s in found} == {1.0, 0.5, 0.25, 0.125}
    found = [r.setting for r in plan.tried(bench, "backslash", 30, plan.MOST_TRIALS)]
    assert found[6] == Setting(0.1, 0.125, 0.1)
    assert plan.chosen(bench, "backslash", "uniform", 30, plan.MOST_TRIALS)[0].setting == found[6]


def test_pruning_takes_the_least():
    params, _ = tiny().init(0, 1.0, 2.0)
    scores = pruning.scores_of(tiny(), params, {}, "magnitude")
    kernel = np.asarray(pruning.pruned(params, scores, 0.3)["kernel"])
    assert (kernel == 0).sum() == round(0.3 * kernel.size)
    assert np.abs(kernel[kernel != 0]).min() > np.abs(np.asarray(params["kernel"])[kernel == 0]).max()
    assert np.array_equal(pruning.pruned(params, scores, 0.0)["kernel"], params["kernel"])


def test_worth_is_what_is_predicted_of_each_weight():
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 4))}
    state = sensitivity.init(params)
    for i in range(4):
        state = sensitivity.update(state, {"kernel": jax.random.normal(jax.random.key(i), (3, 4))}, 1)
    worth = np.asarray(pruning.worth(params["kernel"], state.factors["kernel"]))
    for i, j in ((0, 0), (2, 3)):
        one = params["kernel"].at[i, j].set(0)
        rise = sensitivity.predict(params, {"kernel": one}, state).total * state.examples.sum()
        assert worth[i, j] / 2 == pytest.approx(float(rise), rel=1e-4)
