"""The README's promises: its Python runs, and CI runs its test command and nothing else."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_ci_runs_the_test_command_and_nothing_else():
    commands = [line for line in (ROOT / ".ci/run").read_text().splitlines() if not line.startswith("#")]
    assert commands[:2] == ["set -eu", 'cd "$(dirname "$0")/.."']
    assert commands[2:] == [blocks("sh")[1].strip()]


def test_the_two_commands_open_it():
    demo, test = (b.strip() for b in blocks("sh")[:2])
    assert demo.endswith("&& ggjax demo") and "venv" in demo and "[demo]" in demo
    assert "[test]" in test and "pytest" in test and "ruff" in test and "pyrefly" in test


def test_the_python_runs(capsys, tmp_path, monkeypatch):
    import jax

    monkeypatch.chdir(tmp_path)  # it writes a file

    (code,) = blocks("python")
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "bits per parameter at step" in out and "nu" in out


def test_every_public_name_is_documented():
    import inspect

    import ggjax

    for module in (ggjax, ggjax.codec, ggjax.gennorm, ggjax.rate, ggjax.rf8):
        for name in dir(module):
            thing = getattr(module, name)
            if name.startswith("_") or not inspect.isfunction(thing):
                continue
            if inspect.unwrap(thing).__module__.split(".")[0] != "ggjax":
                continue
            doc = inspect.getdoc(thing)
            assert doc, f"{module.__name__}.{name} has no docstring"
    for name in ("gg_init", "gg_reinit", "backslash", "deepshape", "apply_updates_stochastic"):
        doc = inspect.getdoc(getattr(ggjax, name))
        assert all(part in doc for part in ("Args:", "Returns:", ">>> ")), name
