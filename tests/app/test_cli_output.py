"""What the commands print and where they write: any terminal, pipes, JSON."""

import io
import json
import sys

import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax.app import cli
from tests.app.fresh import printed_by
from tests.codec import forging


def run(*argv):
    return cli.main([str(a) for a in argv])


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"层.weight": rng.normal(size=(50, 60)), "b.weight": rng.normal(size=(40, 50))}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({n: x.astype(np.float32) for n, x in arrays.items()}, path, {"format": "pt"})
    return path


class Pipe(io.TextIOWrapper):
    """A stream in place of stdin, stdout or stderr; ``raw_bytes`` is what was written to it."""

    def __init__(self, data=b"", encoding="utf-8"):
        self.raw_bytes = io.BytesIO(data)
        super().__init__(self.raw_bytes, encoding=encoding, errors="strict", write_through=True)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_the_output_cannot_encode(model, tmp_path, monkeypatch, encoding):
    """Nothing fails half way: what the encoding does not have is escaped, on stderr too."""
    path = model.rename(tmp_path / "m\udce9.safetensors")  # a name that is not UTF-8
    out, err = Pipe(encoding=encoding), Pipe(encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert run("compress", path, "--rf8", "-v") == 0
    small = tmp_path / "m\udce9.ggjax.safetensors"
    for argv in (["info", small], ["stats", path], ["verify", small, "-v"], ["info", small, "--json"]):
        assert run(*argv) == 0
    assert run("info", path) == 2
    text, errors = (p.raw_bytes.getvalue().decode(encoding) for p in (out, err))
    name = "层" if encoding == "utf-8" else "\\u5c42"
    assert f"{name}.weight" in text and f"{name}.weight" in errors
    assert "m\\udce9.ggjax.safetensors" in text and "m\\udce9.safetensors: no 'ggjax'" in errors


def test_json_is_always_json(tmp_path, capsys):
    """No NaN and no infinity, which some readers refuse."""
    path = tmp_path / "x.safetensors"
    largest = np.finfo(np.float32).max
    arrays = {
        "mask": np.triu(np.full((64, 64), -largest), 1),
        "zero": np.zeros((64, 64), np.float32),
        "grid": np.arange(4096, dtype=np.float32).reshape(64, 64),
    }
    safetensors.numpy.save_file({n: x.astype(np.float32) for n, x in arrays.items()}, path)
    commands = [["compress", path, "--rf8", "--include", ".", "-o", tmp_path / "o"], ["stats", path]]
    commands += [["stats", path, "--step", 1, "-q"], ["info", tmp_path / "o"], ["verify", tmp_path / "o"]]
    for argv in [*commands, ["decompress", tmp_path / "o", "-o", tmp_path / "back"]]:
        assert run(*argv, "--json") == 0
        assert json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(c))


def test_bits_per_parameter_beside_the_percentage(model, tmp_path, capsys):
    assert run("compress", model, "--bits", 4) == 0
    small = model.with_name("model.ggjax.safetensors")
    size = small.stat().st_size
    assert f"{100 * size / model.stat().st_size:.1f} %" in (out := capsys.readouterr().out)
    assert out.endswith(f", {8 * size / 5000:.3f} bits per parameter\n")
    assert run("compress", model, "--bits", 4, "--dry-run", "--json", "-o", tmp_path / "o") == 0
    (told,) = json.loads(capsys.readouterr().out)["files"]
    assert told["parameters"] == 5000 and told["bits"] == 8 * size / 5000
    assert run("decompress", small, "-o", tmp_path / "back") == 0
    assert "per parameter" not in capsys.readouterr().out


def test_what_a_file_of_tomorrow_needs_is_told(model, tmp_path, capsys):
    run("compress", model, "--rf8", "-q", "-o", tmp_path / "o")
    header, meta, body = forging.taken_apart((tmp_path / "o").read_bytes())
    meta["tensors"]["b.weight"]["needs"] = ["rows"]
    (tmp_path / "o").write_bytes(forging.packed(header, meta, body))
    assert run("info", tmp_path / "o") == 0
    assert "b.weight: needs 'rows', which this version of ggjax does not know" in capsys.readouterr().out
    assert run("info", tmp_path / "o", "--json") == 0
    problems = {t["name"]: t["problem"] for t in json.loads(capsys.readouterr().out)[0]["tensors"]}
    assert "rows" in problems["b.weight"] and problems["层.weight"] == ""


@pytest.mark.parametrize("command", ["compress", "stats"])
def test_what_is_to_be_included_must_be_there(model, tmp_path, capsys, command):
    options = ["--rf8", "-o", tmp_path / "o"] if command == "compress" else []
    assert run(command, model, *options, "--include", "weight", "--include", "^wieght") == 2
    assert capsys.readouterr().err == f"ggjax: --include '^wieght' matches no tensor of {model}\n"
    assert not (tmp_path / "o").exists()
    assert run(command, model, *options, "--include", r"^b\.") == 0


def test_pipes(model, tmp_path, capsys, monkeypatch):
    """From stdin to stdout and back gives what files give."""
    assert run("compress", model, "--lossless", "-q") == 0
    small = model.with_name("model.ggjax.safetensors")
    for command, source, want in (("compress", model, small), ("decompress", small, model)):
        out = Pipe()
        monkeypatch.setattr(sys, "stdin", Pipe(source.read_bytes()))
        monkeypatch.setattr(sys, "stdout", out)
        assert run(command, "-", *(["--lossless"] if command == "compress" else []), "-o", "-") == 0
        assert out.raw_bytes.getvalue() == want.read_bytes()
        assert capsys.readouterr().err.startswith(f"wrote -: {want.stat().st_size:,} bytes")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Pipe(small.read_bytes()))
    assert run("verify", "-") == 0
    assert capsys.readouterr().out.startswith("-: 2 tensors, ")
    assert {p.name for p in tmp_path.iterdir()} == {model.name, small.name}


def test_a_fifo(model, tmp_path, capsys):
    """As ``<(command)`` and /dev/stdin are."""
    import os
    import threading

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(model.read_bytes()))
    writer.start()
    assert run("compress", fifo, "--rf8", "-o", tmp_path / "o", "--json") == 0
    writer.join()
    (told,) = json.loads(capsys.readouterr().out)["files"]
    assert told["input"] == str(fifo) and set(codec.load_file(tmp_path / "o")) == {"层.weight", "b.weight"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compress", "-", "--rf8"], "- has no name to make another of: say by --out where to write"),
        (
            ["compress", "{model}", "--rf8", "-o", "-", "--json"],
            "--out - and --json would both write to stdout",
        ),
        (["compress", "{index}", "--rf8", "-o", "-"], "--out - takes one file, not the several of an index"),
        (["info", "-"], "-: 4 bytes, too short for a safetensors file"),
        (["decompress", "-", "-o", "o"], "-: 4 bytes, too short for a safetensors file"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_pipes_that_cannot_be(model, tmp_path, capsys, monkeypatch, argv, message):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b.weight": model.name}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Pipe(b"junk"))
    assert run(*(a.format(model=model, index=index) for a in argv)) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.startswith(f"ggjax: {message}") and out.err.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {model.name, index.name}


def test_help_answers_before_jax_is_loaded():
    code = (
        "import sys; from ggjax.app import cli\n"
        "try: cli.main(['compress', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'flax', 'rich'} & set(sys.modules), set(sys.modules)"
    )
    printed = printed_by(code)
    for word in ("--lossless", "--bits B", "--include REGEX", "--dry-run", "--force"):
        assert word in printed
