"""Tensors that are not to be rounded or cannot be: kept losslessly, and said to be; the others are rounded."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax.app import cli
from ggjax.codec.container import _safetensors


def run(*argv):
    return cli.main([str(a) for a in argv])


def save(path, arrays):
    _safetensors.write(path, [_safetensors.tensor_of(n, np.asarray(x)) for n, x in arrays.items()], dict)


RNG = np.random.default_rng(0)
W = RNG.normal(size=(50, 60)).astype(np.float32)
NAN = np.where(RNG.random(W.shape) < 0.01, np.float32(np.nan), W)
NAN.view(np.uint32)[0, 0] = 0x7FC12345  # with a payload
ODD = {
    "nan": (NAN, "NaN or infinite weights"),
    "inf": (np.where(W > 3, np.float32(np.inf), W), "NaN or infinite weights"),
    "subnormal": ((W * 1e-40).astype(np.float32), "weights too small for a step"),
    "wide": (W.astype(np.float64) * 1e300, "weights beyond float32"),
}
WAYS = [["--bits", 6], ["--snr-db", 20, "--per", "leaf"], ["--step", 0.1], ["--step-per-std", 0.1], ["--rf8"]]


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w[0])
def test_one_odd_tensor_does_not_stop_the_rest(tmp_path, capsys, way):
    path, small, back = (tmp_path / n for n in ("x.safetensors", "small", "back"))
    arrays = {"w": W, **{n: x for n, (x, _) in ODD.items()}}
    save(path, arrays)
    way = ["--bits", 30] if way[0] == "--bits" else way  # those that are kept count
    assert run("compress", path, *way, "-o", small, "-q") == 0
    out = capsys.readouterr()
    assert out.out == "" and sorted(out.err.splitlines()) == [
        "ggjax: kept losslessly: 'inf', 'nan': NaN or infinite weights",
        "ggjax: kept losslessly: 'subnormal': weights too small for a step",
        "ggjax: kept losslessly: 'wide': weights beyond float32",
    ]
    kinds = {t.name: t.kind for t in codec.inspect_file(small).tensors}
    assert kinds.pop("w") in ("rf8", "uniform") and set(kinds.values()) <= {"raw", "lossless"}
    assert run("decompress", small, "-o", back, "-q") == 0
    with _safetensors.opened(back) as f:
        for name in ODD:
            assert _safetensors.read_array(f, name).tobytes() == arrays[name].tobytes()
        assert 0 < np.abs(_safetensors.read_array(f, "w") - W).max() < 0.5


def test_weights_of_too_many_steps(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    save(path, {"w": W, "mask": np.triu(np.full((64, 64), -1e9, np.float32), 1), "m.weight": W * 1e12})
    assert run("compress", path, "--step", 0.01, "-o", tmp_path / "o", "-q") == 0
    assert capsys.readouterr().err == "ggjax: kept losslessly: 'm.weight': weights of 2^31 steps and more\n"
    back = codec.load_file(tmp_path / "o")
    assert np.asarray(back["m.weight"]).tobytes() == (W * 1e12).tobytes()


def test_what_is_kept_is_in_the_json_and_stats_leave_it_out(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    save(path, {"w": W, "nan": NAN})
    assert run("compress", path, "--rf8", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == {"nan": "NaN or infinite weights"}
    assert run("stats", path, "--json") == 0
    out = capsys.readouterr()
    assert [r["name"] for r in json.loads(out.out)] == ["w"]
    assert out.err == "ggjax: left out: 'nan': NaN or infinite weights\n"
    with pytest.warns(UserWarning, match="kept losslessly: 'nan': NaN or infinite weights"):
        codec.compress_file(path, tmp_path / "o", rf8=True)


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        ("w", "w_scale_inv"),
        ("layer.weight", "layer.weight_scale"),
        ("layer.weight", "layer.scale_weight"),
        ("layer/kernel", "layer/kernel/scale"),
    ],
)
def test_codes_with_scales_beside_them_are_not_rounded_again(tmp_path, capsys, codes, scales):
    path, small, back = (tmp_path / n for n in ("x.safetensors", "small", "back"))
    s = np.abs(W).reshape(50, 2, 30).max(-1) / 448
    code = (W.reshape(50, 2, 30) / s[..., None]).astype(jnp.float8_e4m3fn).reshape(W.shape)
    arrays = {codes: code, scales: np.tile(s, (1, 20)).astype(np.float32), "other": W, "f8": code}
    if codes == "w":
        arrays["x/f8"] = arrays.pop("f8")  # in another module
    else:
        arrays["f8"] = code
    save(path, arrays)
    assert run("compress", path, "--step-per-std", 0.5, "-o", small, "-q") == 0
    why = "8-bit codes with scales beside them"
    assert capsys.readouterr().err == f"ggjax: kept losslessly: {codes!r}: {why}\n"
    assert run("decompress", small, "-o", back, "-q") == 0
    with _safetensors.opened(back) as f:
        same = {n: _safetensors.read_array(f, n).tobytes() == x.tobytes() for n, x in arrays.items()}
    f8 = next(n for n in arrays if n.endswith("f8"))
    assert same == {codes: True, scales: True, "other": False, f8: False}
    assert run("compress", path, "--step-per-std", 0.5, "-o", small, "-fq", "--include", ".") == 0
    assert capsys.readouterr().err == ""
    assert {t.kind for t in codec.inspect_file(small).tensors} == {"uniform"}


def test_numbers_of_64_bits_come_back(tmp_path):
    arrays = {
        "seen": np.full((40, 40), 2**40 + 5, np.int64),
        "hash": np.array([2**63 + 7], np.uint64),
        "w": W,
        "pi": np.array([np.pi]),
    }
    path, small, back = (tmp_path / n for n in ("x.safetensors", "small", "back"))
    safetensors.numpy.save_file(arrays, path)
    assert run("compress", path, "--rf8", "-o", small, "-q") == 0 == run("decompress", small, "-o", back, "-q")
    got, loaded = safetensors.numpy.load_file(back), codec.load_file(small)
    for name in ("seen", "hash", "pi"):
        assert got[name].dtype == arrays[name].dtype and (got[name] == arrays[name]).all()
    for name in ("seen", "hash"):
        assert loaded[name].dtype == arrays[name].dtype and (loaded[name] == arrays[name]).all()
