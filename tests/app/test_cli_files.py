"""The commands on checkpoints: what they write and print, and what they refuse."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax.app import cli
from tests.app.fresh import printed_by


@pytest.fixture
def model(tmp_path):
    """A checkpoint that this project did not make, in a folder of its own."""
    rng = np.random.default_rng(0)
    arrays = {
        "embed.weight": rng.laplace(size=(60, 50)).astype(np.float32) * 0.05,
        "layer.weight": rng.normal(size=(50, 60)).astype(np.float32),
        "layer.bias": np.ones(60, np.float32),
        "ids": np.arange(5, dtype=np.int64),
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    return path


def run(*argv):
    return cli.main([str(a) for a in argv])


def test_compress_verify_decompress(model, capsys):
    small, back = model.with_name("model.ggjax.safetensors"), model.with_name("back.safetensors")
    assert run("compress", model, "--lossless") == 0
    assert f"wrote {small}: {small.stat().st_size:,} bytes" in capsys.readouterr().out
    assert run("verify", small) == 0
    assert "4 tensors" in capsys.readouterr().out
    assert run("decompress", small, "-o", back) == 0
    assert back.read_bytes() == model.read_bytes()


def test_files_of_many_equal_weights_want_to_be_allowed(tmp_path, capsys):
    small = tmp_path / "model.ggjax.safetensors"
    codec.save_file({"w": np.zeros(5000, np.float32)}, small, step=1.0)
    for command in ("verify", "decompress", "stats"):
        for most in ("19999", "1"):
            assert run(command, small, "--max-bytes", most) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{small}: its arrays take 20,000 bytes" in line and "--max-bytes 20000" in line
        assert [p.name for p in tmp_path.iterdir()] == [small.name]
    for command in ("verify", "decompress", "stats"):
        for most in ("20000", "inf"):
            extra = ["-f"] if command == "decompress" else []
            assert run(command, small, "--max-bytes", most, *extra) == 0
    with pytest.raises(SystemExit):
        run("verify", small, "--max-bytes", "2G")
    assert "expected a whole number of bytes, or inf, got '2G'" in capsys.readouterr().err


def test_default_names(model, capsys):
    before = model.read_bytes()
    assert run("compress", model, "--rf8", "-q") == 0
    model.unlink()
    assert run("decompress", model.with_name("model.ggjax.safetensors"), "-q") == 0
    assert capsys.readouterr().out == ""
    assert len(model.read_bytes()) == len(before)


def test_include_and_exclude(model, tmp_path, capsys):
    out = tmp_path / "o"
    assert run("compress", model, "--step", 0.01, "--include", "weight", "--exclude", "^embed", "-o", out) == 0
    kinds = {t.name: t.kind for t in codec.inspect_file(out).tensors}
    assert kinds == {"embed.weight": "raw", "layer.weight": "uniform", "layer.bias": "raw", "ids": "raw"}


def test_dry_run_tells_the_size_and_writes_nothing(model, tmp_path, capsys):
    assert run("compress", model, "--bits", 3, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dry_run"] and len(list(tmp_path.iterdir())) == 1
    assert run("compress", model, "--bits", 3, "-o", tmp_path / "o", "--json") == 0
    wrote = json.loads(capsys.readouterr().out)["files"][0]
    assert wrote["output_bytes"] == told["files"][0]["output_bytes"] == (tmp_path / "o").stat().st_size


def test_info(model, tmp_path, capsys):
    run("compress", model, "--snr-db", 20, "-o", tmp_path / "o", "-q")
    assert run("info", tmp_path / "o") == 0
    out = capsys.readouterr().out
    assert "format version 2" in out and "50x60" in out and "uniform" in out and "embed.weight" in out
    assert run("info", tmp_path / "o", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["original"] == {"format": "pt"} and len(told["tensors"]) == 4


def test_stats_of_plain_and_compressed(model, tmp_path, capsys):
    assert run("stats", model, "--json", "--step-per-std", 0.1) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"embed.weight", "layer.weight"}
    assert abs(rows["embed.weight"]["nu"] - 1) < 0.15 and abs(rows["layer.weight"]["nu"] - 2) < 0.3
    w = safetensors.numpy.load_file(model)["layer.weight"]
    step = rows["layer.weight"]["step"]
    assert abs(step - 0.1 * w.std()) < 1e-6 and abs(rows["layer.weight"]["std"] - w.std()) < 1e-6
    level = np.rint(w / np.float32(step))
    p = np.unique(level, return_counts=True)[1] / w.size
    assert abs(rows["layer.weight"]["entropy"] + (p * np.log2(p)).sum()) < 1e-3
    assert (
        abs(rows["layer.weight"]["snr_db"] - 10 * np.log10(np.mean(w**2) / np.mean((w - level * step) ** 2)))
        < 1e-3
    )
    run("compress", model, "--lossless", "-o", tmp_path / "o", "-q")
    assert run("stats", tmp_path / "o") == 0
    assert "2 tensors, 6,000 parameters" in capsys.readouterr().out


@pytest.mark.parametrize("asked, value", [("--bits", 3), ("--snr-db", 20)])
def test_stats_ask_all_tensors_together(tmp_path, capsys, asked, value):
    """One step for all, as compress has it; each alone would get one of its own."""
    rng = np.random.default_rng(0)
    scales = {"a": 1.0, "b": 0.2, "c": 0.05}
    arrays = {n: (s * rng.normal(size=(100, 150))).astype(np.float32) for n, s in scales.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "x")
    assert run("stats", tmp_path / "x", "--json", asked, value) == 0
    rows = json.loads(capsys.readouterr().out)
    (step,) = {r["step"] for r in rows}
    if asked == "--bits":
        assert abs(np.mean([r["entropy"] for r in rows]) - value) < 0.05
    power = sum(np.square(x).sum() for x in arrays.values())
    noise = sum(np.square(x - step * np.rint(x / step)).sum() for x in arrays.values())
    if asked == "--snr-db":
        assert abs(10 * np.log10(power / noise) - value) < 0.05
    small = codec.compress(arrays, mask=None, **{asked[2:].replace("-", "_"): value})
    assert all(abs(x.meta.step / step - 1) < 0.1 for x in small.tree.values())


def several(folder):
    """A checkpoint in two files with an index."""
    rng = np.random.default_rng(1)
    weights = {f"w{i}": rng.normal(size=(40, 40)).astype(np.float32) for i in range(3)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    safetensors.numpy.save_file({k: weights[k] for k in ("w0", "w1")}, folder / names[0], {"format": "pt"})
    safetensors.numpy.save_file({"w2": weights["w2"]}, folder / names[1], {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    where = {"w0": names[0], "w1": names[0], "w2": names[1]}
    index.write_text(json.dumps({"metadata": {"total_size": 19200}, "weight_map": where}))
    return index, weights


def test_checkpoints_in_several_files(tmp_path, capsys):
    index, weights = several(tmp_path)
    assert run("compress", index, "--lossless", "-o", tmp_path / "small") == 0
    small = tmp_path / "small" / "model.ggjax.safetensors.index.json"
    files = {"model-00001-of-00002.ggjax.safetensors", "model-00002-of-00002.ggjax.safetensors"}
    assert {p.name for p in small.parent.iterdir()} == {*files, small.name}
    assert set(json.loads(small.read_text())["weight_map"].values()) == files
    for name, x in codec.load_file(small).items():
        np.testing.assert_array_equal(x, weights[name])
    for command in ("verify", "info", "stats"):
        assert run(command, small) == 0
    assert run("decompress", small, "-o", tmp_path / "back") == 0
    for path in tmp_path.glob("*.safetensors"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "back" / index.name).read_text()) == json.loads(index.read_text())


def test_the_index_is_not_overwritten(tmp_path, capsys):
    """Not even with --force: a compressed checkpoint whose index has the plain name."""
    index, _ = several(tmp_path)
    assert run("compress", index, "--lossless", "-o", tmp_path / "small", "-q") == 0
    made = tmp_path / "small" / "model.ggjax.safetensors.index.json"
    plain = made.rename(made.with_name("model.safetensors.index.json"))
    before = plain.read_bytes()
    assert run("decompress", plain, "--force") == 2
    assert "is the input" in capsys.readouterr().err and plain.read_bytes() == before


def test_an_index_without_metadata(tmp_path):
    index, _ = several(tmp_path)
    index.write_text(json.dumps({"metadata": None, "weight_map": json.loads(index.read_text())["weight_map"]}))
    assert run("compress", index, "--rf8", "-o", tmp_path / "small", "-q") == 0
    assert run("verify", tmp_path / "small" / "model.ggjax.safetensors.index.json", "-q") == 0


def test_a_dry_run_makes_no_folder(tmp_path):
    index, _ = several(tmp_path)
    assert run("compress", index, "--rf8", "-o", tmp_path / "small", "--dry-run", "-q") == 0
    assert not (tmp_path / "small").exists()


def test_names_are_shown_as_they_may_be(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a\x1b[31m\nb": np.ones(3000, np.float32)}, path)
    assert run("compress", path, "--rf8", "-v") == 0 and run("info", tmp_path / "x.ggjax.safetensors") == 0
    out = capsys.readouterr()
    for text in (out.out, out.err):
        assert "\x1b" not in text and r"a\x1b[31m\nb" in text


def test_stats_of_weights_on_the_grid_are_json(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"w": np.round(np.linspace(-9, 9, 3000)).astype(np.float32)}, path)
    assert run("stats", path, "--step", 1, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(c))
    assert row["snr_db"] is None


def test_a_reader_that_goes_away_is_no_error(model, tmp_path):
    run("compress", model, "--rf8", "-q", "-o", tmp_path / "o")
    command = f"{sys.executable} -m ggjax.app info {tmp_path / 'o'} | true"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stderr == ""


def test_nothing_is_overwritten(model, tmp_path, capsys):
    out = tmp_path / "o"
    out.write_text("mine")
    assert run("compress", model, "--rf8", "-o", out) == 2
    assert out.read_text() == "mine"
    assert capsys.readouterr().err == f"ggjax: {out} exists already: --force replaces it\n"
    assert run("compress", model, "--rf8", "-o", model, "--force") == 2
    assert "is the input" in capsys.readouterr().err
    assert run("compress", model, "--rf8", "-o", out, "--force", "-q") == 0
    assert run("verify", out) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compress", "nowhere", "--rf8"], "nowhere does not exist: expected a .safetensors file"),
        (
            ["compress", ".", "--rf8"],
            "a folder of a checkpoint has an index or a .safetensors file; this one has none",
        ),
        (["compress", "{model}", "--step", "-1"], "step must be positive and finite, got -1.0"),
        (
            ["compress", "{model}", "--step", "1", "--dead-zone", "0.7"],
            "dead_zone must be in [0, 0.5), got 0.7",
        ),
        (["compress", "{model}", "--rf8", "--include", "("], "--include '(' is not a regular expression"),
        (["decompress", "{model}"], "no 'ggjax' in __metadata__: not a compressed file"),
        (["info", "{model}"], "not a compressed file"),
        (["verify", "{model}"], "not a compressed file"),
        (["info", "{junk}"], "junk: 4 bytes, too short for a safetensors file"),
        (["stats", "{model}", "--bits", "0"], "bits must be positive and finite, got 0.0"),
        (["verify", "{index}"], "names the file 'gone.safetensors', which is not there"),
        (["verify", "{outside}"], "names the file '../x', expected one of the same folder"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_is_one_line_and_code_2(model, tmp_path, capsys, argv, message):
    places = {n: tmp_path / n for n in ("junk", "index.json", "outside.json")}
    places["junk"].write_bytes(b"junk")
    places["index.json"].write_text('{"weight_map": {"w": "gone.safetensors"}}')
    places["outside.json"].write_text('{"weight_map": {"w": "../x"}}')
    names = {"model": model, **{name.split(".")[0]: path for name, path in places.items()}}
    before = sorted(tmp_path.iterdir())
    assert run(*(a.format(**names) for a in argv)) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1
    assert message in out.err
    assert sorted(tmp_path.iterdir()) == before


def test_one_way_to_code_has_to_be_chosen(model, capsys):
    for options in ([], ["--rf8", "--lossless"]):
        with pytest.raises(SystemExit) as e:
            run("compress", model, *options)
        assert e.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_info_needs_no_jax(model, tmp_path, capsys):
    """So it answers at once; and it tells what ``inspect_file`` tells."""
    assert run("compress", model, "--bits", 4, "--centroids", "-q", "-o", tmp_path / "o") == 0
    code = (
        "import sys; from ggjax.app import cli\n"
        f"assert cli.main(['info', {str(tmp_path / 'o')!r}, '--json']) == 0\n"
        "assert not {'jax', 'flax', 'rich'} & set(sys.modules), set(sys.modules)"
    )
    (told,) = json.loads(printed_by(code))
    want = codec.inspect_file(tmp_path / "o")
    assert told["tensors"] == json.loads(json.dumps([t._asdict() for t in want.tensors]))


def test_progress_is_shown_on_a_terminal_only(model, tmp_path):
    command = [sys.executable, "-m", "ggjax.app", "compress", str(model), "--rf8", "-o", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1
    done = subprocess.run([*command, "-f", "-v"], capture_output=True, text=True, timeout=120)
    assert done.stderr.count("\n") == 4
