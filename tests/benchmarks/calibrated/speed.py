"""The speed of the rounding, beside a product of its matrix with its factor, and of ``update``."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ggjax import sensitivity
from ggjax.sensitivity import _feedback, _two_sides
from tests.benchmarks.calibrated.subject import Subject

SIZES = (1024, 4096)
REPEATS = 3


def rounding(sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Of square matrices: weights a second, and the time in products of the matrix with its factor."""
    found = []
    for n in sizes:
        w, x = (jax.random.normal(jax.random.key(i), (n, n)) for i in range(2))
        m = _feedback.factor_of(x @ x.T / n, 0.1)
        steps = jnp.full((n, n), 0.5)
        product = _seconds(jax.jit(jnp.matmul), m, w)
        for sides, seconds in (
            ("one", _seconds(jax.jit(_feedback.round_rows), w, m, steps)),
            ("both", _seconds(jax.jit(_two_sides.round_both), w, m, m, steps)),
        ):
            found.append(
                {
                    "size": n,
                    "sides": sides,
                    "seconds": seconds,
                    "weights_per_second": n * n / seconds,
                    "products": seconds / product,
                }
            )
    return found


def update(subject: Subject) -> dict[str, Any]:
    """Of ``update`` against the gradient of the same batch, in which the forward pass is counted."""
    batch = jnp.asarray(next(subject.batches(1)))
    state = sensitivity.init(subject.params, mask=subject.mask)

    def total(params: Any) -> jax.Array:
        return jax.nn.log_softmax(subject.apply(params, batch))[..., 0].sum()

    gradient = jax.jit(jax.grad(total))
    grads = gradient(subject.params)
    added, back = _seconds(jax.jit(sensitivity.update), state, grads), _seconds(gradient, subject.params)
    return {"update_seconds": added, "gradient_seconds": back, "ratio": added / back}


def _seconds(f: Callable[..., Any], *args: Any) -> float:
    """The shortest of some runs, after one that compiles."""
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - begin)
    return min(times)
