"""The two models that are trained: the demo's language model, and a convolutional network for digits."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ggjax
from ggjax import masks
from ggjax._internal import trees
from ggjax.app import _lm, _training
from ggjax.app._training import Settings
from tests.benchmarks import arms
from tests.benchmarks.calibrated import digits as digits_network

Split = Literal["validation", "test"]


class Problem(NamedTuple):
    """What is trained, and on what. Weights are trees; "rest" is what is neither trained nor rounded."""

    name: str
    title: str
    init: Callable[[int, float, float], tuple[Any, Any]]  # seed, share of Glorot's variance, nu -> params, rest
    batch: Callable[[jax.Array], Any]  # of a key, under jit
    loss: Callable[[Any, Any, Any], tuple[jax.Array, Any]]  # params, rest, batch -> loss in nats, new rest
    apply: Callable[[Any, Any, Any], jax.Array]  # params, rest, inputs -> logits
    judge: Callable[[Any, Any, Split], dict[str, float]]  # "loss" in nats and "accuracy" on held-out data
    inputs: Callable[[int], Iterator[Any]]  # so many batches to calibrate on
    learning_rate: float
    unit: float  # a typical loss: weights of rates are given as shares of it
    lengths: tuple[int, int]  # steps of the short and of the long training
    plain: str  # the way of plain rounding that suits it, by which settings are chosen
    rises: tuple[float, ...]  # over the float loss of the best Adam, at which bits are compared
    worst: float  # the rise at which a frontier ends


def language(settings: Settings = _training.FULL, lengths: tuple[int, int] = (600, 2400)) -> Problem:
    """The byte-level language model of ``ggjax demo``: 655,360 weights in matrices, without biases."""
    s, text = settings, arms.load_text()
    model = _lm.Model(width=s.width, depth=s.depth, heads=s.heads)

    def init(seed: int, variance: float, nu: float) -> tuple[Any, Any]:
        first = ggjax.gg_init(shape=nu, xi=variance, mode="fan_avg")
        return _lm.init(model.clone(kernel_init=first), seed), {}

    def loss(params: Any, rest: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        return _lm.loss(model, params, tokens), rest

    def judge(params: Any, rest: Any, split: Split) -> dict[str, float]:
        del rest
        windows = _lm.windows_of(getattr(text, split), s.test_windows // 2, s.context)
        parts = (windows[i : i + 128] for i in range(0, len(windows), 128))
        return _mean([_judged_tokens(model, params, x) for x in parts])

    def inputs(number: int) -> Iterator[jax.Array]:
        keys = jax.random.split(jax.random.key(2), number)
        return (_lm.windows(text.train, k, s.batch, s.context)[:, :-1] for k in keys)

    return Problem(
        "language",
        "the language model",
        init,
        lambda key: _lm.windows(text.train, key, s.batch, s.context),
        loss,
        lambda params, rest, tokens: jnp.asarray(model.apply({"params": params}, tokens)),
        judge,
        inputs,
        s.learning_rate,
        unit=1.4,
        lengths=lengths,
        plain="uniform",
        rises=(0.005, 0.01, 0.02, 0.05),
        worst=0.12,
    )


def digits(lengths: tuple[int, int] = (300, 900)) -> Problem:
    """A convolutional network with batch norms, of 232,000 weights, on scikit-learn's 8 x 8 digits.

    Held-out images are judged as they are and shifted by a pixel to each side, as trainings see them too. Its
    losses differ by some tenths from seed to seed, so that rises up to +50 % are compared as well.
    """
    model, data = digits_network.MODEL, digits_network.data()
    train, labels = (jnp.asarray(x) for x in data.train[:2])

    def init(seed: int, variance: float, nu: float) -> tuple[Any, Any]:
        variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
        params = _redrawn(variables["params"], seed, ggjax.gg_init(shape=nu, xi=variance, mode="fan_avg"))
        return params, variables["batch_stats"]

    def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        which, places = jax.random.split(key)
        rows = jax.random.randint(which, (digits_network.BATCH,), 0, len(labels))
        corners = jax.random.randint(places, (digits_network.BATCH, 2), 0, 3)
        padded = jnp.pad(train[rows], ((0, 0), (1, 1), (1, 1), (0, 0)))
        cut = jax.vmap(lambda x, c: jax.lax.dynamic_slice(x, (c[0], c[1], 0), (8, 8, 1)))
        return cut(padded, corners), labels[rows]

    def loss(params: Any, rest: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        x, y = batch
        variables = {"params": params, "batch_stats": rest}
        logits, changed = model.apply(variables, x, train=True, mutable=["batch_stats"])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return each.mean(), changed["batch_stats"]

    def apply(params: Any, rest: Any, images: jax.Array) -> jax.Array:
        return jnp.asarray(model.apply({"params": params, "batch_stats": rest}, images))

    def judge(params: Any, rest: Any, split: Split) -> dict[str, float]:
        x, y, _ = getattr(data, split)
        found = _judged_images({"params": params, "batch_stats": rest}, _shifted(x), np.tile(y, 5))
        return _mean([found])

    def inputs(number: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(1)
        return (digits_network.drawn(rng, data.validation)[0] for _ in range(number))

    return Problem(
        "digits",
        "the digits network",
        init,
        batch,
        loss,
        apply,
        judge,
        inputs,
        3e-3,
        unit=0.05,
        lengths=lengths,
        plain="leaf",
        rises=(0.005, 0.01, 0.02, 0.05, 0.2, 0.5),
        worst=0.8,
    )


PROBLEMS = {"digits": digits, "language": language}


def kernels_of(params: Any) -> dict[str, Any]:
    """The leaves that are rounded, by name."""
    flat = trees.flatten(params, masks.kernels)
    return dict(zip(flat.weight_names(), flat.weights(), strict=True))


def _redrawn(params: Any, seed: int, init: Any) -> Any:
    """The same tree with other kernels."""
    flat = trees.flatten(params, masks.kernels)
    kernels = flat.weights()
    keys = jax.random.split(jax.random.key(seed), len(kernels))
    return flat.replace(init(k, x.shape, x.dtype) for k, x in zip(keys, kernels, strict=True))


def _shifted(x: np.ndarray) -> np.ndarray:
    """Images (n, 8, 8, 1) as they are and shifted in four directions, (5 n, 8, 8, 1)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return np.concatenate([padded[:, i : i + 8, j : j + 8] for i, j in corners])


@functools.partial(jax.jit, static_argnames="model")
def _judged_tokens(model: _lm.Model, params: Any, windows: jax.Array) -> jax.Array:
    logits = jnp.asarray(model.apply({"params": params}, windows[:, :-1]))
    return _sums(logits, windows[:, 1:].astype(jnp.int32))


@jax.jit
def _judged_images(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    return _sums(jnp.asarray(digits_network.MODEL.apply(variables, images)), labels)


def _sums(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.stack([losses.sum(), (logits.argmax(-1) == labels).sum(dtype=jnp.float32), float(labels.size)])


def _mean(sums: list[jax.Array]) -> dict[str, float]:
    loss, right, number = np.sum([np.asarray(x, np.float64) for x in sums], 0)
    return {"loss": float(loss / number) if math.isfinite(loss) else math.inf, "accuracy": right / number}
