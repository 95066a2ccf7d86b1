"""The arms at a tiny size: they run, they resume, and their arithmetic is what they say."""

import json
import math

import numpy as np

from tests.benchmarks import arms, arms_report


def test_quick_runs_and_resumes(tmp_path, capsys, monkeypatch):
    command = ["--quick", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "arms.json")]
    arms.main(command)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "arms.json").read_text())
    assert printed.strip() == arms_report.show(found).strip()
    arms.main(["--print", "--out", str(tmp_path / "arms.json")])
    assert capsys.readouterr().out == printed
    assert {"glorot", "init", "backslash"} <= {row["arm"] for row in found["table"]}
    assert [t["init"] for t in found["trials"][:2]] == [1.0, 0.5]
    runs = sorted((tmp_path / "cache").iterdir())
    assert len(runs) >= 4 + 2 * 2  # the trials, and two arms or more with two seeds

    # A run that is missing is done again, with the same result; the others are read.
    measured = []
    measure = arms.measure
    monkeypatch.setattr(arms, "measure", lambda job, text: measured.append(job) or measure(job, text))
    before = json.loads(runs[0].read_text())
    runs[0].unlink()
    arms.main(command)
    assert len(measured) == 1
    after = json.loads(runs[0].read_text())
    assert after["key"] == before["key"] and after["result"]["frontier"] == before["result"]["frontier"]
    assert json.loads((tmp_path / "arms.json").read_text()) == found

    # The table is made of the cached runs on the test split, with fresh seeds.
    results = [json.loads(p.read_text()) for p in (tmp_path / "cache").iterdir()]
    splits = {(r["key"]["split"], r["key"]["seed"]) for r in results}
    assert splits == {("validation", 0), ("test", 1), ("test", 2)}
    glorot = [r["result"]["loss"] for r in results if r["key"]["split"] == "test" and r["key"]["init"] == 1.0]
    row = found["table"][0]
    if row["init"] != found["table"][1]["init"]:
        np.testing.assert_allclose(row["loss"], np.mean(glorot))


def test_bits_are_interpolated_and_scored():
    losses = (1.0, 1.01, 1.02, 1.06)
    points = [{"step": 2.0**k, "bits": 4.0 - k, "loss": x} for k, x in enumerate(losses)]
    result = {"loss": 0.99, "frontier": points}
    np.testing.assert_allclose(arms.bits(result, 1.0), [3, 2, 1.25])
    np.testing.assert_allclose(arms.score(result, 1.0), (3 * 2 * 1.25) ** (1 / 3))
    assert arms.bits(result, 1.04)[2] == math.inf  # beyond the coarsest step
    assert arms.score(result, 0.9) == math.inf  # below the finest


def test_changes_are_in_percent():
    rows = [{"bits": [3, 2, None]}, {"bits": [4, 2, 2]}]
    assert arms_report.changes(*rows) == [-25, 0, None]


def test_what_is_not_finite_is_none():
    assert arms.finite({"a": [1.0, math.inf], "b": math.nan, "c": "x"}) == {
        "a": [1.0, None],
        "b": None,
        "c": "x",
    }
