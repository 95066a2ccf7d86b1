"""The demo's calibrated compression: the weights of both trainings, rounded by what some batches say."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ggjax import codec, sensitivity
from ggjax.app import _lm
from ggjax.app._training import Settings, model_of, size

BATCHES = 10
BITS = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0)
"""What is asked at the points of the frontier, in bits per parameter."""

RISE = 0.01
"""What the file may cost: this share of the loss."""

LOSSES = len(BITS) + 1
"""How often ``measure`` takes a loss."""


def known_of(params: Any, text: _lm.Text, s: Settings) -> sensitivity.Sensitivity:
    """The sensitivity of weights, from windows of the training text."""
    model, key = model_of(s), jax.random.fold_in(jax.random.key(s.seed), 2)
    batches = (
        _lm.windows(text.train, jax.random.fold_in(key, i), s.batch, s.context)[:, :-1] for i in range(BATCHES)
    )
    return sensitivity.estimate(lambda p, x: model.apply({"params": p}, x), params, batches, key=key)


def measure(
    name: str,
    row: Mapping[str, Any],
    params: Any,
    text: _lm.Text,
    s: Settings,
    path: Path,
    loss_of: Callable[[Any], float],
) -> tuple[dict[str, Any], list[dict[str, Any]], bytes]:
    """(a row of the table, the points of the frontier, the plain tensors of the file).

    Args:
      name: of the row.
      row: that of the same weights without calibration.
      params, text, s: the weights, and what they learned.
      path: where the file goes: one that should cost ``RISE`` of the loss.
      loss_of: the loss on held-out text.
    """
    known = known_of(params, text, s)
    points = []
    for bits in BITS[:: -(-len(BITS) // s.calibrated)]:
        small = codec.compress(params, bits=bits, sensitivity=known)
        loss = loss_of(codec.decompress(small))
        points.append({"model": name, "asked": bits, "bits": 8 * small.nbytes / size(params), "loss": loss})
    windows = _lm.windows_of(text.validation, s.test_windows // 2, s.context)

    def loss(params: Any) -> float:  # in nats, as the sensitivity counts
        return float(_lm.evaluate(model_of(s), params, windows, batch=s.batch)) * float(np.log(2))

    nbytes = codec.save_file(params, path, loss_rise=RISE * loss(params), sensitivity=known, loss=loss)
    back = codec.load_file(path, like=params)
    plain = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(back))
    found = {"model": name, "loss": row["loss"], "nu": row["nu"], "asked_loss": (1 + RISE) * row["loss"]}
    found |= {"file_bytes": nbytes, "file_bits": 8 * nbytes / size(params), "file_loss": loss_of(back)}
    return found | {"safetensors_bytes": len(plain)}, points, plain
