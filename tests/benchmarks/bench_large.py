"""Trees that no machine here holds: what the transforms of a 7B and a 70B model take, from their programs.

    python -m tests.benchmarks.bench_large [--devices 8 64] [--models 7B 70B] [--mesh Explicit]

The leaves are those of a Llama-like decoder, in float32, sharded over all devices of a mesh as such models are.
Nothing is allocated: the programs are compiled for ``jax.ShapeDtypeStruct``. Figures are per device, as
multiples of the parameters of a device.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
import time
from typing import Any

DTYPE = "float32"

MODELS = {
    "7B": {"layers": 32, "width": 4096, "hidden": 11008, "kv": 4096, "vocabulary": 32000},
    "70B": {"layers": 80, "width": 8192, "hidden": 28672, "kv": 1024, "vocabulary": 32000},
    "tiny": {"layers": 2, "width": 256, "hidden": 704, "kv": 64, "vocabulary": 512},
}


def tree(model: str, mesh: Any) -> dict[str, Any]:
    """The parameters of a model, abstract and sharded: matrices along both axes of the mesh, vectors along
    x."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    m = MODELS[model]
    w, h, kv, v = m["width"], m["hidden"], m["kv"], m["vocabulary"]
    up, down = P("x", "y"), P("y", "x")
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {"embed": ((v, w), down), "norm": ((w,), P("x"))}
    shapes["head"] = (w, v), up
    for i in range(m["layers"]):
        shapes |= {
            f"layers_{i}/{name}": value
            for name, value in {
                "query": ((w, w), up),
                "key": ((w, kv), up),
                "value": ((w, kv), up),
                "out": ((w, w), down),
                "gate": ((w, h), up),
                "up": ((w, h), up),
                "down": ((h, w), down),
                "norm_1": ((w,), P("x")),
                "norm_2": ((w,), P("x")),
            }.items()
        }
    return {
        k: jax.ShapeDtypeStruct(shape, DTYPE, sharding=NamedSharding(mesh, spec))
        for k, (shape, spec) in shapes.items()
    }


def measure(model: str, devices: int, axis_type: str) -> list[dict[str, Any]]:
    """Compile every transform and read its memory, in a process that has so many devices."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import optax

    import ggjax
    from ggjax import gennorm, rate, rf8

    mesh = jax.make_mesh((devices // 2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType[axis_type],) * 2)
    params = tree(model, mesh)
    n = sum(x.size for x in params.values())
    share = 4 * n / devices

    def stepper(tx: Any) -> tuple[Any, tuple[Any, ...]]:
        state = jax.eval_shape(tx.init, params)
        keep = {k: v.sharding for k, v in params.items()}
        state = jax.tree_util.tree_map_with_path(
            lambda path, s: jax.ShapeDtypeStruct(
                s.shape,
                s.dtype,
                sharding=keep[path[-1].key] if getattr(path[-1], "key", None) in keep else None,
            ),
            state,
        )

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(p: Any, s: Any, g: Any) -> Any:
            u, s = tx.update(g, s, p)
            return optax.apply_updates(p, u), s

        return step, (params, state, params)

    cases = {
        "Adam, update and apply": stepper(optax.adam(1e-3)),
        "Adam + BackSlash, update and apply": stepper(optax.chain(optax.adam(1e-3), ggjax.backslash(2e3))),
        "deepshape": (jax.jit(ggjax.deepshape), (params,)),
        "rf8.tree_encode": (jax.jit(rf8.tree_encode), (params,)),
        "gennorm.fit": (jax.jit(gennorm.fit), (params,)),
        "rate.bits": (jax.jit(lambda p: rate.bits(p, 2.0**-8)), (params,)),
    }
    rows = []
    for name, (f, args) in cases.items():
        start = time.perf_counter()
        lowered = f.lower(*args)
        middle = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
        memory = compiled.memory_analysis()
        text = compiled.as_text()
        moved = re.findall(r"(all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
        rows.append(
            {
                "model": model,
                "devices": devices,
                "mesh": axis_type,
                "what": name,
                "parameters": n,
                "leaves": len(params),
                "output": memory.output_size_in_bytes / share,
                "alias": memory.alias_size_in_bytes / share,
                "temporary": memory.temp_size_in_bytes / share,
                "trace_s": middle - start,
                "compile_s": end - middle,
                "moved": len(moved),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        where = (
            f"{r['model']:>4} {r['parameters'] / 1e9:5.2f}e9 in {r['leaves']} leaves, {r['devices']:>2} devices"
        )
        print(
            f"{where} ({r['mesh']}): {r['what']:<36} output {r['output']:5.2f}x alias {r['alias']:5.2f}x "
            f"temporary {r['temporary']:6.3f}x  trace {r['trace_s']:5.1f} s compile {r['compile_s']:6.1f} s  "
            f"{r['moved']} gathers, permutes and the like",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["7B", "70B"])
    parser.add_argument("--devices", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--mesh", choices=("Auto", "Explicit"), default="Auto")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.mesh)))
        return
    for model in args.models:
        for devices in args.devices:
            command = [sys.executable, "-m", "tests.benchmarks.bench_large", "--mesh", args.mesh]
            done = subprocess.run([*command, "--one", model, str(devices)], stdout=subprocess.PIPE, check=True)
            show(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
