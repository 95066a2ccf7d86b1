"""Schedules of the weight of the rate."""

import chex
import optax

from ggjax._internal import trees


def follow_learning_rate(
    rate_weight: chex.Numeric, learning_rate: optax.Schedule, *, peak: chex.Numeric
) -> optax.Schedule:
    """A schedule of rate weights in proportion to the learning rate: the recommended form.

    Args:
      rate_weight: lambda where the learning rate is at its peak.
      learning_rate: the optimizer's schedule, a function of the update count.
      peak: the learning rate that ``rate_weight`` belongs to, usually the schedule's largest.

    Returns:
      The schedule rate_weight * learning_rate(count) / peak, for ``backslash``.

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
    return lambda count: rate_weight * learning_rate(count) / peak
