"""Kills of ``ggjax compress --force`` over an older file; part of ``tests.codec.kill_writers``.

The program is killed at a random moment after it has loaded what it needs. SIGTERM and SIGHUP leave no scratch
file; those that SIGKILL leaves are removed by the next command.
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

import numpy as np
import safetensors.numpy

from ggjax import codec
from ggjax._internal import scratch
from tests.codec.versions import arrays_of

SLOW = """
import random, sys
from ggjax.app import cli, files
from tests.codec.kill_writers import slow_calls
slow_calls(random.Random(int(sys.argv.pop(1))))
print("ready", flush=True)
sys.exit(cli.main())
"""


def kill(times: int, rng: random.Random) -> Counter:
    """Kill so many commands, and look after each."""
    count: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="ggjax-kills-") as name:
        folder = Path(name)
        out = folder / "out"
        for v in (0, 1):
            safetensors.numpy.save_file(arrays_of(v), folder / str(v))
        codec.compress_file(folder / "0", out, lossless=True)
        longest = _run(folder / "1", out, rng, None)[1]
        for _ in range(times):
            old, before = _version(out), set(os.listdir(folder))
            number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGHUP))
            code, _ = _run(folder / str(1 - old), out, rng, (rng.uniform(0, longest), number))
            assert code in {0, -number, 128 + number}, (
                code
            )  # -number too before it begins, and when it has ended
            left = [n for n in os.listdir(folder) if scratch.NAME.fullmatch(n)]
            # What an earlier SIGKILL left stays where a command is ended before it begins to write.
            assert number == signal.SIGKILL or not set(left) - before, left
            assert len(left) < 2 and set(os.listdir(folder)) == {"0", "1", "out", *left}
            count[f"{number.name}{', finished before' if code == 0 else ''}"] += 1
            count["the old one" if _version(out) == old else "the new one"] += 1
            count["scratch files left"] += bool(left)
    return count


def _version(path: Path) -> int:
    loaded = codec.load_file(path)
    (version,) = (v for v in (0, 1) if all(np.array_equal(loaded[n], x) for n, x in arrays_of(v).items()))
    return version


def _run(source: Path, out: Path, rng: random.Random, end: tuple[float, int] | None) -> tuple[int, float]:
    """Compress, and so many seconds after it began send a signal: the exit code and the seconds it took."""
    arguments = ["compress", str(source), "--lossless", "-q", "--force", "-o", str(out)]
    command = [sys.executable, "-c", SLOW, str(rng.randrange(1 << 30)), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        begin = time.monotonic()
        if end is not None:
            time.sleep(end[0])
            child.send_signal(end[1])
        code = child.wait(120)
    return code, time.monotonic() - begin
