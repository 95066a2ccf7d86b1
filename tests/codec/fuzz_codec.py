"""Damaged compressed files: ``python -m tests.codec.fuzz_codec --count 100000``.

Some are copies of good ones with bytes changed, cut off, added, moved, or taken from another good file.
Reading them must give the original arrays or a FormatError that names the file; nothing else, and not much
memory. Most have their checksums put right after the damage, as an attacker would, and some are made to take
much memory or time: of these, other arrays may come out, but no crash, no hang and no large allocation.
Read in halves, they give the same. ``ggjax info`` tells of each what it says of itself, or that it cannot be.

All are read with ``max_bytes`` of ``MOST``. Memory that is used is bounded by ``MEMORY_MIB``; as a program of
its own, the fuzzer also forbids the process to reserve more than ``RESERVED_MIB`` beyond what it starts with.
"""

import argparse
import base64
import collections
import contextlib
import glob
import io
import json
import math
import os
import resource
import struct
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import codec
from ggjax.app import cli
from tests.codec import attacks, scaled
from tests.codec.forging import downgraded, forge
from tests.codec.halves import halves_of

KINDS = ("damaged", "forged", "forged", "attack", "forged", "forged")
"""What becomes of the files, in turn."""

MOST = 1 << 24
"""Bytes of the arrays of a file."""

MEMORY_MIB = 300
"""How much more memory than the first hundred files the others may need: the programs for other sizes, and what
decoding ``MOST`` bytes of 8-bit weights takes."""

RESERVED_MIB = 3000
"""Address space: that of programs, too, and of the threads that compile them."""


def good_files(folder):
    """Paths of good files of many kinds, and what each holds."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(256, 300)) * np.exp(rng.normal(size=(256, 1)) * 2)).astype(np.float32)
    trees = {
        "step": (
            {"w": rng.laplace(size=1500).astype(np.float32), "b": np.arange(5.0, dtype=np.float32)},
            {"step": 0.5},
        ),
        "outlier": (
            {"w": np.append(rng.laplace(size=1200), 1e6).astype(np.float32)},
            {"step": 0.01, "centroids": True},
        ),
        "lossless": (
            {"a": {"w": rng.normal(size=1100).astype(jnp.bfloat16)}, "n": np.arange(3)},
            {"lossless": True},
        ),
        "ternary": (
            {
                "w": rng.choice(np.float32([-0.03, 0, 0.03]), 1300),
                "q": rng.integers(-7, 8, 1200).astype(np.float16),
            },
            {"lossless": True},
        ),
        "rf8": ({"w": rng.normal(size=(40, 30)).astype(np.float16)}, {"rf8": True}),
        "rows": ({"w": rows}, {"step": 0.2}),
        "blocks": (blocks(rng), {"step": 0.3}),
        "zstd": ({"w": rng.laplace(size=1500).astype(np.float32)}, {"step": 0.5, "coder": "zstd"}),
        "pruned": (
            {
                "w": rng.normal(size=1500).astype(np.float32) * (rng.random(1500) < 0.2),
                "h": np.where(rng.random(1200) < 0.7, 0, rng.normal(size=1200)).astype(jnp.bfloat16),
            },
            {"lossless": True},
        ),
        "pruned rows": ({"w": rows * (rng.random(rows.shape) < 0.3)}, {"step": 2.0**-20}),
        "raw": (
            {"w": rng.normal(size=20), "e": np.zeros((0, 3), np.float32), "s": np.float32(2.0)},
            {"step": 1.0},
        ),
    }
    of_zstd = {"coder": "zstd"}
    for name in ("outlier", "lossless", "ternary", "rf8", "rows", "pruned"):
        tree, options = trees[name]
        trees[f"{name} zstd"] = tree, options | of_zstd
    trees["scaled"] = scaled.tree(), {}
    trees["scaled zstd"] = scaled.tree("zstd"), {}
    trees["small raw"] = (
        {f"l{i}": np.full(3 + i, i, np.int16) for i in range(5)} | {"n": np.int64(3)},
        {"step": 1.0},
    )
    trees["small"] = (
        {f"l{i}": rng.normal(size=300 + i).astype(np.float32) for i in range(6)}
        | {"n": np.int64(3), "m": np.int64(4)},
        {"lossless": True},
    )
    few = {n: np.where(rng.random(np.shape(x)) < 0.3, x, 0) for n, x in trees["small"][0].items()}
    trees["pruned small"] = few, {"lossless": True}
    trees["pruned scaled"] = scaled.pruned(), {}
    for name, (tree, options) in trees.items():
        codec.save_file(tree, os.path.join(folder, f"{name}.ggjax.safetensors"), **options)
    with open(os.path.join(os.path.dirname(__file__), "golden", "version1.json")) as f:
        for name, old in json.load(f).items():
            with open(os.path.join(folder, f"old {name}.ggjax.safetensors"), "wb") as file:
                file.write(base64.b64decode(old["file"]))
    for name in ("step", "outlier", "rows", "blocks", "zstd", "rows zstd", "rf8 zstd", "lossless zstd"):
        with open(os.path.join(folder, f"{name}.ggjax.safetensors"), "rb") as file:
            data = downgraded(file.read())
        with open(os.path.join(folder, f"old {name} again.ggjax.safetensors"), "wb") as file:
            file.write(data)
    out = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.ggjax.safetensors"))):
        with open(path, "rb") as f:
            out[os.path.basename(path)] = f.read(), flat(codec.load_file(path))
    return out


def attack(rng):
    """A file that is made to take much memory or time, for its size; every other one is changed, too."""
    make, numbers = ATTACKS[int(rng.integers(len(ATTACKS)))]
    data = make(int(numbers[int(rng.integers(len(numbers)))]))
    return forge(data, rng) if rng.random() < 0.5 else data


ATTACKS = [
    (attacks.huge, (1, 15, 17, 1000)),
    (lambda n: attacks.huge(n, "rans"), (1, 15, 17, 200)),
    (lambda n: attacks.huge(n, "rans", "F8_E4M3"), (1, 40, 200)),
    (attacks.one_token_parts, (1, 5)),
    (lambda n: attacks.one_token_parts(n, "zstd"), (1, 5)),
    (attacks.many_atoms, (1, 3)),
    (attacks.blocks, (2, 100)),
    (attacks.unused_tables, (2, 3000)),
    (attacks.empty_lists, (2, 300_000)),
    (attacks.many_matrices, (16, 10_000)),
    (attacks.pack_between, (1, 3)),
    (attacks.named, (1, 2, 3, 4)),
]


def blocks(rng):
    """A tree with a leaf that is sharded, where there are devices for it."""
    devices = jax.devices()[:2]
    mesh = jax.make_mesh((len(devices),), ("x",), devices=devices)
    x = rng.laplace(size=(60, 40)).astype(np.float32)
    return {"w": jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))}


def flat(tree, prefix=""):
    """{name: bytes of the array and its kind} of nested dicts, or of a single array."""
    out = {}
    tree = tree if isinstance(tree, dict) else {"(root)": tree}
    for k, v in tree.items():
        if isinstance(v, dict):
            out |= flat(v, f"{prefix}{k}/")
        else:
            x = np.asarray(v)
            out[prefix + k] = x.dtype.str, x.shape, x.tobytes()
    return out


def damage(data, others, rng):
    """One damaged copy of the bytes of a file."""
    out = bytearray(data)
    kind = rng.integers(8)
    # Most of the places in the header, where most can go wrong.
    (length,) = struct.unpack("<Q", data[:8])
    end = 8 + length if rng.random() < 0.6 else len(data)
    place = int(rng.integers(end))
    if kind <= 2:
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(end))
            out[place] ^= 1 << int(rng.integers(8)) if kind else int(rng.integers(1, 256))
    elif kind == 3:
        del out[place:]
    elif kind == 4:
        del out[place : place + int(rng.integers(1, 40))]
    elif kind == 5:
        out[place:place] = rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8).tobytes()
    elif kind == 6:
        other = others[int(rng.integers(len(others)))]
        out[place:] = other[min(place, len(other)) :]
    else:
        size = int(rng.integers(1, 60))
        source = int(rng.integers(len(data)))
        out[place : place + size] = data[source : source + size]
    return bytes(out)


def run(count, seed=0, folder=None, limit_s=math.inf, told=lambda count, outcomes: None):
    """Read damaged files; returns how often each outcome occurred.

    Args:
      count: how many.
      seed: of the damage.
      folder: for the files; None for one of the system.
      limit_s: seconds of work that a file may take.
      told: called now and then, with the files so far.

    Raises:
      AssertionError: an outcome that must not be.
    """
    rng = np.random.default_rng(seed)
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory(dir=folder) as here:
        files = good_files(here)
        names = sorted(files)
        path = os.path.join(here, "damaged.safetensors")
        for i in range(count):
            kind = KINDS[i % len(KINDS)]
            name = names[i // len(KINDS) % len(names)]
            data, want = files[name]
            if kind == "damaged":
                bad = damage(data, [files[n][0] for n in names], rng)
            else:
                bad = forge(data, rng) if kind == "forged" else attack(rng)
            with open(path, "wb") as f:
                f.write(bad)
            start = time.process_time()
            where, got = f"{kind} {name} {i}", None
            try:
                got = codec.load_file(path, max_bytes=MOST)
            except codec.FormatError as e:
                assert "damaged.safetensors" in str(e), f"{where}: no place in {e}"
                outcomes[f"{kind}, refused"] += 1
            except Exception as e:
                raise AssertionError(f"{where}: {type(e).__name__}: {e}") from e
            else:
                got = flat(got)
                size = sum(len(data) for *_, data in got.values())
                assert size <= MOST, f"{where}: {size} bytes"
                if got == want:
                    outcomes[f"{kind}, the original"] += 1
                else:
                    # What another good file holds is no damage: its whole text was moved here.
                    known = any(got == files[n][1] for n in names)
                    assert kind != "damaged" or known, f"{where}: a wrong array"
                    outcomes[f"{kind}, another array"] += 1
            try:
                pieces = halves_of(path, MOST)
            except codec.FormatError as e:
                assert got is None and "damaged.safetensors" in str(e), f"{where}: in halves: {e}"
            except Exception as e:
                raise AssertionError(f"{where}: in halves: {type(e).__name__}: {e}") from e
            else:
                same = (x.tobytes() == got[n][2] for n, x in pieces.items() if x.dtype.itemsize < 8)
                assert got is None or all(same), f"{where}: in halves, another array"
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    assert cli.main(["info", path, *(["--json"] if i % 2 else [])]) in (0, 2)
            except Exception as e:
                raise AssertionError(f"{where}: info: {type(e).__name__}: {e}") from e
            taken = time.process_time() - start
            if i == 100:
                before = peak_mib()
            assert i < 100 or taken < limit_s, f"{where}: {taken:.1f} s"
            assert i < 100 or peak_mib() < before + MEMORY_MIB, f"{where}: {before:.0f}, {peak_mib():.0f} MiB"
            if i % 5000 == 4999:
                told(i + 1, outcomes)
    return outcomes


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    jax.config.update("jax_num_cpu_devices", 2)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="files to damage (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    with open("/proc/self/statm") as f:  # of Linux
        reserved = int(f.read().split()[0]) * resource.getpagesize()
    most = reserved + (RESERVED_MIB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def told(count, outcomes):
        print(f"{count:,} files, {time.perf_counter() - start:.0f} s, {peak_mib():.0f} MiB at most", flush=True)
        for outcome, number in sorted(outcomes.items()):
            print(f"{number:8,} {outcome}", flush=True)

    told(args.count, run(args.count, args.seed, limit_s=20.0, told=told))


if __name__ == "__main__":
    main()
