"""What the transforms cost and how that grows, beside PyTorch: ``python -m tests.benchmarks.bench_scale``.

Needs the extra ``bench`` (torch for the rows of PyTorch, which are left out without it). Sections, all by
default:

  peers     BackSlash, DeepShape, RF8 and GG init against the published recipes in PyTorch, NumPy, casts, copies
  growth    BackSlash and DeepShape by the number of parameters, of leaves, of devices

``--figure PNG`` draws the growth. Every ratio is of medians of runs taken in turn in one process.
"""

import argparse
import functools
import json
import math
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ggjax
from ggjax import gennorm, rf8
from tests.benchmarks.bench_core import numpy_deepshape, spread, stepper, times, trained_like

Point = dict[str, Any]


def line(what: str, ours: tuple[float, float, float], other: tuple[float, float, float], rule: str) -> None:
    ratio = other[1] / ours[1]
    text = f"{ratio:8.2f}x faster " if ratio > 1 else f"{1 / ratio:8.2f}x the time"
    times_ = " ".join(f"{1e3 * a:9.1f} [{1e3 * s:.1f}, {1e3 * m:.1f}]" for s, a, m in (ours, other))
    print(f"{what:<66} {times_:<56} {text}  {rule}", flush=True)


# The published recipes, in PyTorch, written from their mathematics.


def torch_backslash(params: list[Any], rate_weight: float) -> None:
    """One step of BackSlash on the parameters, in place: fit by moments, table, shrink."""
    import torch

    nus, ratios = gennorm.table()
    table = torch.tensor(ratios.astype(np.float32))
    n = sum(p.numel() for p in params)
    second = sum(torch.sum(p * p) for p in params)
    first = sum(torch.sum(torch.abs(p)) for p in params)
    nu = float(nus[int(torch.argmin(torch.abs(table - n * second / first**2)))])
    for p in params:
        p.sub_(rate_weight * nu / n * torch.sign(p) * torch.pow(torch.abs(p) + 1.0, nu - 1))


def torch_deepshape(theta: Any, step: float = 2.0**-13, min_count: int = 1000) -> Any:
    """DeepShape by sorting levels."""
    import torch

    levels = torch.round(theta / step).to(torch.int64)
    found, counts = torch.unique(levels, return_counts=True)
    rare = found[(counts <= min_count) & (found > 0)]
    top = int(rare[0]) if len(rare) else int(levels.abs().max())
    kept = theta[theta.abs() <= top * step].double()
    nus, ratios = gennorm.table()
    nu = float(nus[np.argmin(np.abs(ratios - float(torch.mean(kept**2) / torch.mean(kept.abs()) ** 2)))])
    alpha = float(kept.std()) / math.exp(0.5 * (math.lgamma(3 / nu) - math.lgamma(1 / nu)))
    centre = int(float(kept.mean()) / step)
    grid = torch.arange(centre - top, centre + top + 1)
    pmf = torch.exp(-(((grid - centre).abs() * step / (0.6 * alpha)) ** (0.8 * nu)))
    inside = (levels >= grid[0]) & (levels <= grid[-1])
    where = torch.nonzero(inside).ravel()
    order = torch.argsort(theta[inside])
    ends = torch.cumsum(pmf / pmf.sum(), 0) * len(order)
    new = levels.clone()
    ranks = torch.arange(len(order), dtype=torch.float64) + 0.5
    new[where[order]] = grid[torch.searchsorted(ends, ranks).clamp(max=len(grid) - 1)]
    return new * step


def have_torch() -> bool:
    try:
        import torch
    except ImportError:
        return False
    torch.set_num_threads(max(torch.get_num_threads(), 2))
    return True


def peers(scale: int) -> None:
    """Every part beside what it competes with."""
    print(f"{'':<66} {'ours, ms [least, most]':<28} {'other, ms [least, most]'}")
    for n in (10**6, 10**7, 10**8):
        n //= scale
        params = {"w": trained_like(n).reshape(-1, 1000)}
        grads = jax.tree.map(lambda w: 1e-3 * w, params)
        both = stepper(optax.chain(optax.adam(1e-3), ggjax.backslash(3.0)), grads, params)
        plain = stepper(optax.adam(1e-3), grads, params)
        line(f"Adam + BackSlash against Adam, {n:.0e}", *spread(both, plain), "at most 2.2x at 1e8")
        del both, plain
        if have_torch():
            import torch

            weights = [torch.tensor(np.asarray(params["w"]))]
            want = np.asarray(params["w"][:10], np.float64)
            torch_backslash(weights, 3.0)
            zeros = jax.tree.map(jnp.zeros_like, params)
            tx = ggjax.backslash(3.0, move_idle=True)  # updates of zero show BackSlash's own step
            got = np.asarray(params["w"] + tx.update(zeros, tx.init(params), params)[0]["w"], np.float64)[:10]
            moved = np.abs(got - want).max()
            assert np.abs(weights[0][:10].numpy() - got).max() < 1e-2 * moved + 1e-9, "not the same step"
            alone = stepper(tx, zeros, params)
            runs = spread(alone, lambda w=weights: torch_backslash(w, 3.0), repeats=5)
            line(f"BackSlash, update and apply, against PyTorch's recipe, {n:.0e}", *runs, "at least 5x at 1e8")
            del weights, alone, zeros
        del params, grads
    n = 2 * 10**7 // scale
    theta = trained_like(n).reshape(-1, 1000)
    host = np.asarray(theta).ravel()
    reshape = functools.partial(ggjax.deepshape, min_count=1000)
    runs = [lambda: reshape(theta), lambda: numpy_deepshape(host)]
    line(f"DeepShape against a NumPy sort, {n:.0e}", *spread(*runs, repeats=3), "at least 10x")
    if have_torch():
        import torch

        there = torch.tensor(host)
        ours, other = np.asarray(reshape(theta)[0]).ravel(), torch_deepshape(there).numpy()
        assert np.mean(np.abs(ours - other) > 2.0**-13 * 1.01) < 0.01, "not the same reshaping"
        runs = [lambda: reshape(theta), lambda: torch_deepshape(there)]
        line(f"DeepShape against PyTorch's recipe, {n:.0e}", *spread(*runs, repeats=3), "at least 20x")
    x = trained_like(n)
    q, half = rf8.encode(x), x.astype(jnp.bfloat16)
    encode, decode = jax.jit(rf8.encode), jax.jit(rf8.decode)
    float8, widen = jax.jit(lambda v: v.astype(jnp.float8_e4m3fn)), jax.jit(lambda v: v.astype(jnp.float32))
    narrow = float8(x)
    line(
        f"rf8.encode against a cast to float8_e4m3fn, {n:.0e}",
        *spread(lambda: encode(x), lambda: float8(x)),
        "",
    )
    line(
        f"rf8.decode against a cast of float8_e4m3fn, {n:.0e}",
        *spread(lambda: decode(q), lambda: widen(narrow)),
        "",
    )
    line(f"rf8.decode against a cast of bfloat16, {n:.0e}", *spread(lambda: decode(q), lambda: widen(half)), "")
    line(
        f"rf8.encode against a copy of the weights, {n:.0e}",
        *spread(lambda: encode(x), lambda: host.copy()),
        "",
    )
    n = 10**7 // scale
    key, shape = jax.random.key(1), (n // 1000, 1000)
    init, normal = ggjax.gg_init(0.8, xi=1.0), jax.jit(lambda k: jax.random.normal(k, shape))
    line(
        f"gg_init against jax.random.normal, {n:.0e}",
        *spread(lambda: init(key, shape), lambda: normal(key)),
        "",
    )


# Growth.


def tree(n: int, leaves: int) -> dict[str, jax.Array]:
    each = n // leaves
    whole = trained_like(each)
    return {f"w{i}": whole + 0 for i in range(leaves)}


def point(kind: str, x: int, n: int, leaves: int, repeats: int) -> Point:
    """Seconds to compile and to run of Adam, Adam + BackSlash and DeepShape on a tree."""
    out: Point = {"kind": kind, "x": x, "n": n, "leaves": leaves, "devices": jax.device_count()}
    params = tree(n, leaves)
    if jax.device_count() > 1:
        mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        params = {k: jax.device_put(v, place) for k, v in params.items()}
    grads = jax.tree.map(lambda w: 1e-3 * w, params)
    for name, tx in {
        "Adam": optax.adam(1e-3),
        "Adam + BackSlash": optax.chain(optax.adam(1e-3), ggjax.backslash(3.0)),
    }.items():

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(p: Any, s: Any, g: Any, tx: Any = tx) -> Any:
            u, s = tx.update(g, s, p)
            return optax.apply_updates(p, u), s

        p, s = jax.tree.map(jnp.copy, params), tx.init(params)
        start = time.perf_counter()
        compiled = step.lower(p, s, grads).compile()
        out[f"{name}, compile"] = time.perf_counter() - start
        carry = [p, s]
        del p, s

        def run(carry: list[Any] = carry, compiled: Any = compiled) -> Any:
            carry[:] = compiled(*carry, grads)
            return carry

        out[name] = times(run, repeats=repeats)[0]
        del carry, run, compiled
    start = time.perf_counter()
    reshape = jax.jit(ggjax.deepshape).lower(params).compile()
    out["DeepShape, compile"] = time.perf_counter() - start
    out["DeepShape"] = times(lambda: reshape(params), repeats=max(repeats // 2, 2))[0]
    return out


def growth(scale: int) -> list[Point]:
    points = [
        point("parameters", n, n, 10, 15 if n < 10**7 else 7)
        for n in (10**5, 10**6, 10**7, 10**8)
        if n // scale >= 1000 and n <= 10**8 // scale
    ]
    points += [point("leaves", k, 2 * 10**7 // scale, k, 7) for k in (10, 100, 500, 2000)]
    for devices in (1, 2, 4, 8):
        command = [sys.executable, "-m", "tests.benchmarks.bench_scale", "--point", str(devices), str(scale)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        points.append(json.loads(done.stdout.splitlines()[-1]))
    for p in points:
        parts = [
            f"{name} {1e3 * p[name]:8.1f} ms (compile {p[name + ', compile']:5.1f} s)"
            for name in ("Adam", "Adam + BackSlash", "DeepShape")
        ]
        shape = f"{p['n']:.0e} parameters, {p['leaves']:>4} leaves, {p['devices']} devices"
        print(f"{shape}: {'  '.join(parts)}", flush=True)
    return points


def draw(points: list[Point], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for ax, kind in zip(axes, ("parameters", "leaves", "devices"), strict=True):
        some = [p for p in points if p["kind"] == kind]
        for name, color in (("Adam", "#888888"), ("Adam + BackSlash", "#d95f29"), ("DeepShape", "#2a8f6d")):
            ax.plot([p["x"] for p in some], [1e3 * p[name] for p in some], "o-", color=color, label=name)
        ax.set(xlabel=kind, xscale="log", yscale="log", ylabel="ms a call")
        ax.grid(alpha=0.3)
        ax.set_xticks([p["x"] for p in some], minor=False)
        ax.minorticks_off()
        if kind != "parameters":
            ax.set_xticklabels([str(p["x"]) for p in some])
    axes[0].set_title("10 leaves")
    axes[1].set_title("2·10⁷ parameters")
    axes[2].set_title("2·10⁷ parameters, 10 leaves")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sections", nargs="*", choices=("peers", "growth", []), default=[], help="(default: both)"
    )
    parser.add_argument("--figure", metavar="PNG", help="draw the growth")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the sizes: does it run at all?")
    parser.add_argument("--point", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        devices, scale = args.point
        jax.config.update("jax_num_cpu_devices", devices)
        print(json.dumps(point("devices", devices, 2 * 10**7 // scale, 10, 7)))
        return
    scale = 100 if args.quick else 1
    print(f"jax {jax.__version__} on {jax.devices()[0].platform}")
    if not args.sections or "peers" in args.sections:
        peers(scale)
    if not args.sections or "growth" in args.sections:
        points = growth(scale)
        if args.figure:
            draw(points, args.figure)


if __name__ == "__main__":
    main()
