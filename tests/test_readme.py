"""The README's promises: its programs print what it says, its figures are those of their commands, and CI runs
its test command and nothing else."""

import json
import pathlib
import re

import pytest

from ggjax.app import _training
from tests import programs
from tests.benchmarks import arms, arms_report
from tests.benchmarks.calibrated import summary

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language, heading=None):
    """The code blocks of a language, in all of the README or in the section of a heading."""
    text = README.split(f"\n{heading}\n")[1].split("\n## ")[0] if heading else README
    return programs.blocks(text, language)


def test_ci_runs_the_test_command_and_nothing_else():
    commands = [line for line in (ROOT / ".ci/run").read_text().splitlines() if not line.startswith("#")]
    assert commands[:2] == ["set -eu", 'cd "$(dirname "$0")/.."']
    assert commands[2:] == [block.strip() for block in blocks("sh", "## Development")]


def test_one_command_installs_it_and_shows_it():
    (command,) = (block.strip() for block in blocks("sh", "## Install"))
    assert command.endswith("&& ggjax demo") and "venv" in command and "[demo]" in command


PROGRAMS = programs.programs_of(README)


def test_every_program_is_followed_by_what_it_prints():
    assert [code for code, _ in PROGRAMS] == blocks("python") and len(PROGRAMS) == 7


@pytest.mark.parametrize(("code", "printed"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_prints_what_stands_below_it(code, printed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one writes a file
    programs.check("README.md", code, printed, capsys)


def test_the_arms_are_those_of_their_last_run():
    found = json.loads((ROOT / "tests/benchmarks/arms.json").read_text())
    table = README.split("<!-- arms table -->")[1].split("<!-- end of arms table -->")[0]
    assert table.strip() == arms_report.markdown(found).strip()
    settings = dict(found["settings"])
    del settings["parameters"]
    assert settings == arms.used(_training.FULL)


def test_the_calibrated_tables_are_those_of_their_last_run():
    found = json.loads((ROOT / "tests/benchmarks/calibrated.json").read_text())
    tables = README.split("<!-- calibrated tables -->")[1].split("<!-- end of calibrated tables -->")[0]
    assert tables.strip() == summary.markdown(found).strip()


def test_the_demo_begins_with_what_the_arms_chose():
    found = json.loads((ROOT / "tests/benchmarks/arms.json").read_text())
    rows = {row["arm"]: row for row in found["table"]}
    assert rows["init"]["init"] == rows["backslash"]["init"] == _training.FULL.xi
    assert rows["backslash"]["strength"] == _training.FULL.strength


def test_every_command_in_the_readme_is_there():
    modules = set(re.findall(r"python -m (tests\.[\w.]+)", README))
    assert {"tests.benchmarks.arms", "tests.benchmarks.bench_core"} <= modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_public_name_is_documented():
    import inspect

    import ggjax

    for module in (ggjax, ggjax.codec, ggjax.gennorm, ggjax.rate, ggjax.rf8, ggjax.serve, ggjax.train):
        for name in dir(module):
            thing = getattr(module, name)
            if name.startswith("_") or not inspect.isfunction(thing):
                continue
            if inspect.unwrap(thing).__module__.split(".")[0] != "ggjax":
                continue
            doc = inspect.getdoc(thing)
            assert doc, f"{module.__name__}.{name} has no docstring"
    for name in (
        "gg_init",
        "gg_reinit",
        "backslash",
        "backslash_to_rate",
        "deepshape",
        "apply_updates_stochastic",
    ):
        doc = inspect.getdoc(getattr(ggjax, name))
        assert all(part in doc for part in ("Args:", "Returns:", ">>> ")), name
