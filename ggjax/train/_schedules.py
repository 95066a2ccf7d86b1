"""Schedules of the weight of the rate."""

import chex
import optax
from jax.typing import ArrayLike

from ggjax._internal import trees
from ggjax.train import _arguments


def follow_learning_rate(
    rate_weight: chex.Numeric, learning_rate: optax.Schedule, *, peak: chex.Numeric
) -> optax.Schedule:
    """A schedule of rate weights in proportion to the learning rate.

    ``backslash(strength=..., learning_rate=...)`` does the same without a number of weights to count: this is
    for a lambda that is known at the peak of the learning rate.

    Args:
      rate_weight: lambda where the learning rate is at its peak.
      learning_rate: the optimizer's schedule, a function of the update count.
      peak: the learning rate that ``rate_weight`` belongs to, usually the schedule's largest.

    Returns:
      The schedule rate_weight * learning_rate(count) / peak, float32, for ``backslash``.

    Raises:
      TypeError: learning_rate is not a schedule.
      ValueError: peak is not positive, rate_weight is negative.

    >>> import optax
    >>> schedule = optax.cosine_decay_schedule(1e-3, decay_steps=100)
    >>> round(float(follow_learning_rate(100.0, schedule, peak=1e-3)(50)), 3)
    50.0
    """
    if not callable(learning_rate):
        raise TypeError(f"learning_rate must be a schedule (a function of the count), got {learning_rate!r}")
    trees.check_positive("peak", peak)
    trees.check_not_negative("rate_weight", rate_weight)

    def schedule(count: ArrayLike) -> ArrayLike:
        weight, rate, top = (_arguments.at(v, count) for v in (rate_weight, learning_rate, peak))
        return weight * rate / top

    return schedule
