"""The demo's measurements: the rows of its table, the frontiers of bits against loss, the sizes of files."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import codec, gennorm, rate, rf8
from ggjax.app import _calibrating, _lm
from ggjax.app._progress import Report
from ggjax.app._training import FINE, MIDDLE, Settings, model_of, size

FRONTIER_STEPS = tuple(2.0 ** (k / 2) for k in range(-20, -5))
"""Quantization steps of the frontier, 2^-10, 2^-9.5, ..., 2^-3."""

LOSS_RISES = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Loss levels at which the two frontiers are compared, relative to Adam's loss before quantization."""

COARSE_STEPS = tuple(2.0 ** (k / 4) for k in range(-52, -7))
"""Where the coarsest step within a limit is looked for: 2^-13, 2^-12.75, ..., 2^-2."""

LOSSES_OF_ALL = 4 * 10 + 2 * (len(FRONTIER_STEPS) + _calibrating.LOSSES)
"""About how often ``measure_all`` takes a loss."""

CALIBRATED = "_calibrated"

LossOf = Callable[[Any], float]


def measure_all(
    models: Mapping[str, Any], text: _lm.Text, s: Settings, report: Report, folder: Path
) -> dict[str, Any]:
    """The table, the frontiers of "adam" and "backslash", plain and calibrated, and the bits at equal loss.

    The models go to files in ``folder``, each at the coarsest step of its row.
    """
    model = model_of(s)
    windows = _lm.windows_of(text.test, s.test_windows, s.context)
    done = 0

    def loss_of(params: Any) -> float:
        nonlocal done
        value = float(_lm.evaluate(model, params, windows, batch=s.batch))
        done += 1
        report("measuring", done, loss=value)
        return value

    table = [measure(name, params, loss_of) for name, params in models.items()]
    with ThreadPoolExecutor() as pool:  # zstd -19 is slow: it runs beside the rest
        zstd_bytes = []
        for row, params in zip(table, models.values(), strict=True):
            path = folder / f"{row['model']}.ggjax.safetensors"
            sizes, plain = measure_file(path, params, row["step_1%"], loss_of)
            row |= sizes
            zstd_bytes.append(pool.submit(_zstd_bytes, plain))
        points = [
            {"model": name, **point}
            for name in ("adam", "backslash")
            for point in frontier(models[name], FRONTIER_STEPS, loss_of)
        ]
        for row in table[:2]:  # of both trainings
            name = row["model"] + CALIBRATED
            found = _calibrating.measure(
                name, row, models[row["model"]], text, s, folder / f"{name}.ggjax.safetensors", loss_of
            )
            table.append(found[0])
            points += found[1]
            zstd_bytes.append(pool.submit(_zstd_bytes, found[2]))
        for row, nbytes in zip(table, zstd_bytes, strict=True):
            row["zstd_bytes"] = nbytes.result()
    return {"table": table, "frontier": points, "saved": saved_bits(points, table[0]["loss"])}


def measure(name: str, params: Any, loss_of: LossOf) -> dict[str, Any]:
    """One row of the table."""
    loss = loss_of(params)
    coarse, coarse_loss = coarsest_step(params, 1.01 * loss, loss_of)
    row = {"model": name, "loss": loss, "nu": float(gennorm.fit(params).nu)}
    for key, step in (("2^-13", FINE), ("2^-8", MIDDLE), ("1%", coarse)):
        bits = rate.report(params, step, codes=("entropy", "exp_golomb")).total.bits
        row |= {f"entropy_{key}": bits["entropy"], f"exp_golomb_{key}": bits["exp_golomb"]}
    row |= {"step_1%": coarse, "loss_1%": coarse_loss}
    row["rf8_loss"] = loss_of(rf8.tree_decode(rf8.tree_encode(params)))
    return row


def measure_file(path: Path, params: Any, step: float, loss_of: LossOf) -> tuple[dict[str, float | int], bytes]:
    """Write a model to a compressed file and read it back; the sizes and the loss, and the plain tensors."""
    nbytes = codec.save_file(params, path, step=step)
    back = codec.load_file(path, like=params)
    plain = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(back))
    sizes = {
        "file_bytes": nbytes,
        "file_bits": 8 * nbytes / size(params),
        "file_loss": loss_of(back),
        "safetensors_bytes": len(plain),
    }
    return sizes, plain


def _zstd_bytes(plain: bytes) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=19).compress(plain))


def coarsest_step(params: Any, limit: float, loss_of: LossOf) -> tuple[float, float]:
    """The coarsest of ``COARSE_STEPS`` whose loss is within the limit, and that loss.

    By bisection: the loss is taken to rise with the step.
    """
    low, high, loss = 0, len(COARSE_STEPS), loss_of(quantize(params, COARSE_STEPS[0]))
    while high - low > 1:
        middle = (low + high) // 2
        value = loss_of(quantize(params, COARSE_STEPS[middle]))
        if value <= limit:
            low, loss = middle, value
        else:
            high = middle
    return COARSE_STEPS[low], loss


@jax.jit
def quantize(params: Any, step: jax.Array | float) -> Any:
    """Every parameter rounded to the nearest multiple of the step."""
    return jax.tree.map(lambda x: jnp.round(x / step) * step, params)


def frontier(params: Any, steps: Sequence[float], loss_of: LossOf) -> list[dict[str, float]]:
    """Entropy in bits per parameter and loss after quantization, at every step: {"step", "bits", "loss"}."""
    return [
        {"step": step, "bits": float(rate.bits(params, step)), "loss": loss_of(quantize(params, step))}
        for step in steps
    ]


def saved_bits(points: Sequence[Mapping[str, Any]], loss: float) -> list[dict[str, float]]:
    """Bits of the models at equal loss after quantization, interpolated between the points of the frontiers.

    Args:
      points: "frontier" of results.json.
      loss: Adam's loss before quantization; the levels are ``LOSS_RISES`` above it.

    Returns:
      {"rise", "loss", "adam", "backslash", "saved"} for every level that both frontiers reach, and
      "adam_calibrated" and "backslash_calibrated" where those do; "saved" is the share of Adam's bits.
    """
    rows = []
    for rise in LOSS_RISES:
        at = (1 + rise) * loss
        names = dict.fromkeys(p["model"] for p in points)
        found = {name: bits_at([p for p in points if p["model"] == name], at) for name in names}
        adam, ours = found["adam"], found["backslash"]
        if adam is not None and ours is not None:
            reached = {name: b for name, b in found.items() if b is not None}
            rows.append({"rise": rise, "loss": at, **reached, "saved": 1 - ours / adam})
    return rows


def bits_at(points: Sequence[Mapping[str, Any]], loss: float) -> float | None:
    """Bits of one model at a loss, linear between its points in the order of their bits; None outside them."""
    points = sorted(points, key=lambda p: -p["bits"])
    losses = np.maximum.accumulate([p["loss"] for p in points])
    if not losses[0] <= loss <= losses[-1]:
        return None
    return float(np.interp(loss, losses, [p["bits"] for p in points]))
