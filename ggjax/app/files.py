"""The commands on checkpoints: compress, decompress, verify, stats. ``cli`` reads their arguments."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import ggjax
from ggjax import codec
from ggjax.app._pipes import PIPE, name_of
from ggjax.app._terminal import as_json, shown, table, warn
from ggjax.codec import container, quantize

OPTIONS = (
    "step",
    "bits",
    "snr_db",
    "step_per_std",
    "rf8",
    "lossless",
    "dead_zone",
    "centroids",
    "coder",
    "per",
    "loss_rise",
)


def compress(args: argparse.Namespace) -> int:
    """Compress a checkpoint, of one file or of several with an index."""
    options: dict[str, Any] = {name: getattr(args, name) for name in OPTIONS}
    if args.sensitivity is not None:
        options["sensitivity"] = ggjax.sensitivity.load(args.sensitivity)
    elif args.loss_rise is not None:
        raise ValueError("--loss-rise needs --sensitivity FILE, what ggjax.sensitivity.save wrote")
    names: list[str] = []
    if args.include:
        with container.opened(args.input, plain=True) as checkpoint:
            names = list(checkpoint.leaves)
    select = _selector(args, names)
    options["mask"] = None if args.include else "kernels"
    with _bar(args, "compressing", plain=True) as progress, _force_hint():
        keywords: dict[str, Any] = {"select": select, "overwrite": args.force, "progress": progress}
        keywords |= {"dry_run": args.dry_run, **options}
        result = container.compress_checkpoint(args.input, args.out, **keywords)
    _report(args, result, container.parameters_of(args.input))
    warn(*container.told("kept losslessly", result.kept))
    return 0


def decompress(args: argparse.Namespace) -> int:
    """Write the plain checkpoint of a compressed one."""
    with _bar(args, "decompressing") as progress, _force_hint():
        keywords: dict[str, Any] = {"overwrite": args.force, "progress": progress, "max_bytes": args.max_bytes}
        result = container.decompress_checkpoint(args.input, args.out, **keywords)
    _report(args, result)
    return 0


@contextmanager
def _force_hint() -> Iterator[None]:
    try:
        yield
    except FileExistsError as e:
        raise FileExistsError(f"{e}: --force replaces it") from None


def verify(args: argparse.Namespace) -> int:
    """Check and decode all of a compressed checkpoint."""
    with _bar(args, "verifying") as progress:
        i = codec.verify_file(args.input, progress=progress, max_bytes=args.max_bytes)
    if args.json:
        print(as_json({"file": name_of(args, args.input), "tensors": len(i.tensors), "bytes": i.nbytes}))
    elif not args.quiet:
        print(f"{shown(name_of(args, args.input))}: {len(i.tensors)} tensors, {i.nbytes:,} bytes, all well")
    return 0


def stats(args: argparse.Namespace) -> int:
    """Print the law, the entropy and the error of every tensor of a checkpoint."""
    want = quantize.Want(args.step, args.bits, args.snr_db, args.step_per_std)
    if want == quantize.Want():
        want = quantize.Want(step_per_std=0.25)
    quantize.check_want(want)
    found: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with (
        _bar(args, "measuring", plain=True) as progress,
        container.opened(args.input, plain=True) as checkpoint,
    ):
        select = _selector(args, checkpoint.leaves)
        names = [n for n in checkpoint.leaves if select(n)]

        def tensors() -> Iterator[tuple[str, Any]]:
            return container.load(checkpoint, names, args.max_bytes)

        if want.bits is not None or want.snr_db is not None:
            some = ((n, x) for n, x in tensors() if quantize.is_codable(x, "uniform"))
            want = quantize.Want(step=container.common_step(some, len(names), want, left_out))
        for name, x in tensors():
            if name not in left_out and quantize.is_codable(x, "uniform"):
                try:
                    found.append(_stats_of(name, x, want))
                except quantize.Unfit as e:
                    left_out[name] = e.why
            progress(name, x.nbytes)
    warn(*container.told("left out", left_out))
    if args.json:
        print(as_json(found))
        return 0
    rows = [("tensor", "size", "nu", "std", "step", "entropy", "gg", "SNR dB")]
    for r in found:
        numbers = (f"{r['nu']:.2f}", f"{r['std']:.4g}", f"{r['step']:.4g}", f"{r['entropy']:.3f}")
        rows.append((shown(r["name"]), f"{r['size']:,}", *numbers, f"{r['gg']:.3f}", f"{r['snr_db']:.2f}"))
    print(table(rows, left=1))
    n = max(sum(r["size"] for r in found), 1)
    mean = sum(r["size"] * r["entropy"] for r in found) / n
    print(f"{len(found)} tensors, {n:,} parameters, {mean:.3f} bits each by entropy")
    print("(entropy and gg, that of the fitted law, in bits per parameter)")
    return 0


def _stats_of(name: str, x: np.ndarray, want: quantize.Want) -> dict[str, Any]:
    """One row of ``stats``."""
    narrow = x.astype(np.float32, copy=False)
    step = quantize.step_for(name, [narrow], "uniform", want)
    row = ggjax.rate.report({name: narrow}, float(step), codes=("entropy", "gg")).total
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


def _selector(args: argparse.Namespace, names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a tensor of this name is selected. ``names`` are those of all tensors."""
    include = [_regex("--include", r) for r in args.include or []]
    exclude = [_regex("--exclude", r) for r in args.exclude or []]
    for r in include:
        if not any(map(r.search, names)):
            raise ValueError(f"--include {r.pattern!r} matches no tensor of {args.input}")

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
    args: argparse.Namespace, result: container.Result, parameters: Mapping[Path, int] | None = None
) -> None:
    """The files that were made: on stderr where one of them is on stdout.

    ``parameters`` are those of each source, to be told how many bits each takes.
    """
    dry, out = getattr(args, "dry_run", False), sys.stderr if PIPE in args.shown.values() else sys.stdout
    sizes = [sum(map(os.path.getsize, container.index_of(f.source).files)) for f in result.files]
    rows: list[dict[str, Any]] = []
    for f, before in zip(result.files, sizes, strict=True):
        row: dict[str, Any] = {
            "input": name_of(args, f.source),
            "output": name_of(args, f.target),
            "input_bytes": before,
        }
        row["output_bytes"] = f.nbytes
        if parameters:
            row |= {"parameters": parameters[f.source], "bits": 8 * f.nbytes / max(parameters[f.source], 1)}
        rows.append(row)
    if args.json:
        extra: dict[str, Any] = {"index": str(result.index)} if result.index else {}
        extra |= {"kept": result.kept} if result.kept else {}
        print(as_json({"files": rows, "dry_run": dry, **extra}))
    elif not args.quiet:
        verb = "would write" if dry else "wrote"
        for r in rows:
            print(f"{verb} {shown(r['output'])}: {_size(r)}", file=out)
        if len(rows) > 1:
            whole = {k: sum(r[k] for r in rows) for k in _COUNTS if k in rows[0]}
            print(f"in all: {_size(whole)}", file=out)


_COUNTS = ("output_bytes", "input_bytes", "parameters")


def _size(row: Mapping[str, Any]) -> str:
    nbytes, before, n = row["output_bytes"], row["input_bytes"], row.get("parameters")
    each = f", {8 * nbytes / max(n, 1):.3f} bits per parameter" if n is not None else ""
    return f"{nbytes:,} bytes, {100 * nbytes / max(before, 1):.1f} % of {before:,}{each}"


@contextmanager
def _bar(args: argparse.Namespace, verb: str, *, plain: bool = False) -> Iterator[Callable[[str, int], None]]:
    """One bar over the bytes of all tensors, on a terminal; a line a tensor with -v."""

    def line(name: str, nbytes: int) -> None:
        if args.verbose:
            print(f"{shown(name)}: {nbytes:,} bytes", file=sys.stderr)

    if args.quiet or not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with container.opened(args.input, plain=plain) as checkpoint:
        total = container.plain_bytes(checkpoint)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=total)

        def advance(name: str, nbytes: int) -> None:
            if args.verbose:
                bar.console.print(f"{shown(name)}: {nbytes:,} bytes", highlight=False, markup=False)
            bar.advance(task, nbytes)

        yield advance
