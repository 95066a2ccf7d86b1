"""What ``backslash`` accepts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees
from ggjax.train import _steps


def check(
    rate_weight: Any,
    strength: Any,
    learning_rate: Any,
    eps: Any,
    gg_shape: Any,
    estimate_every: Any,
    mask: Any,
    **flags: Any,
) -> None:
    """Raise a ValueError or TypeError that names the argument which ``backslash`` cannot use."""
    if (rate_weight is None) == (strength is None):
        raise ValueError(
            f"give exactly one of rate_weight and strength, got rate_weight={rate_weight!r}, "
            f"strength={strength!r}"
        )
    if (strength is None) != (learning_rate is None):
        raise ValueError(
            f"strength and learning_rate belong together, got strength={strength!r}, "
            f"learning_rate={learning_rate!r}"
        )
    weights = {"rate_weight": rate_weight, "strength": strength, "learning_rate": learning_rate}
    for name, value in weights.items():
        if value is not None and not callable(value):
            trees.check_not_negative(name, value)
    for name, value in (weights | {"eps": eps, "gg_shape": gg_shape}).items():
        if value is not None and not callable(value) and np.ndim(value):
            raise ValueError(f"{name} must be one number, got an array of shape {np.shape(value)}")
    trees.check_positive("eps", eps)
    if gg_shape is not None:
        trees.check_positive("gg_shape", gg_shape)
    trees.check_positive("estimate_every", estimate_every)
    if trees.is_concrete(estimate_every) and (estimate_every != int(estimate_every) or estimate_every < 1):
        raise ValueError(f"estimate_every must be a whole number of at least 1, got {estimate_every!r}")
    _check_flags_and_mask(mask, flags)


def check_to_rate(
    target_bits: Any,
    step: Any,
    learning_rate: Any,
    start: Any,
    eps: Any,
    mask: Any,
    **flags: Any,
) -> None:
    """Raise a ValueError or TypeError that names the argument which ``backslash_to_rate`` cannot use."""
    _steps.check(step)
    for name, value in {
        "target_bits": target_bits,
        "learning_rate": learning_rate,
        "start": start,
        "eps": eps,
    }.items():
        if callable(value) and name in ("target_bits", "learning_rate"):
            continue
        check = trees.check_not_negative if name == "learning_rate" else trees.check_positive
        check(name, value)
        if np.ndim(value):
            raise ValueError(f"{name} must be one number, got an array of shape {np.shape(value)}")
    _check_flags_and_mask(mask, flags)


def _check_flags_and_mask(mask: Any, flags: dict[str, Any]) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {flag!r}")
    if isinstance(mask, str):
        trees.named_mask(mask)
    if mask is False or isinstance(mask, (jax.Array, np.ndarray)):
        # optax.inject_hyperparams takes a function for a schedule, and passes on what it gives for a count.
        raise TypeError(
            f"mask must be a tree of bools or a function from params to one, got {mask!r} (under "
            "optax.inject_hyperparams name a function in static_args)"
        )


def at(value: Any, count: Any) -> jax.Array:
    """A number, or a schedule at this count, as float32."""
    return jnp.asarray(value(count) if callable(value) else value, jnp.float32)


def special(gg_shape: Any) -> float | None:
    """The shape, if it is known to be 1 or 2 while the program is traced: those need no power."""
    known = gg_shape is not None and trees.is_concrete(gg_shape) and float(np.asarray(gg_shape))
    return known if known in (1.0, 2.0) else None
