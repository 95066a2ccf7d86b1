"""A small convolutional network with batch norms, for scikit-learn's digits: ``python -m
tests.benchmarks.calibrated.digits``.

It is trained here, in less than half a minute: 897 images of 8 x 8 to train on, shifted by up to one pixel, 300
for validation and to calibrate on, 600 for testing. (Calibrated on the images that it was trained on, which it
knows by heart, it would seem to bear 20 times more than it does.) Like the mobile networks it ends in a wide
convolution of 1 x 1, so that it has batch norms of 1024 channels.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.benchmarks.calibrated import subject
from tests.benchmarks.calibrated.subject import Examples, Quality, Split, Subject

STEPS = 600
BATCH = 64
TRAINED_ON, VALIDATION = 897, 300


class Model(nn.Module):
    """Logits (batch, 10) of images (batch, 8, 8, 1)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for features, size, stride in ((32, 3, 1), (64, 3, 2), (128, 3, 1), (1024, 1, 1)):
            x = nn.Conv(features, (size, size), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.mean((1, 2)))


MODEL = Model()


class Data(NamedTuple):
    """Images and labels of each split."""

    train: Examples
    validation: Examples
    test: Examples


@functools.cache
def data() -> Data:
    """The digits in random order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = (found.images[order, :, :, None] / 16).astype(np.float32)
    labels = found.target[order].astype(np.int32)
    ends = [0, TRAINED_ON, TRAINED_ON + VALIDATION, len(labels)]
    parts = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    return Data(*(Examples(images[i], labels[i], np.ones(labels[i].shape, bool)) for i in parts))


def drawn(rng: np.random.Generator, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """A batch of images, each shifted by up to one pixel, and their labels."""
    x, y, _ = examples
    which = rng.integers(0, len(y), BATCH)
    padded = np.pad(x[which], ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = rng.integers(0, 3, (2, BATCH))
    return np.stack([p[i : i + 8, j : j + 8] for p, i, j in zip(padded, rows, columns, strict=True)]), y[which]


def train(seed: int = 0, steps: int = STEPS) -> Any:
    """The trained variables, {"params": ..., "batch_stats": ...}."""
    variables = MODEL.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=0.1)

    @jax.jit
    def step(params: Any, statistics: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, Any]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, changed = MODEL.apply(
                {"params": params, "batch_stats": statistics}, x, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed["batch_stats"]

        grads, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), statistics, state

    params, statistics = variables["params"], variables["batch_stats"]
    state, rng = tx.init(params), np.random.default_rng(seed)
    for _ in range(steps):
        params, statistics, state = step(params, statistics, state, *drawn(rng, data().train))
    return {"params": params, "batch_stats": statistics}


def apply(variables: Any, images: jax.Array) -> jax.Array:
    """Logits, with the running statistics."""
    return MODEL.apply(variables, images)


def load(seed: int = 0) -> Subject:
    """The network, trained from a seed."""
    variables = train(seed)

    def batches(number: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(1)
        return (drawn(rng, data().validation)[0] for _ in range(number))

    def quality(params: Any, split: Split) -> Quality:
        return subject.judged(apply, variables, params, [getattr(data(), split)])

    return Subject(f"digits, seed {seed}", variables, apply, "logits", batches, quality)


def main() -> None:
    parser = subject.parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    subject.show(load(args.seed), args.split)


if __name__ == "__main__":
    main()
