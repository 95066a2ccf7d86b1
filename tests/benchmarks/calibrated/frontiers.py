"""The frontiers of every arm on one subject, and what ``compress`` makes when it is asked for a loss."""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ggjax
from ggjax import sensitivity
from ggjax.sensitivity import Sensitivity
from tests.benchmarks.calibrated import arms, measure
from tests.benchmarks.calibrated.arms import Rounding
from tests.benchmarks.calibrated.cells import Once
from tests.benchmarks.calibrated.measure import Judge, Point
from tests.benchmarks.calibrated.subject import Subject, bits_of

COMPRESS, MEASURED, COMPENSATED = "compress", "compress_measured", "compensated"


class Bench(NamedTuple):
    """A subject on the bench."""

    name: str
    subject: Subject
    judge: Judge
    once: Once
    folder: Path


def known_of(bench: Bench, batches: int) -> Sensitivity:
    """The sensitivity from so many batches, from the folder if it is there."""
    s = bench.subject
    path = bench.folder / f"{bench.name}-{batches}.sensitivity.safetensors"
    if not path.exists():
        begin = time.perf_counter()
        found = sensitivity.estimate(
            s.apply, s.params, s.batches(batches), key=jax.random.key(0), output=s.output, mask=s.mask
        )
        sensitivity.save(found, path)
        say(f"{bench.name}: sensitivity of {batches} batches in {time.perf_counter() - begin:.0f} s")
    return sensitivity.load(path)


def frontier(
    bench: Bench,
    arm: str,
    batches: int = 0,
    known: Callable[[], Sensitivity] | None = None,
    kind: str | None = None,
) -> list[Point]:
    """The points of an arm; a sensitivity of so many batches is estimated or read when a point needs it.

    Args:
      known: gives another sensitivity than the one of the subject.
      kind: the arm that rounds by it, if that is known by another name.
    """
    make: Callable[[], Callable[[float], Rounding]]
    if arm in arms.PLAIN:
        leaves = arms.chosen_of(bench.subject).values()
        spread = np.exp(np.mean([np.log(float(np.std(x))) for x in leaves]))
        start = 2.0**-3.5 if arm == "leaf_bits" else float(f"{0.3 * spread:.2g}")
        make = functools.cache(lambda: functools.partial(arms.plain, bench.subject, arm))
    else:
        start = arms.start_of(bench.subject, bench.judge.range[0] * bench.judge.unit)
        start = float(f"{start:.2g}")
        take = known or functools.partial(known_of, bench, batches)
        make = functools.cache(lambda: arms.calibrated(bench.subject, kind or arm, take()))
    ratio = 2.0**0.3 if arm == "leaf_bits" else measure.RATIO

    def point(constant: float) -> Point:
        key = {"subject": bench.name, "arm": arm, "batches": batches, "constant": f"{constant:.6g}"}
        return bench.once(key, lambda: _measured(bench, arm, batches, constant, make()(constant)))

    return measure.walk(point, bench.judge, start, ratio)


def _measured(bench: Bench, arm: str, batches: int, constant: float, rounded: Rounding) -> Point:
    point = {"bits": rounded.bits, "constant": constant, **bench.subject.quality(rounded.params, "test")}
    say(f"{bench.name} {arm} {batches}: {rounded.bits:.3f} bits, cost {bench.judge.cost(point):.5f}")
    return point


def asked(bench: Bench, batches: int, shares: Sequence[float], *, loss: bool = False) -> list[Point]:
    """What ``compress(loss_rise=)`` makes of some costs that it is asked for.

    Args:
      shares: what is asked, as costs.
      loss: give it the loss on validation data to measure by.
    """
    s = bench.subject
    arm = MEASURED if loss else COMPRESS

    def make(share: float) -> Point:
        begin = time.perf_counter()
        options: dict[str, Any] = {}
        if loss:
            # In the unit of the sensitivity, which averages over outputs that do not count as well.
            options["loss"] = lambda params: s.quality(params, "validation")["loss"] * s.share
        small = ggjax.compress(
            s.params,
            loss_rise=share * bench.judge.unit,
            sensitivity=known_of(bench, batches),
            mask=s.mask,
            **options,
        )
        seconds = time.perf_counter() - begin
        point = _measured(bench, arm, batches, share, Rounding(ggjax.decompress(small), bits_of(small, s)))
        return point | {"asked": share, "seconds": round(seconds, 1)}

    key = {"subject": bench.name, "arm": arm, "batches": batches}
    return [bench.once(key | {"asked": x}, functools.partial(make, x)) for x in shares]


def compensated(bench: Bench, batches: int, shares: Sequence[float]) -> list[Point]:
    """What ``compensate`` makes of the bits that ``compress`` took when it was asked for some costs."""
    s = bench.subject

    def make(bits: float) -> Point:
        begin = time.perf_counter()
        rounded = sensitivity.compensate(
            s.apply,
            s.params,
            s.batches(batches),
            known_of(bench, batches),
            bits=bits,
            output=s.output,
            mask=s.mask,
        )
        seconds = time.perf_counter() - begin
        small = ggjax.compress(rounded)
        point = _measured(
            bench, COMPENSATED, batches, bits, Rounding(ggjax.decompress(small), bits_of(small, s))
        )
        return point | {"seconds": round(seconds, 1)}

    def point(before: Point) -> Point:
        bits = round(before["bits"], 3)
        key = {"subject": bench.name, "arm": COMPENSATED, "batches": batches, "bits": bits}
        return bench.once(key, functools.partial(make, bits))

    return [point(p) for p in asked(bench, batches, shares)]


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
