"""The commands on checkpoints: compress, decompress, info, verify, stats. ``cli`` reads their arguments."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ggjax import codec, rate
from ggjax.codec import _compress, _file, _format, _safetensors, _steps

OPTIONS = ("step", "bits", "snr_db", "step_per_std", "rf8", "lossless", "dead_zone", "centroids", "coder")


def compress(args: argparse.Namespace) -> int:
    """Compress a checkpoint, of one file or of several with an index."""
    options = {name: getattr(args, name) for name in OPTIONS}
    _file.parse_options(**options)
    pairs, index = _plan(args.input, args.out, compressed=True)
    if not args.dry_run:
        _refuse([*(t for _, t in pairs), *([index] if index else [])], args)
    select = _selector(args)
    taken = []
    with _bar([s for s, _ in pairs], args, "compressing") as progress:
        for source, target in pairs:
            chosen = None if args.dry_run else target
            keywords: dict[str, Any] = {"select": select, "overwrite": args.force, "progress": progress}
            taken.append(codec.compress_file(source, chosen, **keywords, **options))
    if index and not args.dry_run:
        _write_index(index, args.input, {s.name: t.name for s, t in pairs}, sum(taken))
    _report(args, pairs, taken, index)
    return 0


def decompress(args: argparse.Namespace) -> int:
    """Write the plain checkpoint of a compressed one."""
    pairs, index = _plan(args.input, args.out, compressed=False)
    if index and _in_blocks(args.input):
        name = index.name.removesuffix(_file.INDEX_SUFFIX)
        pairs, index = [(args.input, index.with_name(f"{name}.safetensors"))], None
    _refuse([*(t for _, t in pairs), *([index] if index else [])], args)
    taken = []
    with _bar([f for s, _ in pairs for f in _file.files_of(s)], args, "decompressing") as progress:
        for source, target in pairs:
            taken.append(codec.decompress_file(source, target, overwrite=args.force, progress=progress))
    if index:
        _write_index(index, args.input, {s.name: t.name for s, t in pairs}, sum(taken))
    _report(args, pairs, taken, index)
    return 0


def _in_blocks(index: Path) -> bool:
    """Whether a checkpoint has leaves whose blocks lie in several files."""
    sources = _file.leaves_of(index).values()
    return any(len({s.path for s in leaf}) > 1 for leaf in sources)


def info(args: argparse.Namespace) -> int:
    """Print what compressed files hold, from their headers."""
    found = [(path, codec.inspect_file(path)) for path in _file.files_of(args.input)]
    if args.json:
        print(json.dumps([{"file": str(path), **_plain(i)} for path, i in found]))
        return 0
    for path, i in found:
        size = sum(t.size for t in i.tensors)
        print(f"{path}: format version {i.version}, {i.nbytes:,} bytes, {size:,} parameters, "
              f"{8 * i.nbytes / max(size, 1):.3f} bits each, {i.tables} tables")  # fmt: skip
        rows = [("tensor", "dtype", "shape", "kind", "step", "bytes", "bits")]
        for t in i.tensors:
            step = "" if t.step is None else f"{t.step:.6g}"
            shape = "x".join(map(str, t.shape)) or "()"
            rows.append((t.name, t.dtype, shape, t.kind, step, f"{t.nbytes:,}", f"{t.bits:.3f}"))
        print(_table(rows, left=4))
    return 0


def _plain(i: codec.FileInfo) -> dict[str, Any]:
    return {**i._asdict(), "tensors": [t._asdict() for t in i.tensors]}


def verify(args: argparse.Namespace) -> int:
    """Check and decode all of a compressed checkpoint."""
    files = _file.files_of(args.input)
    with _bar(files, args, "verifying") as progress:
        codec.verify_file(args.input, progress=progress)
    infos = [codec.inspect_file(path) for path in files]
    result = [
        {"file": str(p), "tensors": len(i.tensors), "bytes": i.nbytes}
        for p, i in zip(files, infos, strict=True)
    ]
    if args.json:
        print(json.dumps(result))
    else:
        for r in result:
            print(f"{r['file']}: {r['tensors']} tensors, {r['bytes']:,} bytes, all well")
    return 0


def stats(args: argparse.Namespace) -> int:
    """Print the law, the entropy and the error of every tensor of a checkpoint."""
    select = _selector(args)
    want = _steps.Want(args.step, args.bits, args.snr_db, args.step_per_std)
    if want == _steps.Want():
        want = _steps.Want(step_per_std=0.25)
    _steps.check(want)
    found: list[dict[str, Any]] = []
    files = _file.files_of(args.input)
    with _bar(files, args, "measuring") as progress:
        leaves = _file.leaves_of(args.input, plain=True)
        for name, x in _file.load_leaves(leaves, leaves):
            if select(name) and np.size(x) and _compress.codable(x, "uniform") and _floating(x):
                found.append(_stats_of(name, x, want))
            progress(name, x.nbytes)
    if args.json:
        print(json.dumps(found))
        return 0
    rows = [("tensor", "size", "nu", "std", "step", "entropy", "gg", "SNR dB")]
    for r in found:
        numbers = (f"{r['nu']:.2f}", f"{r['std']:.4g}", f"{r['step']:.4g}", f"{r['entropy']:.3f}")
        rows.append((r["name"], f"{r['size']:,}", *numbers, f"{r['gg']:.3f}", f"{r['snr_db']:.2f}"))
    print(_table(rows, left=1))
    n = max(sum(r["size"] for r in found), 1)
    mean = sum(r["size"] * r["entropy"] for r in found) / n
    print(f"{len(found)} tensors, {n:,} parameters, {mean:.3f} bits each by entropy")
    print("(entropy and gg, that of the fitted law, in bits per parameter)")
    return 0


def _floating(x: np.ndarray) -> bool:
    from ggjax import _tree

    return _tree.is_weight(x)


def _stats_of(name: str, x: np.ndarray, want: _steps.Want) -> dict[str, Any]:
    """One row of ``stats``."""
    narrow = x.astype(np.float32) if x.dtype.itemsize != 4 else x
    step = _compress.checked_step(name, [narrow], _compress.Options("uniform", want))
    row = rate.report({name: narrow}, float(step), codes=("entropy", "gg")).total
    t = narrow.reshape(-1)
    noise = power = 0.0
    for i in range(0, t.size, 1 << 20):
        piece = t[i : i + (1 << 20)].astype(np.float64)
        noise += float(np.sum((piece - np.rint(piece / step) * float(step)) ** 2))
        power += float(piece @ piece)
    snr = 10 * float(np.log10(power / noise)) if power and noise else float("inf") if power else 0.0
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


def _plan(source: Path, out: Path | None, *, compressed: bool) -> tuple[list[tuple[Path, Path]], Path | None]:
    """(source, target) of every file of a checkpoint, and the index to write, if it has one."""
    files = _file.files_of(source)
    if not source.name.endswith(".json"):
        return [(source, out or source.with_name(_renamed(source.name, compressed)))], None
    folder = out or source.parent
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: the output of a checkpoint in several files is a folder")
    folder.mkdir(parents=True, exist_ok=True)
    name = source.name.removesuffix(_file.INDEX_SUFFIX)
    name = f"{name}.ggjax" if compressed else name.removesuffix(".ggjax")
    pairs = [(f, folder / _renamed(f.name, compressed)) for f in files]
    return pairs, folder / f"{name}{_file.INDEX_SUFFIX}"


def _renamed(name: str, compressed: bool) -> str:
    if compressed:
        return name.removesuffix(".safetensors") + _file.SUFFIX
    plain = name.removesuffix(_file.SUFFIX)
    return (plain if plain != name else name.removesuffix(".safetensors") + ".plain") + ".safetensors"


def _refuse(targets: list[Path], args: argparse.Namespace) -> None:
    """Nothing is overwritten without --force, and never the input."""
    sources = [p.resolve() for p in _file.files_of(args.input)]
    for path in targets:
        if path.resolve() in sources:
            raise ValueError(f"{path} is the input: choose another output with -o")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, expected the name of a file")
        if path.exists() and not args.force:
            raise FileExistsError(f"{path} exists already: --force replaces it")


def _write_index(path: Path, source: Path, renamed: dict[str, str], total: int) -> None:
    index = json.loads(source.read_text("utf-8"))
    index["weight_map"] = {k: renamed[v] for k, v in index["weight_map"].items()}
    index["metadata"] = {**index.get("metadata", {}), "total_size": total}
    _file.write_index(path, index)


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


def _report(
    args: argparse.Namespace, pairs: list[tuple[Path, Path]], taken: list[int], index: Path | None
) -> None:
    dry = getattr(args, "dry_run", False)
    sizes = [sum(map(os.path.getsize, _file.files_of(source))) for source, _ in pairs]
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


@contextmanager
def _bar(files: list[Path], args: argparse.Namespace, verb: str) -> Iterator[Callable[[str, int], None]]:
    """One bar over the bytes of all tensors, on a terminal; a line a tensor with -v."""

    def line(name: str, nbytes: int) -> None:
        if args.verbose:
            print(f"{name}: {nbytes:,} bytes", file=sys.stderr)

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
                bar.console.print(f"{name}: {nbytes:,} bytes", highlight=False)
            bar.advance(task, nbytes)

        yield advance


def _plain_bytes(path: Path) -> int:
    """The bytes of all tensors of a file, before compression."""
    header = _safetensors.read_header(path)
    if not _format.is_compressed(header):
        return sum(e.nbytes for e in header.entries.values())
    stored = _format.load(path, header).tensors.values()
    return sum(
        int(np.prod(s.shape, dtype=object)) * np.dtype(_safetensors.DTYPES[s.dtype]).itemsize for s in stored
    )


def _table(rows: Sequence[tuple[str, ...]], left: int) -> str:
    """Aligned columns, the first ones to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
