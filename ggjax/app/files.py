"""The commands on checkpoints: compress, decompress, info, verify, stats. ``cli`` reads their arguments."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ggjax import codec, rate
from ggjax._internal.atomic import check_target
from ggjax.codec import _compress
from ggjax.codec.container import _format, _safetensors, _sources, _write
from ggjax.codec.quantize import _steps

OPTIONS = ("step", "bits", "snr_db", "step_per_std", "rf8", "lossless", "dead_zone", "centroids", "coder")

Pairs = list[tuple[Path, Path]]


def compress(args: argparse.Namespace) -> int:
    """Compress a checkpoint, of one file or of several with an index."""
    options = {name: getattr(args, name) for name in OPTIONS}
    _compress.options(**options)
    select = _selector(args)
    pairs, index = _plan(args.input, args.out, compressed=True)
    if not args.dry_run:
        _make_room(pairs, index, args)
    taken = []
    with _bar([s for s, _ in pairs], args, "compressing") as progress:
        for source, target in pairs:
            chosen = None if args.dry_run else target
            keywords: dict[str, Any] = {"select": select, "overwrite": args.force, "progress": progress}
            taken.append(codec.compress_file(source, chosen, **keywords, **options))
    if index and not args.dry_run:
        _write_index(index, args, [t for _, t in pairs])
    _report(args, pairs, taken, index)
    return 0


def decompress(args: argparse.Namespace) -> int:
    """Write the plain checkpoint of a compressed one."""
    pairs, index = _plan(args.input, args.out, compressed=False)
    if index and _has_blocks(args.input):  # leaves that lie in several files go to one
        name = index.name.removesuffix(_sources.INDEX_SUFFIX)
        pairs, index = [(args.input, index.with_name(f"{name}.safetensors"))], None
    _make_room(pairs, index, args)
    taken = []
    with _bar(_sources.files_of(args.input), args, "decompressing") as progress:
        for source, target in pairs:
            taken.append(codec.decompress_file(source, target, overwrite=args.force, progress=progress))
    if index:
        _write_index(index, args, [t for _, t in pairs])
    _report(args, pairs, taken, index)
    return 0


def _has_blocks(index: Path) -> bool:
    """Whether a checkpoint has leaves that are stored in blocks."""
    with _sources.opened(index) as checkpoint:
        stored = [s.stored for sources in checkpoint.leaves.values() for s in sources]
    return any(s is not None and s.start is not None for s in stored)


def info(args: argparse.Namespace) -> int:
    """Print what compressed files hold, from their headers."""
    with _sources.opened(args.input, partial=True) as checkpoint:
        found = [(str(f.path), _sources.info([(f, meta)])) for f, meta in checkpoint.files]
    if args.json:
        told = [{"file": path, **i._asdict(), "tensors": [t._asdict() for t in i.tensors]} for path, i in found]
        print(json.dumps(told))
        return 0
    for path, i in found:
        size = sum(t.size for t in i.tensors)
        each = f"{size:,} parameters, {8 * i.nbytes / max(size, 1):.3f} bits each"
        print(f"{path}: format version {i.version}, {i.nbytes:,} bytes, {each}, {i.tables} tables")
        rows = [("tensor", "dtype", "shape", "kind", "step", "bytes", "bits")]
        for t in i.tensors:
            step = "" if t.step is None else f"{t.step:.6g}"
            shape = "x".join(map(str, t.shape)) or "()"
            rows.append((_shown(t.name), t.dtype, shape, t.kind, step, f"{t.nbytes:,}", f"{t.bits:.3f}"))
        print(_table(rows, left=4))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check and decode all of a compressed checkpoint."""
    with _bar(_sources.files_of(args.input), args, "verifying") as progress:
        i = codec.verify_file(args.input, progress=progress)
    if args.json:
        print(json.dumps({"file": str(args.input), "tensors": len(i.tensors), "bytes": i.nbytes}))
    elif not args.quiet:
        print(f"{args.input}: {len(i.tensors)} tensors, {i.nbytes:,} bytes, all well")
    return 0


def stats(args: argparse.Namespace) -> int:
    """Print the law, the entropy and the error of every tensor of a checkpoint."""
    select = _selector(args)
    want = _steps.Want(args.step, args.bits, args.snr_db, args.step_per_std)
    if want == _steps.Want():
        want = _steps.Want(step_per_std=0.25)
    _steps.check(want)
    found: list[dict[str, Any]] = []
    with (
        _bar(_sources.files_of(args.input), args, "measuring") as progress,
        _sources.opened(args.input, plain=True) as checkpoint,
    ):
        for name, x in _sources.load(checkpoint.leaves, checkpoint.leaves):
            if select(name) and _compress.codable(x, "uniform"):
                found.append(_stats_of(name, x, want))
            progress(name, x.nbytes)
    if args.json:
        for row in found:  # JSON has no infinity: the SNR of what lies on the grid
            row["snr_db"] = row["snr_db"] if math.isfinite(row["snr_db"]) else None
        print(json.dumps(found))
        return 0
    rows = [("tensor", "size", "nu", "std", "step", "entropy", "gg", "SNR dB")]
    for r in found:
        numbers = (f"{r['nu']:.2f}", f"{r['std']:.4g}", f"{r['step']:.4g}", f"{r['entropy']:.3f}")
        rows.append((_shown(r["name"]), f"{r['size']:,}", *numbers, f"{r['gg']:.3f}", f"{r['snr_db']:.2f}"))
    print(_table(rows, left=1))
    n = max(sum(r["size"] for r in found), 1)
    mean = sum(r["size"] * r["entropy"] for r in found) / n
    print(f"{len(found)} tensors, {n:,} parameters, {mean:.3f} bits each by entropy")
    print("(entropy and gg, that of the fitted law, in bits per parameter)")
    return 0


def _stats_of(name: str, x: np.ndarray, want: _steps.Want) -> dict[str, Any]:
    """One row of ``stats``."""
    narrow = x.astype(np.float32, copy=False)
    step = _compress.checked_step(name, [narrow], _compress.Options("uniform", want))
    row = rate.report({name: narrow}, float(step), codes=("entropy", "gg")).total
    t = narrow.reshape(-1)
    noise = power = 0.0
    for i in range(0, t.size, 1 << 20):
        piece = t[i : i + (1 << 20)].astype(np.float64)
        noise += float(np.sum((piece - np.rint(piece / step) * float(step)) ** 2))
        power += float(piece @ piece)
    snr = 10 * math.log10(power / noise) if power and noise else math.inf if power else 0.0
    bits = {code: float(b) for code, b in row.bits.items()}
    return {
        "name": name,
        "size": x.size,
        "nu": row.nu,
        "std": row.std,
        "step": float(str(step)),
        **bits,
        "snr_db": snr,
    }


# Which files, which tensors.


def _plan(source: Path, out: Path | None, *, compressed: bool) -> tuple[Pairs, Path | None]:
    """(source, target) of every file of a checkpoint, and the index to write, if it has one."""
    files = _sources.files_of(source)
    if source.suffix != ".json":
        return [(source, out or source.with_name(_renamed(source.name, compressed)))], None
    json.loads(source.read_text("utf-8"))
    folder = out or source.parent
    name = source.name.removesuffix(_sources.INDEX_SUFFIX)
    name = f"{name}.ggjax" if compressed else name.removesuffix(".ggjax")
    pairs = [(f, folder / _renamed(f.name, compressed)) for f in files]
    return pairs, folder / f"{name}{_sources.INDEX_SUFFIX}"


def _renamed(name: str, compressed: bool) -> str:
    if compressed:
        return name.removesuffix(".safetensors") + _sources.SUFFIX
    plain = name.removesuffix(_sources.SUFFIX)
    return (plain if plain != name else name.removesuffix(".safetensors") + ".plain") + ".safetensors"


def _make_room(pairs: Pairs, index: Path | None, args: argparse.Namespace) -> None:
    """Nothing is overwritten without --force, and never the input; then the folder is there."""
    sources = [p for p in (args.input, *_sources.files_of(args.input)) if p.exists()]
    targets = [*(t for _, t in pairs), *([index] if index else [])]
    for path in targets:
        if path.exists() and any(os.path.samefile(path, s) for s in sources):
            raise ValueError(f"{path} is the input: choose another output with -o")
        if path.exists() and not path.is_dir() and not args.force:
            raise FileExistsError(f"{path} exists already: --force replaces it")
    if index or args.input.suffix == ".json":
        targets[0].parent.mkdir(parents=True, exist_ok=True)
    for path in targets:
        check_target(path, overwrite=args.force)


def _write_index(path: Path, args: argparse.Namespace, files: list[Path]) -> None:
    """Write the index of the files just written, by what is in them."""
    old = json.loads(args.input.read_text("utf-8"))
    weight_map, total = {}, 0
    for file in files:
        with _safetensors.opened(file) as f:
            weight_map |= dict.fromkeys(f.header.entries, file.name)
            total += sum(e.nbytes for e in f.header.entries.values())
    metadata = {**(old.get("metadata") or {}), "total_size": total}
    _write.write_index(path, {**old, "metadata": metadata, "weight_map": weight_map}, overwrite=args.force)


def _selector(args: argparse.Namespace) -> Callable[[str], bool]:
    include = [_regex("--include", r) for r in args.include or []]
    exclude = [_regex("--exclude", r) for r in args.exclude or []]

    def select(name: str) -> bool:
        wanted = not include or any(r.search(name) for r in include)
        return wanted and not any(r.search(name) for r in exclude)

    return select


def _regex(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as e:
        raise ValueError(f"{option} {text!r} is not a regular expression: {e}") from None


# What is shown.


def _report(args: argparse.Namespace, pairs: Pairs, taken: list[int], index: Path | None) -> None:
    dry = getattr(args, "dry_run", False)
    sizes = [sum(map(os.path.getsize, _sources.files_of(source))) for source, _ in pairs]
    if args.json:
        keys = ("input", "output", "input_bytes", "output_bytes")
        rows = [(str(s), str(t), *n) for (s, t), *n in zip(pairs, sizes, taken, strict=True)]
        extra = {"index": str(index)} if index else {}
        print(json.dumps({"files": [dict(zip(keys, r, strict=True)) for r in rows], "dry_run": dry, **extra}))
    elif not args.quiet:
        verb = "would write" if dry else "wrote"
        for (_, target), before, after in zip(pairs, sizes, taken, strict=True):
            share = 100 * after / max(before, 1)
            print(f"{verb} {target}: {after:,} bytes, {share:.1f} % of {before:,}")


def _shown(name: str) -> str:
    """A name as it may be printed: what is no plain character, as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name
    )


@contextmanager
def _bar(files: list[Path], args: argparse.Namespace, verb: str) -> Iterator[Callable[[str, int], None]]:
    """One bar over the bytes of all tensors, on a terminal; a line a tensor with -v."""

    def line(name: str, nbytes: int) -> None:
        if args.verbose:
            print(f"{_shown(name)}: {nbytes:,} bytes", file=sys.stderr)

    if args.quiet or not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=sum(map(_plain_bytes, files)))

        def advance(name: str, nbytes: int) -> None:
            if args.verbose:
                bar.console.print(f"{_shown(name)}: {nbytes:,} bytes", highlight=False, markup=False)
            bar.advance(task, nbytes)

        yield advance


def _plain_bytes(path: Path) -> int:
    """The bytes of all tensors of a file, before compression."""
    with _safetensors.opened(path) as f:
        if not _format.is_compressed(f.header):
            return sum(e.nbytes for e in f.header.entries.values())
        stored = _format.load(path, f.header).tensors.values()
    return sum(math.prod(s.shape) * np.dtype(_safetensors.DTYPES[s.dtype]).itemsize for s in stored)


def _table(rows: Sequence[tuple[str, ...]], left: int) -> str:
    """Aligned columns, the first ones to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in pairs]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
