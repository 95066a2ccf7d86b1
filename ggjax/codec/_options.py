"""How to code: the options of ``compress``, checked."""

from typing import Any, Literal, NamedTuple, get_args

from ggjax._internal import trees
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.quantize._steps import Want, check_want

Per = Literal["tree", "leaf"]
"""Whether bits and snr_db are asked of the whole tree or of every leaf."""


class Options(NamedTuple):
    """What is kept of the weights, and how."""

    kind: str  # the quantizer
    want: Want
    dead_zone: float = 0.0
    centroids: bool = False
    coder: str = "rans"
    per: Per = "tree"
    loss_rise: float | None = None  # in place of a step


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
    per: Per = "tree",
) -> Options:
    """The options, or ValueError (ImportError for a coder whose library is missing). See ``compress``."""
    want = Want(step, bits, snr_db, step_per_std)
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
        check_want(want)
    if not 0 <= dead_zone < 0.5:
        raise ValueError(f"dead_zone must be in [0, 0.5), got {dead_zone!r}")
    if coder not in CODERS:
        names = " or ".join(f'"{name}"' for name in CODERS)
        raise ValueError(f"coder must be {names}, got {coder!r}")
    CODERS[coder].check()
    if per not in get_args(Per):
        raise ValueError(f'per must be "tree" or "leaf", got {per!r}')
    kind = "lossless" if lossless else "rf8" if rf8 else "uniform"
    return Options(kind, want, float(dead_zone), bool(centroids), coder, per)


def of(*, loss_rise: float | None = None, sensitivity: Any = None, **asked: Any) -> Options:
    """The options of ``compress``, with a sensitivity or without; ValueError, ImportError as ``checked``."""
    if loss_rise is None and sensitivity is None:
        return checked(**asked)
    return _calibrated(loss_rise=loss_rise, sensitivity=sensitivity, **asked)


def _calibrated(
    *,
    loss_rise: float | None,
    sensitivity: Any,
    bits: float | None = None,
    coder: str = "rans",
    **others: Any,
) -> Options:
    odd = [n for n, v in others.items() if v not in (None, False, 0.0, "tree")]
    if odd:
        raise ValueError(f"with a sensitivity, give bits or loss_rise, not {' or '.join(odd)}")
    if sensitivity is None:
        raise ValueError("loss_rise needs sensitivity=, what ggjax.sensitivity.estimate gives")
    if (bits is None) == (loss_rise is None):
        raise ValueError(f"with a sensitivity, give one of bits and loss_rise, got {bits!r} and {loss_rise!r}")
    trees.check_positive("bits" if loss_rise is None else "loss_rise", bits if loss_rise is None else loss_rise)
    given = checked(bits=1.0 if bits is None else bits, coder=coder)
    return given._replace(kind="scaled", want=Want(bits=bits), loss_rise=loss_rise)


def is_of_all(given: Options) -> bool:
    """Whether the step depends on more than its own leaf, or on what comes out."""
    return given.want.bits is not None or given.want.snr_db is not None


def kept_losslessly(given: Options) -> Options:
    """How to code leaves that are not to be rounded: losslessly."""
    return Options("lossless", Want(), coder=given.coder)
