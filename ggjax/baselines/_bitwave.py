"""BitWave's controller: one bit length for the whole network, steered by the loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ggjax._internal import trees
from ggjax.baselines._reparameterization import check_whole


class BitWaveState(NamedTuple):
    """The controller between two steps: strongly typed scalars, a pytree for jit and checkpoints."""

    bits: jax.Array  # int32 (), how many bits to keep now
    average: jax.Array  # float32 (), the moving average of the loss; NaN before the first one
    window: jax.Array  # int32 (), steps since the last decision


def bitwave_init(bits: int) -> BitWaveState:
    """The controller before the first step.

    Args:
      bits: how many bits to begin with, a whole number from 0 to 64.

    Raises:
      ValueError: bits is not such a number.

    >>> int(bitwave_init(7).bits)
    7
    """
    check_whole("bits", bits, 0, 64)
    return BitWaveState(
        jnp.asarray(bits, jnp.int32), jnp.full((), jnp.nan, jnp.float32), jnp.zeros((), jnp.int32)
    )


def bitwave_update(
    state: BitWaveState,
    loss: ArrayLike,
    *,
    least: int = 0,
    most: int = 7,
    every: int = 1,
    decay: float = 0.9,
    margin: float = 0.0,
    learning_rate_changed: ArrayLike = False,
) -> BitWaveState:
    """The controller after a step of training: fewer bits while the loss falls, more when it rises.

    After the idea of BitWave (BitChop in an earlier version; arXiv 2204.13666): every ``every`` steps, a loss
    below its moving average by more than ``margin`` takes one bit off, one above it by more than ``margin``
    adds one, and otherwise the bits stay. A change of the learning rate brings all bits back and starts a new
    window. All constants are our choice. So is this: a loss that is NaN or infinite brings all bits back too,
    leaves the average as it was, and starts a new window.

    The bits are those of the mantissa: ``round_floats(params, state.bits)``; a second controller can steer
    those of the exponent.

    Args:
      state: from ``bitwave_init`` or the last call.
      loss: of the step, a scalar.
      least, most: the range of the bits; 7 are those of a bfloat16 mantissa.
      every: steps between decisions, at least 1.
      decay: of the moving average, at least 0 and below 1: average = decay average + (1 - decay) loss.
      margin: in the units of the loss, at least 0.
      learning_rate_changed: whether this step was the first at a new learning rate.

    Returns:
      The new state. Pure, and the same under jit.

    Raises:
      ValueError: an argument out of its range, or a loss that is no scalar.

    >>> state = bitwave_init(7)
    >>> for loss in (3.0, 2.5, 2.0, float("nan"), 1.9):
    ...     state = bitwave_update(state, loss)
    ...     print(int(state.bits))
    7
    6
    5
    7
    6
    """
    check_whole("least", least, 0, 64)
    check_whole("most", most, int(least), 64)
    check_whole("every", every, 1, 2**30)
    trees.check_not_negative("margin", margin)
    trees.check_not_negative("decay", decay)
    if trees.is_concrete(decay) and decay >= 1:
        raise ValueError(f"decay must be below 1, got {decay!r}")
    for name, value in (("loss", loss), ("learning_rate_changed", learning_rate_changed)):
        if jnp.shape(value) != ():
            raise ValueError(f"{name} must be a scalar, got an array of shape {jnp.shape(value)}")
    loss = jnp.asarray(loss).astype(jnp.float32)
    sound = jnp.isfinite(loss)
    known = ~jnp.isnan(state.average)
    reset = jnp.asarray(learning_rate_changed, bool) | ~sound
    window = jnp.where(reset, 0, state.window + 1)
    due = known & (window >= every)
    change = (loss > state.average + margin).astype(jnp.int32) - (loss < state.average - margin).astype(
        jnp.int32
    )
    bits = jnp.where(reset, most, jnp.clip(state.bits + jnp.where(due, change, 0), least, most))
    average = jnp.where(known, decay * state.average + (1 - decay) * loss, loss)
    average = jnp.where(sound, average, state.average)
    return BitWaveState(_int(bits), average.astype(jnp.float32), _int(jnp.where(due, 0, window)))


def _int(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.int32)
