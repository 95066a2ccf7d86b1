"""Kills writers at random moments: ``python -m tests.codec.kill_writers [--kills N] [--seed N]``.

After every kill the old checkpoint or the new one must load, whole and bit for bit, and once another save is
through, nothing is there but what it wrote. Writers are forked from a process that has the compressed trees,
and pause at every call to the system. Some write alone, over one file or over what two have saved; the others
write in pairs, who agree through pipes, over either. Of a pair, one is killed or both. ``--pairs`` more are of
processes that ``jax.distributed`` connects, ``--commands`` of the command line.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ggjax._internal import scratch
from ggjax.codec.container import _save
from tests.codec.versions import VERSIONS, saved, versions_at

CALLS = ("replace", "link", "unlink", "fsync", "fchown", "chmod", "listdir", "open", "close", "write", "stat")
PAUSE = 0.002


def slow_calls(rng: random.Random) -> None:
    """From now on some calls to the system, and the moments between them, take a while."""

    def slow(f: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(rng.uniform(0, PAUSE))
            out = f(*args, **kwargs)
            time.sleep(rng.uniform(0, PAUSE))
            return out

        return call

    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, slow(getattr(os, name)))
    for name in ("replace", "unlink"):
        setattr(Path, name, slow(getattr(Path, name)))


def writer(path: Path, leaves: Any, process: int, processes: int, pipes: Any, seed: int) -> int:
    """Fork a process that saves; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        rng = random.Random(seed)
        slow_calls(rng)
        if processes == 1:
            _save.save_alone(path, leaves, {})
        else:
            jax.process_count, jax.process_index = lambda: processes, lambda: process
            _save.owners_of = _save._write.owners_of = lambda x: dict(zip(x.starts, (0, 1), strict=True))

            def gathered(x: np.ndarray) -> np.ndarray:
                (there, _), (_, back) = pipes[1 - process], pipes[process]
                try:
                    REAL_WRITE(back, x.tobytes())
                    data = os.read(there, x.nbytes)
                except BrokenPipeError:
                    data = b""
                if len(data) < x.nbytes:
                    os._exit(3)  # the other one is dead, and JAX would end this one
                both = [x, np.frombuffer(data, x.dtype)]
                return np.stack(both[:: 1 if process == 0 else -1])

            _save.gathered = gathered
            for i, (there, back) in enumerate(pipes):
                REAL_CLOSE(there if i == process else back)  # so that the other's death ends its pipe
            _save.save_together(path, leaves, {})
        os._exit(0)
    except BaseException as e:
        print("writer failed:", repr(e), file=sys.stderr, flush=True)
    os._exit(1)


REAL_WRITE, REAL_CLOSE = os.write, os.close


def start(path: Path, leaves: Any, processes: int, seed: int) -> list[int]:
    pipes = [os.pipe() for _ in range(processes)] if processes > 1 else []
    pids = [writer(path, leaves, i, processes, pipes, seed + i) for i in range(processes)]
    for ends in pipes:
        for end in ends:
            os.close(end)
    return pids


def wait(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def one_kill(path: Path, old: int, forms: Any, leaves: Any, rng: random.Random) -> Counter:
    """Save an old version by one or two, kill who saves a new one, and look."""
    count: Counter = Counter()
    before, after = forms
    new = (old + rng.randrange(1, VERSIONS)) % VERSIONS
    length = rng.uniform(0, DURATION[after])
    pids = start(path, leaves[after][new], after, rng.randrange(1 << 30))
    time.sleep(length)
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    chosen = pids if rng.random() < 0.5 else [rng.choice(pids)]
    for pid in chosen:
        os.kill(pid, number)
    codes = wait(pids)
    assert 1 not in codes, codes
    found = versions_at(path)
    name = path.name if after == 1 else "model.ggjax.safetensors.index.json"
    older = path.name if before == 1 else "model.ggjax.safetensors.index.json"
    assert set(found.values()) <= {old, new} and found, (found, old, new)
    assert found.get(name) == new or found.get(older) == old, (found, old, new)
    count["the new one" if found.get(name) == new else "the old one"] += 1
    count["killed in time" if -number in codes else "finished before"] += 1
    count["scratch files left"] += any(map(scratch.NAME.fullmatch, os.listdir(path.parent)))
    count[f"{number.name}, {before} to {after}"] += 1
    return count


def clean_after(path: Path, processes: int, leaves: Any, rng: random.Random) -> int:
    """Save without a kill; what is there then must be that checkpoint alone. The version."""
    version = rng.randrange(VERSIONS)
    assert set(wait(start(path, leaves[processes][version], processes, rng.randrange(1 << 30)))) == {0}
    files = sorted(os.listdir(path.parent))
    assert len(files) == (1 if processes == 1 else 3), files
    assert set(versions_at(path).values()) == {version}
    return version


DURATION: dict[int, float] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=940)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--commands", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    rng = random.Random(args.seed)
    leaves = {n: [saved(v, n) for v in range(VERSIONS)] for n in (1, 2)}
    total: Counter = Counter()
    folder = Path(tempfile.mkdtemp(prefix="ggjax-kills-"))
    path = folder / "model.ggjax.safetensors"
    for n in (1, 2):
        clean_after(path, n, leaves, rng)
        begin = time.monotonic()
        for v in range(VERSIONS):
            wait(start(path, leaves[n][v], n, v))
        DURATION[n] = (time.monotonic() - begin) / VERSIONS * 1.1
    print("a save takes", DURATION, flush=True)
    i = 0
    while total["killed in time"] < args.kills:
        i += 1
        before, after = 1 + (i & 1), 2 if rng.random() < 0.6 else 1
        old = clean_after(path, before, leaves, rng)
        total += one_kill(path, old, (before, after), leaves, rng)
        if i % 20 == 0:
            print(i, "tries", dict(total), flush=True)
    shutil.rmtree(folder)
    print("done:", i, "tries", dict(total), flush=True)
    if args.commands:
        from tests.codec import kill_commands

        print(
            "done:",
            args.commands,
            "kills of commands",
            dict(kill_commands.kill(args.commands, rng)),
            flush=True,
        )
    if args.pairs:
        from tests.codec import kill_pairs

        print("done:", args.pairs, "kills of real pairs", dict(kill_pairs.kill(args.pairs, rng)), flush=True)


if __name__ == "__main__":
    main()
