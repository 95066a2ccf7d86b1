"""The command line with a sensitivity: a loss or a number of bits, and what the file then says of itself."""

import json
import re

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec, sensitivity
from ggjax.app import cli

MODEL = nn.Sequential([nn.Dense(160), nn.tanh, nn.Dense(64)])
X = jax.random.normal(jax.random.key(0), (512, 40)) * jnp.linspace(0.1, 2, 40)[None]


def run(*argv):
    try:
        return cli.main([str(a) for a in argv])
    except SystemExit as e:
        return e.code


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(the file of a model, its parameters, the file of their sensitivity)."""
    folder = tmp_path_factory.mktemp("calibrated")
    params = MODEL.init(jax.random.key(1), X)["params"]
    known = sensitivity.estimate(
        lambda p, x: MODEL.apply({"params": p}, x), params, X.reshape(8, 64, 40), key=jax.random.key(2)
    )
    sensitivity.save(known, folder / "known.safetensors")
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    flat["steps"] = np.arange(3)
    safetensors.numpy.save_file({n: np.asarray(x) for n, x in flat.items()}, folder / "model.safetensors")
    return folder / "model.safetensors", params, folder / "known.safetensors"


def divergence(params, new):
    old, new = (jax.nn.log_softmax(MODEL.apply({"params": p}, X)) for p in (params, new))
    return float(jnp.sum(jnp.exp(old) * (old - new), -1).mean())


def loaded(path):
    flat = codec.load_file(path, flat=True)
    assert flat.pop("steps").tolist() == [0, 1, 2]
    return flax.traverse_util.unflatten_dict(flat, sep=".")


def test_a_rise_is_met_and_info_tells_where_it_comes_from(model, tmp_path, capsys):
    path, params, known = model
    out = tmp_path / "o"
    assert run("compress", path, "--loss-rise", 0.01, "--sensitivity", known, "-o", out) == 0
    assert 0.005 < divergence(params, loaded(out)) < 0.015
    for name in ("layers_0", "layers_2"):  # biases come back to the bit
        np.testing.assert_array_equal(loaded(out)[name]["bias"], params[name]["bias"])
    capsys.readouterr()
    assert run("info", out) == 0
    shown = capsys.readouterr().out
    assert "scaled" in shown and "share" in shown
    assert float(re.search(r"per example: (\S+) in all", shown)[1]) == pytest.approx(0.01, rel=0.06)
    assert run("verify", out) == 0
    assert run("info", out, "--json") == 0
    told = json.loads(capsys.readouterr().out.partition("\n")[2])[0]
    assert sum(dict(t["params"]).get("rise", 0) for t in told["tensors"]) == pytest.approx(0.01, rel=0.06)


@pytest.mark.parametrize("bits", [5, 4])
def test_bits_are_never_exceeded(model, tmp_path, capsys, bits):
    path, params, known = model
    arguments = ("compress", path, "--bits", bits, "--sensitivity", known, "--json")
    assert run(*arguments, "--dry-run") == 0
    told = json.loads(capsys.readouterr().out)["files"][0]
    assert run(*arguments, "-o", tmp_path / "o") == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["output_bytes"] == told["output_bytes"]
    size = sum(x.size for x in jax.tree.leaves(params))
    taken = 8 * (told["output_bytes"] - 3 * 8) / size  # less the integers
    assert bits - 0.15 < taken <= bits
    plain = codec.compress_file(path, tmp_path / "plain", bits=bits, overwrite=True)
    assert abs(plain - told["output_bytes"]) < 0.05 * plain
    ours, theirs = (divergence(params, loaded(tmp_path / n)) for n in ("o", "plain"))
    assert ours < 0.8 * theirs


def test_several_files_are_rounded_together(model, tmp_path, capsys):
    path, params, known = model
    tensors = safetensors.numpy.load_file(path)
    where = {n: f"m-{1 + ('layers_2' in n)}.safetensors" for n in tensors}
    for file in set(where.values()):
        own = {n: x for n, x in tensors.items() if where[n] == file}
        safetensors.numpy.save_file(own, tmp_path / file, {"of": file})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    arguments = ("--loss-rise", 0.01, "--sensitivity", known)
    assert run("compress", index, *arguments, "-o", tmp_path / "small") == 0
    assert run("compress", path, *arguments, "-o", tmp_path / "one") == 0
    small = tmp_path / "small" / "m.ggjax.safetensors.index.json"
    jax.tree.map(np.testing.assert_array_equal, loaded(small), loaded(tmp_path / "one"))
    assert codec.inspect_file(tmp_path / "small" / "m-1.ggjax.safetensors").original == {
        "of": "m-1.safetensors"
    }


def test_what_cannot_be_done_is_said(model, tmp_path, capsys):
    path, params, known = model

    def error(*arguments):
        out = tmp_path / "none"
        assert run("compress", path, *arguments, "-o", out) == 2 and not out.exists()
        return capsys.readouterr().err

    assert "--loss-rise needs --sensitivity FILE" in error("--loss-rise", 0.01)
    assert "give bits or loss_rise" in error("--step", 0.1, "--sensitivity", known)
    assert "loss_rise must be" in error("--loss-rise", -1, "--sensitivity", known)
    assert "bits cannot be met" in error("--bits", 0.01, "--sensitivity", known)
    assert "no sensitivity file" in error("--bits", 3, "--sensitivity", path)
    other = tmp_path / "other.safetensors"
    sensitivity.save(sensitivity.update(sensitivity.init({"w": X}), {"w": X}), other)
    assert "kernel' is not in the sensitivity" in error("--bits", 3, "--sensitivity", other)
    assert "No such file" in error("--bits", 3, "--sensitivity", tmp_path / "nowhere")


def test_tensors_that_cannot_be_rounded_are_kept_and_named(model, tmp_path, capsys):
    path, params, known = model
    tensors = safetensors.numpy.load_file(path)
    tensors["layers_0.kernel"][0, 0] = np.nan
    odd = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file(tensors, odd)
    assert run("compress", odd, "--bits", 16, "--sensitivity", known, "-o", tmp_path / "o", "-q") == 0
    assert "layers_0.kernel" in capsys.readouterr().err
    back = codec.load_file(tmp_path / "o", flat=True)
    np.testing.assert_array_equal(back["layers_0.kernel"], tensors["layers_0.kernel"])
