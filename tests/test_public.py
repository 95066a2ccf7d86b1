"""The public names: one list behind ``__all__``, the lazy loader and what type checkers see."""

import ast
import importlib
import inspect
import pathlib

import pytest

import ggjax
from ggjax.codec import container

PACKAGES = [name for name in ggjax.__all__ if inspect.ismodule(getattr(ggjax, name))]


@pytest.mark.parametrize("package", [ggjax, ggjax.codec, container, ggjax.serve], ids=lambda m: m.__name__)
def test_type_checkers_see_what_is_loaded(package):
    tree = ast.parse(pathlib.Path(inspect.getfile(package)).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {a.asname: (n.module, a.name) for n in block.body for a in n.names}  # pyrefly: ignore
    assert {*seen} == {*package.__all__} - {"__version__"}
    for name, (module, original) in seen.items():
        assert name == original
        here = getattr(package, name)
        assert here is (
            importlib.import_module(f"ggjax.{name}")
            if module == "ggjax"
            else vars(importlib.import_module(module))[name]
        )


def test_dir_and_missing_names():
    assert dir(ggjax) == sorted(ggjax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'backlash'"):
        _ = ggjax.backlash
    assert dir(ggjax.codec) == sorted(ggjax.codec.__all__)
    with pytest.raises(AttributeError, match="'ggjax.codec' has no attribute 'compres'"):
        _ = ggjax.codec.compres


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented(package):
    module = getattr(ggjax, package)
    assert module.__doc__
    for name in dir(module):
        thing = getattr(module, name)
        if (
            not name.startswith("_")
            and callable(thing)
            and getattr(thing, "__module__", "").startswith("ggjax")
        ):
            assert inspect.getdoc(thing), f"ggjax.{package}.{name} has no docstring"
