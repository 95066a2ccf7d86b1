"""Pipes as input and output: a checkpoint is read here and there, so what is piped goes through a file."""

import argparse
import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ggjax._internal import scratch
from ggjax._internal.atomic import naming

PIPE = "-"


@contextlib.contextmanager
def through_files(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    """A block in which ``args`` names files in place of pipes; what is to go to stdout goes there at its end.

    Yields:
      The names to show in place of those of the files.

    Raises:
      ValueError: a pipe that cannot be used so.
    """
    shown: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        if _is_pipe(args.input):
            if getattr(args, "out", args.input) is None:
                raise ValueError(f"{args.input} has no name to make another of: say by --out where to write")
            path = _folder(stack) / "stdin.safetensors"
            with path.open("wb") as f, _opened(args.input) as pipe:
                _copy(pipe, f, str(path))
            shown[str(path)], args.input = str(args.input), path
        to_stdout = str(getattr(args, "out", None)) == PIPE
        if to_stdout:
            _check_stdout(args)
            args.out = _folder(stack) / "stdout.safetensors"
            shown[str(args.out)] = PIPE
        yield shown
        if to_stdout and not getattr(args, "dry_run", False):
            with args.out.open("rb") as f:
                _copy(f, sys.stdout.buffer, "standard output")


def name_of(args: argparse.Namespace, path: Path) -> str:
    """The name of a file, or of the pipe that it stands for."""
    return args.shown.get(str(path), str(path))


def _copy(source: BinaryIO, target: BinaryIO, name: str) -> None:
    """Copy what a pipe or a file holds; an error of writing tells the name."""
    while piece := source.read(1 << 20):
        with naming(name):
            target.write(piece)
    with naming(name):
        target.flush()


def _folder(stack: contextlib.ExitStack) -> Path:
    return stack.enter_context(scratch.folder("ggjax-pipe"))


def _is_pipe(path: Path) -> bool:
    return str(path) == PIPE or not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode))


def _opened(path: Path) -> contextlib.AbstractContextManager:
    if str(path) != PIPE:
        return path.open("rb")
    if sys.stdin.isatty():
        raise ValueError("- is stdin, which is a terminal: expected a file or a pipe")
    return contextlib.nullcontext(sys.stdin.buffer)


def _check_stdout(args: argparse.Namespace) -> None:
    if args.input.suffix == ".json":
        raise ValueError("--out - takes one file, not the several of an index: name a folder")
    if args.json:
        raise ValueError("--out - and --json would both write to stdout")
    if sys.stdout.isatty():
        raise ValueError("--out - is stdout, which is a terminal: expected a pipe or a file")
