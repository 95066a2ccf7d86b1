"""Write the published tables, gamma.csv and rf8.csv: ``python -m ggjax.app.tables [--out tables]``.

The library never reads these files; they are the numbers it computes, for people and other programs.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ggjax import gennorm, rf8
from ggjax._internal.atomic import new_file


def gamma_csv() -> str:
    """The text of gamma.csv: 291 rows of nu (two decimals) and rho(nu) (the shortest exact float64).

    >>> gamma_csv().splitlines()[0]
    'nu,rho'
    """
    nu, rho = gennorm.table()
    rows = [f"{n:.2f},{float(r)!r}" for n, r in zip(nu, rho, strict=True)]
    return "\n".join(["nu,rho", *rows, ""])


def rf8_csv() -> str:
    """The text of rf8.csv: one row for each of the 256 bytes.

    >>> print("\\n".join(rf8_csv().splitlines()[:4]))
    code,sign,exponent,residual,value,kind
    0,0,0,-0.25,0.0,zero
    1,0,0,-0.125,0.875,value
    2,0,0,-0.0625,0.9375,value
    """
    rows = ["code,sign,exponent,residual,value,kind"]
    for code, value in enumerate(rf8.values()):
        sign, exponent, residual = code >> 7, code >> 3 & 15, rf8.RESIDUALS[code & 7]
        kind = "zero" if code == 0 else "reserved" if rf8.is_reserved(code) else "value"
        rows.append(f"{code},{sign},{exponent},{residual},{float(value)!r},{kind}")
    return "\n".join([*rows, ""])


def write(folder: str | os.PathLike[str]) -> list[Path]:
    """Write both tables into a folder (made if need be), each under a temporary name first.

    Args:
      folder: where to; files of the same names are replaced.

    Returns:
      The paths of the two files.

    >>> import tempfile
    >>> [p.name for p in write(tempfile.mkdtemp())]
    ['gamma.csv', 'rf8.csv']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in (("gamma.csv", gamma_csv()), ("rf8.csv", rf8_csv())):
        with new_file(folder / name) as f:
            f.write(text.encode("ascii"))
        paths.append(folder / name)
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m ggjax.app.tables",
        description="Write gamma.csv (the ratio of moments of 291 shapes) and rf8.csv (the 256 RF8 codes).",
    )
    parser.add_argument("--out", default="tables", help="the folder to write to (default: %(default)s)")
    for path in write(parser.parse_args(argv).out):
        print(path)


if __name__ == "__main__":
    main()
