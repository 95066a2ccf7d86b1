"""Every recipe of ggjax/RECIPES.md runs and prints what stands below it."""

import pathlib
import re

import pytest

from tests import programs

RECIPES = (pathlib.Path(__file__).parent.parent / "ggjax/RECIPES.md").read_text()
PROGRAMS = programs.programs_of(RECIPES)
EXTRAS = "haiku|equinox|orbax"


def test_every_recipe_is_short_and_followed_by_what_it_prints():
    assert [code for code, _ in PROGRAMS] == programs.blocks(RECIPES, "python") and len(PROGRAMS) == 10
    assert all(len([x for x in code.splitlines() if x]) <= 22 for code, _ in PROGRAMS)


@pytest.mark.parametrize(("code", "printed"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_recipe_prints_what_stands_below_it(code, printed, capsys, tmp_path, monkeypatch):
    for package in re.findall(rf"^import ({EXTRAS})\b", code, re.MULTILINE):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    programs.check("RECIPES.md", code, printed, capsys)
