"""What the core costs, as ratios measured in one run: ``python -m tests.benchmarks.bench_core``.

Every row first checks that the two sides give the answer they should, then warms both up and times them in
turn, so that a machine whose speed drifts slows both alike. The ratio is that of the medians.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

import ggjax
from ggjax import gennorm, rf8


class Row(NamedTuple):
    """One comparison: our time against the other's, in seconds, and the bound that the ratio should meet."""

    what: str
    ours: float
    other: float
    bound: float  # at most, for ratios above; at least, for speed-ups
    speed_up: bool = False
    note: str = ""

    def __str__(self) -> str:
        ratio = self.other / self.ours if self.speed_up else self.ours / self.other
        met = ratio >= self.bound if self.speed_up else ratio <= self.bound
        rule = ("at least " if self.speed_up else "at most ") + f"{self.bound:g}x"
        faster = "x faster" if self.speed_up else "x the time"
        return (
            f"{self.what:<58} {self.ours * 1e3:>9.1f} ms {self.other * 1e3:>9.1f} ms  {ratio:>7.2f}{faster:<11}"
            f" {rule:<14} {'met' if met else 'MISSED'}  {self.note}"
        )


def spread(*runs: Callable[[], Any], repeats: int = 7) -> list[tuple[float, float, float]]:
    """(least, median, most) seconds of each run, the runs taken in turn after one warm-up each."""
    for run in runs:
        jax.block_until_ready(run())
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken.append(time.perf_counter() - start)
    return [(min(t), statistics.median(t), max(t)) for t in seconds]


def times(*runs: Callable[[], Any], repeats: int = 7) -> list[float]:
    """Median seconds of each run, as in ``spread``."""
    return [median for _, median, _ in spread(*runs, repeats=repeats)]


def trained_like(n: int, nu: float = 0.8, scale: float = 0.01) -> jax.Array:
    return gennorm.sample(jax.random.key(0), nu, (n,), scale=scale)


def bench_init(n: int) -> list[Row]:
    """GG init against normal and generalized_normal."""
    key, shape = jax.random.key(1), (n // 1000, 1000)
    init = ggjax.gg_init(0.8, xi=1.0)
    draws = np.asarray(init(key, shape)).ravel()[: 10**5]
    law = scipy.stats.gennorm(0.8)
    assert scipy.stats.kstest(draws / np.sqrt(1 / shape[1]) * law.std(), law.cdf).pvalue > 1e-4
    normal = jax.jit(lambda k: jax.random.normal(k, shape))
    library = jax.jit(lambda k: jax.random.generalized_normal(k, 0.8, shape))
    ours, other = times(lambda: init(key, shape), lambda: normal(key))
    (slow,) = times(lambda: library(key), repeats=2)
    return [
        Row(f"gg_init, against jax.random.normal, {n:.0e} samples", ours, other, 4),
        Row(f"gg_init, against jax.random.generalized_normal, {n:.0e}", ours, slow, 20, speed_up=True),
    ]


def stepper(tx: optax.GradientTransformation, grads: Any, params: Any) -> Callable[[], Any]:
    """One optimizer update and its application, jitted, with the parameters and the state donated."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):  # an argument: XLA works out beforehand what it can of a constant
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    carry = [jax.tree.map(jnp.copy, params), tx.init(params)]

    def run():
        carry[:] = step(*carry, grads)
        return carry

    return run


def bench_backslash(n: int) -> list[Row]:
    """Adam and BackSlash against Adam."""
    params = {"w": trained_like(n).reshape(-1, 1000)}
    grads = jax.tree.map(lambda w: 1e-3 * jnp.cos(1e4 * w), params)
    tx = ggjax.backslash(3.0, move_idle=True)  # updates of zero show BackSlash's own step
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zeros, tx.init(params), params)
    w, nu = np.float64(params["w"][:100]), float(state.shape_in_use)
    assert abs(nu - 0.8) < 0.02
    want = -np.sign(w) * 3.0 * nu / n * (np.abs(w) + 1) ** (nu - 1)
    np.testing.assert_allclose(updates["w"][:100], want, rtol=1e-6)
    del updates, zeros
    rows = []
    for name, options in {
        "": {},
        ", gg_shape=1": {"gg_shape": 1},
        ", every 10th": {"estimate_every": 10},
    }.items():
        chain = optax.chain(optax.adam(1e-3), ggjax.backslash(3.0, **options))
        run, plain = stepper(chain, grads, params), stepper(optax.adam(1e-3), grads, params)
        ours, other = times(run, plain, repeats=15)
        rows.append(Row(f"Adam + BackSlash{name}, against Adam, {n:.0e} parameters", ours, other, 2.5))
    return rows


def bench_training(steps: int) -> list[Row]:
    """A whole training step of the demo's model with and without BackSlash."""
    from ggjax.app import _lm, _training

    text, model = _lm.load_text(), _lm.Model()
    sizes = {"batch": _training.FULL.batch, "context": _training.FULL.context}
    params = _lm.init(model, 0)
    runs = []
    for tx in (
        optax.chain(optax.adam(1e-3), ggjax.backslash(strength=0.02, learning_rate=1e-3, clamp=True)),
        optax.adam(1e-3),
    ):
        carry = [jax.tree.map(jnp.copy, params), tx.init(params)]

        def run(tx=tx, carry=carry):
            key, ends = jax.random.key(0), (jnp.int32(0), jnp.int32(steps))
            carry[:] = _lm.train_steps(model, tx, *carry, text.train, key, *ends, **sizes)[:2]
            return carry

        runs.append(run)
    ours, other = times(*runs, repeats=9)
    note = f"{steps} steps of {sum(x.size for x in jax.tree.leaves(params)):,} parameters"
    return [Row("demo's training step with BackSlash, against without", ours, other, 1.03, note=note)]


def numpy_deepshape(theta: np.ndarray, step: float = 2.0**-13, min_count: int = 1000) -> np.ndarray:
    """DeepShape by sorting, in NumPy: the straightforward version."""
    levels = np.rint(theta / step).astype(np.int64)
    found, counts = np.unique(levels[levels > 0], return_counts=True)
    rare = found[counts <= min_count]
    top = int(rare[0] if len(rare) else np.abs(levels).max())
    kept = theta[np.abs(theta) <= top * step].astype(np.float64)
    nus, ratios = gennorm.table()
    nu = nus[np.argmin(np.abs(ratios - np.mean(kept**2) / np.mean(np.abs(kept)) ** 2))]
    alpha = kept.std() / scipy.stats.gennorm(nu).std()
    centre = int(kept.mean() / step)
    grid = np.arange(centre - top, centre + top + 1)
    pmf = np.exp(-((np.abs(grid - centre) * step / (0.6 * alpha)) ** (0.8 * nu)))
    inside = (levels >= grid[0]) & (levels <= grid[-1])
    order = np.argsort(theta[inside])
    ends = np.cumsum(pmf) / pmf.sum() * len(order)
    new = levels.copy()
    where = np.flatnonzero(inside)
    new[where[order]] = grid[np.searchsorted(ends, np.arange(len(order)) + 0.5)]
    return new * step


def bench_deepshape(n: int) -> list[Row]:
    """DeepShape against the same by a NumPy sort."""
    theta = trained_like(n).reshape(-1, 1000)
    host = np.asarray(theta).ravel()
    start = time.perf_counter()
    want = numpy_deepshape(host)
    slow = time.perf_counter() - start
    new = np.asarray(ggjax.deepshape(theta, min_count=1000)[0], np.float64).ravel()
    grid = np.round(np.stack([want, new]) / 2.0**-13).astype(np.int64)
    grid -= grid.min()
    histograms = [np.bincount(g, minlength=grid.max() + 1) / n for g in grid]
    distance = 0.5 * np.abs(histograms[0] - histograms[1]).sum()
    assert distance < 0.01, f"total variation {distance:.4f} from the sorted version"
    (ours,) = times(lambda: ggjax.deepshape(theta, min_count=1000), repeats=5)
    note = f"total variation {distance:.4f} from it"
    return [
        Row(f"deepshape, against a NumPy sort, {n:.0e} parameters", ours, slow, 10, speed_up=True, note=note)
    ]


def bench_rf8(n: int) -> list[Row]:
    """RF8 against the casts that other 8-bit formats take."""
    x = trained_like(n)
    codes = rf8.encode(x)
    error = np.abs(np.asarray(rf8.decode(codes)) - np.asarray(x))
    floor = 7 / 16 * 2.0 ** np.asarray(codes.exponents).item()  # half of the smallest value
    assert (error <= 1.0001 * np.maximum(0.1082 * np.abs(np.asarray(x)), floor)).all()
    half = x.astype(jnp.bfloat16)
    encode, decode = jax.jit(rf8.encode), jax.jit(rf8.decode)
    float8 = jax.jit(lambda v: v.astype(jnp.float8_e4m3fn))
    widen = jax.jit(lambda v: v.astype(jnp.float32))
    ours, other = times(lambda: encode(x), lambda: float8(x))
    back, wide = times(lambda: decode(codes), lambda: widen(half))
    return [
        Row(f"rf8.encode, against a cast to float8_e4m3fn, {n:.0e}", ours, other, 2),
        Row(f"rf8.decode, against a cast of bfloat16 to float32, {n:.0e}", back, wide, 2),
    ]


def deepshape_memory(n: int) -> str:
    """Temporary memory of deepshape, from the compiled program, as a multiple of the parameters."""
    theta = {"w": jax.ShapeDtypeStruct((n // 1000, 1000), jnp.float32)}
    analysis = jax.jit(ggjax.deepshape).lower(theta).compile().memory_analysis()
    ratio = analysis.temp_size_in_bytes / (4 * n)
    return f"deepshape, temporary memory at {n:.0e} parameters: {ratio:.2f}x of them (at most 2x)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the sizes: does it run at all?")
    scale = 100 if parser.parse_args().quick else 1
    print(f"jax {jax.__version__} on {jax.devices()[0].platform}\n")
    print(f"{'':<58} {'ours':>12} {'other':>12}")
    benches = [
        lambda: bench_init(10**7 // scale),
        lambda: bench_backslash(2 * 10**7 // scale),
        lambda: bench_training(max(40 // scale, 2)),
        lambda: bench_deepshape(2 * 10**7 // scale),
        lambda: bench_rf8(2 * 10**7 // scale),
    ]
    for bench in benches:
        for row in bench():
            print(row, flush=True)
    print(deepshape_memory(2 * 10**7 // scale))


if __name__ == "__main__":
    main()
