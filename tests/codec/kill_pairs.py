"""Kills of two processes that ``jax.distributed`` connects; part of ``tests.codec.kill_writers``.

A pair is started, saves one version after another, and is killed at a random moment: one of the two, and soon
after it the other, or both. (JAX catches SIGTERM, and both go on for a while.) The index must name a version
that the pair had in hand then, whole.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax

PROCESSES, DEVICES = 2, 2


def work(port: str, process: int, folder: str, seed: int) -> None:
    """One of two processes: saves until it is killed."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, process)
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from ggjax import codec
    from tests.codec.kill_writers import slow_calls
    from tests.codec.versions import VERSIONS, arrays_of

    mesh = jax.make_mesh((PROCESSES * DEVICES,), ("x",))
    specs = {"a": P(), "b": P("x"), "c": P(None, "x")}

    def tree(version: int) -> dict[str, jax.Array]:
        return {
            n: jax.make_array_from_callback(x.shape, NamedSharding(mesh, specs[n]), lambda i, x=x: x[i])
            for n, x in arrays_of(version).items()
        }

    small = [codec.compress(tree(v), step=1.0) for v in range(VERSIONS)]
    path = Path(folder) / "model.ggjax.safetensors"
    codec.save_file(small[0], path)
    slow_calls(random.Random(seed + process))
    print("ready", flush=True)
    version = 0
    while True:
        version = (version + 1) % VERSIONS
        print(version, flush=True)
        codec.save_file(small[version], path)


def kill(pairs: int, rng: random.Random) -> Counter:
    """Kill so many pairs, and look after each."""
    from tests.codec.versions import VERSIONS, versions_at

    count: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="ggjax-kills-") as folder:
        for i in range(pairs):
            trying, number, both = _one(folder, rng)
            found = versions_at(Path(folder) / "model.ggjax.safetensors")
            (version,) = found.values()
            assert version in {trying, (trying - 1) % VERSIONS}, (version, trying)
            count[f"{number.name}, {'both' if both else 'one'}"] += 1
            count["the new one" if version == trying else "the old one"] += 1
            left = len(os.listdir(folder))
            assert left < 3 + 2 * 4, os.listdir(folder)  # what two killed saves leave at most
            if i % 10 == 9:
                print(i + 1, "kills of pairs", dict(count), flush=True)
    return count


def _one(folder: str, rng: random.Random) -> tuple[int, signal.Signals, bool]:
    """Start a pair and kill it: what it was writing, the signal, and whether both got it at once."""
    from tests.scale.test_distributed import REPO, free_port

    command = [sys.executable, "-m", "tests.codec.kill_pairs", str(free_port())]
    workers = [
        subprocess.Popen(
            [*command, str(i), folder, str(rng.randrange(1 << 30))],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    try:
        for w in workers:
            assert w.stdout is not None and "ready\n" in iter(w.stdout.readline, "")
        time.sleep(rng.uniform(0, 0.7))
        number, both = rng.choice((signal.SIGKILL, signal.SIGTERM)), rng.random() < 0.5
        for w in workers if both else [rng.choice(workers)]:
            w.send_signal(number)
        time.sleep(0.3)  # the other one goes on as far as it can
    finally:
        for w in workers:
            w.kill()
    begun = [[line for line in w.communicate()[0].split("\n") if line.isdigit()] for w in workers]
    return int(max(begun, key=len)[-1]), number, both


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
