"""A problem that is trained in a moment, for the tests of the frontier."""

import math

import jax
import jax.numpy as jnp

from tests.benchmarks.frontier import problems

WIDTH = 40


def classes(params, rest, x):
    del rest
    return (x @ params["kernel"] + params["bias"][None])[:, :4]


def tiny() -> problems.Problem:
    """A linear classifier of noise around four points."""
    centres = jax.random.normal(jax.random.key(7), (4, WIDTH))

    def draw(key, n=32):
        a, b = jax.random.split(key)
        labels = jax.random.randint(a, (n,), 0, 4)
        return centres[labels] + 2 * jax.random.normal(b, (n, WIDTH)), labels

    def init(seed, variance, nu):
        del nu
        kernel = jax.random.normal(jax.random.key(seed), (WIDTH, WIDTH)) * math.sqrt(variance / WIDTH)
        return {"kernel": kernel, "bias": jnp.zeros(WIDTH)}, {}

    def loss(params, rest, batch):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(classes(params, rest, batch[0])), batch[1][:, None], -1)
        return -chosen.mean(), rest

    held_out = {"validation": draw(jax.random.key(8), 500), "test": draw(jax.random.key(9), 500)}

    def judge(params, rest, split):
        x, y = held_out[split]
        right = jnp.mean(classes(params, rest, x).argmax(-1) == y)
        return {"loss": float(loss(params, rest, (x, y))[0]), "accuracy": float(right)}

    def inputs(number):
        return (draw(jax.random.key(i), 8)[0] for i in range(number))

    return problems.Problem(
        "tiny",
        "tiny",
        init,
        draw,
        loss,
        classes,
        judge,
        inputs,
        0.02,
        0.5,
        (30, 60),
        "uniform",
        (0.05, 0.2),
        0.4,
    )
