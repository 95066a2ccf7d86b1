"""Sensitivities in files: safetensors, so that any reader lists them."""

import json
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ggjax._internal import atomic
from ggjax.sensitivity._state import HALVES, Factors, Sensitivity
from ggjax.sensitivity._views import View

KEY, VERSION = "ggjax_sensitivity", 1


def save(state: Sensitivity, path: str | os.PathLike[str]) -> None:
    """Write a sensitivity to a safetensors file, replacing what is at the path in one step.

    The file holds the tensors ``NAME:rows`` and ``NAME:columns`` of every leaf, and ``examples`` and
    ``updates``, and ``measured``.

    Raises:
      OSError: it cannot be written; the old file, if any, is then as it was.
    """
    arrays = {"examples": state.examples, "updates": state.updates, "measured": state.measured}
    views = {}
    for name, f in state.factors.items():
        arrays |= {f"{name}:rows": f.rows, f"{name}:columns": f.columns}
        views[name] = f.view._asdict()
    text = json.dumps({"version": VERSION, "views": views})
    data = safetensors.numpy.save({k: np.asarray(v) for k, v in arrays.items()}, {KEY: text})
    with atomic.new_file(path) as f:
        f.write(data)


def load(path: str | os.PathLike[str]) -> Sensitivity:
    """Read what ``save`` wrote.

    Raises:
      ValueError: the file is not of this kind, or damaged.
      OSError: it cannot be read.
    """
    try:
        with safetensors.safe_open(path, "numpy") as f:
            text = (f.metadata() or {}).get(KEY)
            arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as e:
        raise ValueError(f"{path}: {e}") from e
    if text is None:
        raise ValueError(f"{path}: this is no sensitivity file (its metadata has no {KEY!r})")
    try:
        found = json.loads(text)
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']!r}, expected {VERSION}")
        factors = {name: _factors(name, v, arrays) for name, v in found["views"].items()}
        examples, updates = arrays["examples"], arrays["updates"]
        measured = arrays.get("measured", np.zeros((0, 2), np.float32))  # older files have none
        if measured.shape[1:] != (2,):
            raise ValueError(f"measured of shape {measured.shape}, expected pairs")
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: not a whole sensitivity file: {e}") from e
    return Sensitivity(factors, jnp.asarray(examples), jnp.asarray(updates), measured)


def _factors(name: str, view: dict[str, Any], arrays: dict[str, np.ndarray]) -> Factors:
    v = View(**{k: tuple(map(int, axes)) for k, axes in view.items()})
    if sorted(v.batch + v.rows + v.columns) != list(range(len(v.shape))):
        raise ValueError(f"leaf {name!r}: the axes {v[1:]} do not fit the shape {v.shape}")
    b, *sizes = v.sizes
    found = [arrays[f"{name}:{kind}"] for kind in ("rows", "columns")]
    for x, d in zip(found, sizes, strict=True):
        if x.dtype != np.float32 or x.shape not in ((HALVES, b, d), (HALVES, b, d, d)):
            raise ValueError(f"leaf {name!r}: a factor of shape {x.shape} does not fit {v}")
    return Factors(jnp.asarray(found[0]), jnp.asarray(found[1]), v)
