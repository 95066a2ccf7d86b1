"""``backslash_to_rate`` against its targets, and against strengths tuned by hand.

    python -m tests.benchmarks.bench_to_rate [--quick] [--only digits] [--seeds 10]

Three models: a perceptron on scikit-learn's digits (25,000 weights, three seeds), a regression on a random
network (a million weights, or ten), and the demo's language model (655,360). Each is trained for targets from 1
to 8 bits with the same arguments; the step for a target is that at which the first weights take 1.5 bits more.
Printed are the target, the bits that the state tells at the end and the entropy that ``rate.bits`` counts
(both against the target), the held-out loss of the rounded weights, the loss that ``backslash`` reaches at the
same entropy and step with a constant strength, interpolated between strengths a factor of 2 apart, and the
former minus the latter, seed by seed.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ggjax
from ggjax import gennorm, rate
from ggjax.app import _lm
from tests.benchmarks import arms

TARGETS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
SPARE = 1.5
"""How many bits more than asked the first weights take."""

STRENGTHS = tuple(2.0**k for k in np.arange(-8, 2.5))


class Subject(NamedTuple):
    """A model to train."""

    init: Callable[[int], Any]  # from a seed
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array]  # of parameters on examples
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    steps: int
    batch: int
    learning_rate: float
    seeds: int = 1
    targets: tuple[float, ...] = TARGETS
    strengths: tuple[float, ...] = STRENGTHS  # to tune by hand; none to leave that out


def perceptron(sizes: tuple[int, ...], seed: int) -> Any:
    """Kernels and biases of layers of these sizes, with the variance of Glorot."""
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return [
        {"kernel": jax.random.normal(k, (m, n)) * math.sqrt(2 / (m + n)), "bias": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def output(params: Any, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def digits(quick: bool) -> Subject:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = jnp.asarray(data.data[order] / 16 - 0.5, jnp.float32), jnp.asarray(data.target[order])

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(output(params, x), y).mean()

    init = functools.partial(perceptron, (64, 128, 128, 10))
    return Subject(init, loss, (x[:1200], y[:1200]), (x[1200:], y[1200:]), 600, 64, 2e-3, 1 if quick else 3)


def regression(quick: bool, width: int = 2048, large: bool = False) -> Subject:
    inner = width // 8
    teacher = perceptron((inner, 64, inner), 1000)
    x = jax.random.normal(jax.random.key(1001), (5120, inner))
    y = output(teacher, x)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((output(params, x) - y) ** 2)

    init = functools.partial(perceptron, (inner, width, inner))
    targets = (1.0, 4.0) if quick else (1.0, 3.0, 6.0) if large else TARGETS
    steps = 300
    return Subject(
        init,
        loss,
        (x[:4096], y[:4096]),
        (x[4096:], y[4096:]),
        steps,
        64,
        1e-3,
        1,
        targets,
        () if quick or large else STRENGTHS,
    )


def language(quick: bool) -> Subject:
    text, model, context = _lm.load_text(), _lm.Model(kernel_init=ggjax.gg_init(2.0, 0.25, "fan_avg")), 64

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        del y
        return _lm.loss(model, params, x)

    train, test = (_lm.windows_of(t, k, context) for t, k in ((text.train, 60_000), (text.test, 512)))
    none = [jnp.zeros(len(t), jnp.int32) for t in (train, test)]
    init = functools.partial(_lm.init, model)
    return Subject(
        init, loss, (train, none[0]), (test, none[1]), 800, 16, 2e-3, 1, (1.0, 2.0, 4.0), STRENGTHS[1::2]
    )


def step_for(params: Any, target: float) -> float:
    """A power of 2 (to a quarter) at which the law of the kernels takes SPARE bits more than the target."""
    fit = gennorm.fit(params, mask=ggjax.masks.kernels)
    entropy = float(gennorm.entropy(fit.nu, fit.scale)) / math.log(2)
    return 2.0 ** (round(4 * (entropy - target - SPARE)) / 4)


def trained(s: Subject, seeds: jax.Array, make: Callable[..., Any], arguments: jax.Array) -> tuple[Any, Any]:
    """Parameters and states of a training for each seed and row of arguments of ``make``."""
    x, y = s.train
    schedule = optax.warmup_cosine_decay_schedule(0.0, s.learning_rate, s.steps // 20, s.steps)

    def one(params: Any, seed: jax.Array, row: jax.Array) -> tuple[Any, Any]:
        tx = optax.chain(optax.adam(schedule), make(row, schedule))

        def step(carry: tuple[Any, Any], i: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), i)
            rows = jax.random.randint(key, (s.batch,), 0, len(x))
            updates, state = tx.update(jax.grad(s.loss)(params, x[rows], y[rows]), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(s.steps))
        return params, state

    one = jax.jit(one)
    runs = [one(s.init(int(seed)), seed, row) for seed, row in zip(seeds, arguments, strict=True)]
    return [p for p, _ in runs], [state for _, state in runs]


def judged(s: Subject, params: Any, step: float) -> tuple[float, float]:
    """(entropy of the kernels in bits, held-out loss with the kernels rounded)."""
    kernels = ggjax.masks.kernels(params)
    rounded = jax.tree.map(lambda x, k: jnp.round(x / step) * step if k else x, params, kernels)
    return float(rate.bits(params, step, mask=kernels)), float(s.loss(rounded, *s.test))


def by_hand(s: Subject, seed: int) -> list[Any]:
    """The parameters of trainings with constant strengths, the least 0."""
    strengths = jnp.array([0.0, *s.strengths], jnp.float32)
    seeds = jnp.full(len(strengths), seed)
    return trained(s, seeds, lambda c, r: ggjax.backslash(strength=c, learning_rate=r, clamp=True), strengths)[
        0
    ]


def interpolated(curve: list[tuple[float, float]], bits: float) -> float:
    """The loss at a number of bits, of (bits, loss); NaN beyond the ends."""
    b, loss = np.array(sorted(curve)).T
    return float(np.interp(bits, b, loss, np.nan, np.nan))


def report(name: str, s: Subject) -> float:
    """Print the table of a subject; the largest deviation from a target."""
    size = sum(x.size for x in jax.tree.leaves(s.init(0)))
    print(f"\n{name}: {size:,} parameters, {s.steps} steps, {s.seeds} seeds")
    print("target    step   bits  entropy  strength     loss  by hand   difference, and its standard error")
    seeds = jnp.repeat(jnp.arange(s.seeds), len(s.targets))
    steps = {t: step_for(s.init(0), t) for t in s.targets}
    rows = jnp.array([(t, steps[t]) for t in s.targets] * s.seeds)
    make = lambda row, r: ggjax.backslash_to_rate(row[0], row[1], learning_rate=r)  # noqa: E731
    params, states = trained(s, seeds, make, rows)
    hands = [by_hand(s, seed) for seed in range(s.seeds)] if s.strengths else []
    worst = 0.0
    for k, target in enumerate(s.targets):
        found = []
        for seed in range(s.seeds):
            p, state = params[k + seed * len(s.targets)], states[k + seed * len(s.targets)]
            own = optax.tree.get(state, "bits"), optax.tree.get(state, "strength_in_use")
            entropy, loss = judged(s, p, steps[target])
            hand = (
                interpolated([judged(s, h, steps[target]) for h in hands[seed]], entropy) if hands else np.nan
            )
            found.append((float(own[0]) / target - 1, entropy / target - 1, float(own[1]), loss, hand))
        bits, entropy, strength, loss, hand = np.mean(found, 0)
        worst = max(worst, *(abs(f[0]) for f in found))
        more = np.array([f[3] - f[4] for f in found])
        error = arms.deviation(more) / math.sqrt(len(more))
        print(
            f"{target:6.1f}  {steps[target]:.4f} {bits:+6.1%} {entropy:+7.1%} {strength:9.3g} {loss:9.4f} "
            f"{hand:8.4f} {more.mean():+8.4f} +- {error:.4f}",
            flush=True,
        )
    return worst


SUBJECTS = {
    "digits": digits,
    "regression": regression,
    "large": functools.partial(regression, width=6144, large=True),
    "language": language,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="digits with one seed, and two targets of the regression"
    )
    parser.add_argument("--only", choices=SUBJECTS, help="one of the models")
    parser.add_argument("--seeds", type=int, help="so many seeds of each model")
    args = parser.parse_args()
    names = [args.only] if args.only else ["digits", "regression"] if args.quick else list(SUBJECTS)
    subjects = {name: SUBJECTS[name](args.quick) for name in names}
    if args.seeds:
        subjects = {name: s._replace(seeds=args.seeds) for name, s in subjects.items()}
    worst = max(report(name, s) for name, s in subjects.items())
    print(f"\nlargest deviation of the bits from a target: {worst:.1%}")


if __name__ == "__main__":
    main()
