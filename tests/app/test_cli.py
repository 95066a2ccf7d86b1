"""The command line: help, errors of one line, exit codes, and Ctrl-C."""

import importlib.metadata
import importlib.util
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import ggjax
from ggjax.app import cli
from tests.app.fresh import printed_by

COMMAND = [sys.executable, "-m", "ggjax.app"]


def exits(argv):
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    return e.value.code


def test_help_explains_every_option_and_loads_nothing_heavy():
    code = (
        "import sys; from ggjax.app import cli\n"
        "try: cli.main(['demo', '--help'])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert not {'matplotlib', 'rich', 'ggjax.app.demo', 'ggjax.app._lm'} & set(sys.modules)"
    )
    printed = printed_by(code)
    for word in (
        "--quick",
        "--out DIR",
        "--seed N",
        "--quiet",
        "life.png",
        "results.json",
        "ggjax-demo",
        "2 cores",
    ):
        assert word in printed
    assert "--steps" not in printed


def test_help_and_version(capsys):
    assert exits(["--help"]) == 0
    out = capsys.readouterr().out
    assert "demo" in out and "tables" in out and "--version" in out
    assert exits(["tables", "--help"]) == 0
    assert "gamma.csv" in capsys.readouterr().out
    assert exits(["--version"]) == 0
    assert capsys.readouterr().out == f"ggjax {importlib.metadata.version('ggjax')}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "ggjax: the following arguments are required: COMMAND"),
        (["dome"], "ggjax: argument COMMAND: invalid choice: 'dome'"),
        (["demo", "--qick"], "ggjax: unrecognized arguments: --qick"),
        (
            ["demo", "--seed", "-1"],
            "ggjax demo: argument --seed: expected a whole number from 0 to 2^31 - 1, got '-1'",
        ),
        (["demo", "--seed", "x"], "got 'x'"),
        (
            ["demo", "--out", ""],
            "ggjax demo: argument -o/--out: expected the name of a folder, got an empty one",
        ),
        (["demo", "--out", __file__], f"expected a folder, but {__file__!r} is a file"),
        (["tables", "--out", __file__], "ggjax tables: argument -o/--out: expected a folder"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(argv, message, capsys):
    assert exits(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_missing_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert cli.main(["demo", "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "ggjax: the demo needs matplotlib: pip install 'ggjax[demo]'\n"
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main(["tables", "-o", str(tmp_path / "file" / "sub")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ggjax: ") and str(tmp_path / "file" / "sub") in err and err.count("\n") == 1


def test_tables(tmp_path, capsys):
    assert cli.main(["tables", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gamma.csv", "rf8.csv"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "gamma.csv"), str(tmp_path / "rf8.csv")]


def test_ctrl_c_leaves_one_line_and_no_file(tmp_path):
    out = tmp_path / "out"
    argv = [*COMMAND, "demo", "--steps", "100000", "-o", str(out)]
    # A shell that runs the tests in the background has them, and so their children, ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process as p:
        first = p.stderr.readline()  # it is training
        p.send_signal(signal.SIGINT)
        stdout, stderr = p.communicate(timeout=120)
    assert first.startswith("Adam: "), first + stderr
    assert p.returncode == 130
    assert stderr == "ggjax: interrupted: no file is half written\n" and stdout == ""
    assert list(out.iterdir()) == []


def test_files_need_neither_flax_nor_optax(tmp_path):
    """Which take longer to load than a small file. Flax learns of compressed trees with the first of them."""
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)}, path)
    code = (
        "import pickle, sys\n"
        "from ggjax.app import cli\n"
        f"small, back = {str(tmp_path / 'small')!r}, {str(tmp_path / 'back')!r}\n"
        f"for command in (['compress', {str(path)!r}, '--bits', '4', '-o', small], ['verify', small],\n"
        "                ['decompress', small, '-o', back]):\n"
        "    assert cli.main([*command, '-q']) == 0\n"
        "assert not {'flax', 'optax', 'chex', 'ggjax.rf8', 'ggjax.sensitivity'} & set(sys.modules)\n"
        f"tree = pickle.loads({pickle.dumps(ggjax.compress({'w': np.ones((64, 64), np.float32)}, bits=4))!r})\n"
        "from flax import serialization\n"
        "print(sorted(serialization.to_state_dict(tree)['w']))"
    )
    assert "'meta'" in printed_by(code)
