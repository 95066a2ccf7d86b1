"""The published tables are what the code computes, and what their definitions say."""

import csv
import itertools
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp

from ggjax import rf8
from ggjax.app import tables

PUBLISHED = Path(__file__).parents[2] / "tables"


def rows(path):
    with open(path, newline="", encoding="ascii") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder written by the command."""
    folder = tmp_path_factory.mktemp("tables") / "new"
    command = [sys.executable, "-m", "ggjax.app.tables", "--out", str(folder)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert out.stdout.split() == [str(folder / "gamma.csv"), str(folder / "rf8.csv")]
    assert sorted(p.name for p in folder.iterdir()) == ["gamma.csv", "rf8.csv"]  # nothing temporary stays
    return folder


def test_rf8_csv_is_what_the_code_computes(written):
    assert (PUBLISHED / "rf8.csv").read_bytes() == (written / "rf8.csv").read_bytes()


def test_gamma_csv_is_what_the_code_computes(written):
    """The shapes to the letter; the ratios to 1e-12: the last digits are the platform's."""
    published, new = rows(PUBLISHED / "gamma.csv"), rows(written / "gamma.csv")
    assert [r["nu"] for r in published] == [r["nu"] for r in new]
    ratios = [[float(r["rho"]) for r in table] for table in (published, new)]
    np.testing.assert_allclose(*ratios, rtol=1e-12)


def test_writing_again_gives_the_same_bytes_and_replaces(written, tmp_path):
    (tmp_path / "rf8.csv").write_text("old")
    for path in tables.write(tmp_path):
        assert path.read_bytes() == (written / path.name).read_bytes()
        assert b"\r" not in path.read_bytes() and path.read_bytes().endswith(b"\n")


def test_gamma_csv_is_the_ratio_of_gammas():
    table = rows(PUBLISHED / "gamma.csv")
    assert [r["nu"] for r in table] == [f"{k // 100}.{k % 100:02d}" for k in range(10, 301)]
    nu, rho = (np.array([float(r[k]) for r in table]) for k in ("nu", "rho"))
    np.testing.assert_allclose(rho, sp.gamma(1 / nu) * sp.gamma(3 / nu) / sp.gamma(2 / nu) ** 2, rtol=1e-12)
    np.testing.assert_allclose(rho[[90, 190]], [2, np.pi / 2], rtol=1e-13)


def test_rf8_csv_is_what_decode_gives():
    table = rows(PUBLISHED / "rf8.csv")
    assert list(table[0]) == ["code", "sign", "exponent", "residual", "value", "kind"]
    codes = np.array([int(r["code"]) for r in table])
    np.testing.assert_array_equal(codes, np.arange(256))
    values = np.array([float(r["value"]) for r in table])
    q = rf8.RF8Array(jnp.asarray(codes, jnp.uint8), jnp.int8([0]), jnp.dtype("float32"))
    np.testing.assert_array_equal(np.float64(rf8.decode(q)), values)
    residuals = (-0.25, -0.125, -0.0625, 0.0, 0.0625, 0.125, 0.25, 0.5)
    for row, (sign, exponent, residual) in zip(
        table, itertools.product((0, 1), range(16), residuals), strict=True
    ):
        assert (int(row["sign"]), int(row["exponent"]), float(row["residual"])) == (sign, exponent, residual)
        digits = (-1) ** sign * (2.0**exponent + residual * 2.0**exponent)
        zero = exponent == 0 and residual == -0.25
        assert float(row["value"]) == (0 if zero else digits)
    kinds = [r["kind"] for r in table]
    assert kinds[0] == "zero" and kinds.count("zero") == 1 and kinds.count("reserved") == 31
    keep = [i for i, kind in enumerate(kinds) if kind != "reserved"]
    again = rf8.encode(rf8.decode(q)[np.array(keep)])
    np.testing.assert_array_equal(again.codes, keep)
    assert np.all(np.diff(values[[i for i in keep if i < 128]]) > 0)  # magnitude bits rise with the value


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    tables.write(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(self, target):
        raise OSError("disk gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        tables.write(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
