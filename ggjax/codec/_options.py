"""How to code: the options of ``compress``, checked."""

from typing import NamedTuple

from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.quantize import _steps


class Options(NamedTuple):
    """What is kept of the weights, and how."""

    kind: str  # the quantizer
    want: _steps.Want
    dead_zone: float = 0.0
    centroids: bool = False
    coder: str = "rans"


def checked(
    *,
    step: float | None = None,
    bits: float | None = None,
    snr_db: float | None = None,
    step_per_std: float | None = None,
    rf8: bool = False,
    lossless: bool = False,
    dead_zone: float = 0.0,
    centroids: bool = False,
    coder: str = "rans",
) -> Options:
    """The options, or ValueError (ImportError for a coder whose library is missing). See ``compress``."""
    want = _steps.Want(step, bits, snr_db, step_per_std)
    if rf8 or lossless:
        ways = (*want._asdict().items(), ("rf8", rf8), ("lossless", lossless))
        given = [n for n, v in ways if v not in (None, False)]
        if len(given) > 1:
            raise ValueError(
                f"give one of step, bits, snr_db, step_per_std, rf8, lossless; got {' and '.join(given)}"
            )
        if dead_zone or centroids:
            raise ValueError("dead_zone and centroids belong to a step, not to rf8 or lossless")
    else:
        _steps.check_want(want)
    if not 0 <= dead_zone < 0.5:
        raise ValueError(f"dead_zone must be in [0, 0.5), got {dead_zone!r}")
    if coder not in CODERS:
        names = " or ".join(f'"{name}"' for name in CODERS)
        raise ValueError(f"coder must be {names}, got {coder!r}")
    CODERS[coder].check()
    kind = "lossless" if lossless else "rf8" if rf8 else "uniform"
    return Options(kind, want, float(dead_zone), bool(centroids), coder)
