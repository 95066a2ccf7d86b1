"""The command ``ggjax``: its arguments and its errors.

Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted by Ctrl-C, 143 ended by SIGTERM, 129 by SIGHUP.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ggjax.app import _cache, _help, _kinds, _pipes, _signals, _terminal
from ggjax.codec import container

MISUSED = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Errors of the system that are the user's, not the machine's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; usage errors exit with 2, as argparse does.

    Args:
      argv: the arguments; None for those of the process.
    """
    _terminal.prepare()
    args = _parser().parse_args(argv)
    args.is_program = argv is None  # only a process of its own is ours to configure
    if args.is_program:
        _signals.raise_them()
    try:
        code = args.run(args)
        sys.stdout.flush()  # so that a reader that went away is noticed here
        return code
    except KeyboardInterrupt:
        return _fail("interrupted: no file is half written", 130)
    except _signals.Ended as e:
        return _fail("told to end: no file is half written", 128 + e.number)
    except BrokenPipeError:  # the reader of our output went away: no more output, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as e:
        return _fail(str(e), 1)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ggjax", description="Generalized-Gaussian priors for weights, in JAX.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="the life of one model on real text, from initial weights to 8-bit floats",
        description=_help.DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--quick", action="store_true", help="a short training, in two minutes")
    demo.add_argument(
        "-o",
        "--out",
        type=_kinds.folder,
        default=Path("ggjax-demo"),
        metavar="DIR",
        help="folder for the results, made if need be; older ones in it are replaced (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=_kinds.count,
        default=0,
        metavar="N",
        help="seed of weights and batches; the same one gives the same numbers (default: %(default)s)",
    )
    demo.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    demo.add_argument("--steps", type=_kinds.count, help=argparse.SUPPRESS)
    demo.set_defaults(run=_demo)

    _add_files(commands)

    tables = commands.add_parser(
        "tables",
        help="write the published tables, gamma.csv and rf8.csv",
        description="Write gamma.csv (the ratio of moments of 291 shapes) and rf8.csv (the 256 RF8 codes).",
    )
    tables.add_argument(
        "-o",
        "--out",
        type=_kinds.folder,
        default=Path("tables"),
        metavar="DIR",
        help="folder to write to, made if need be; older tables in it are replaced (default: %(default)s)",
    )
    tables.set_defaults(run=_tables)
    return parser


def _add_files(commands: Any) -> None:
    """The commands on checkpoints."""
    compress = _add_command(commands, "compress", _help.COMPRESS, "a smaller file of a .safetensors checkpoint")
    _add_output(compress, "IN with .ggjax before .safetensors")
    how = compress.add_argument_group(
        "what is kept of the weights (one of these)"
    ).add_mutually_exclusive_group(required=True)
    _add_steps(how)
    how.add_argument("--rf8", action="store_true", help="the 8-bit floats of ggjax.rf8")
    how.add_argument("--lossless", action="store_true", help="every bit")
    how.add_argument(
        "--loss-rise",
        type=float,
        metavar="X",
        help="what a loss may rise by, in nats per example; needs --sensitivity",
    )
    compress.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="what ggjax.sensitivity.save wrote for these weights: --bits or --loss-rise with calibration",
    )
    compress.add_argument(
        "--per",
        choices=("tree", "leaf"),
        default="tree",
        help="ask --bits or --snr-db of all together, with one step, or of every tensor (default: %(default)s)",
    )
    fine = compress.add_argument_group("for a step")
    fine.add_argument(
        "--dead-zone",
        type=float,
        default=0.0,
        metavar="X",
        help="draw levels towards 0 by X of a step, below 0.5",
    )
    fine.add_argument(
        "--centroids", action="store_true", help="decode to the mean of the weights of a level: a lower error"
    )
    compress.add_argument(
        "--coder", choices=("rans", "zstd"), default="rans", help="entropy coder (default: %(default)s)"
    )
    _add_selection(compress, "keep the others as they are")
    compress.add_argument("--dry-run", action="store_true", help="tell the size, write nothing")

    decompress = _add_command(
        commands, "decompress", _help.DECOMPRESS, "the plain checkpoint of a compressed one"
    )
    _add_output(decompress, "IN without .ggjax")
    _add_limit(decompress)
    _add_command(commands, "info", _help.INFO, "what a compressed file holds, from its header")
    _add_limit(_add_command(commands, "verify", _help.VERIFY, "check and decode all of a compressed file"))
    stats = _add_command(commands, "stats", _help.STATS, "fitted law, entropy and error of every tensor")
    _add_steps(stats.add_mutually_exclusive_group())
    _add_selection(stats, "leave out the others")
    _add_limit(stats)


def _add_command(commands: Any, name: str, description: str, summary: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=raw)
    parser.add_argument(
        "input",
        type=Path,
        metavar="IN",
        help="a .safetensors file, - for stdin, the .safetensors.index.json of several, or a folder with one",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line on stderr for every tensor")
    parser.set_defaults(run=_files, name=name)
    return parser


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="OUT",
        help=f"file to write, - for stdout, or folder where IN has an index (default: {default})",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace OUT if it is there")


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bytes",
        type=_kinds.bytes,
        metavar="N",
        help="read a compressed IN whose tensors take up to N bytes, inf for any number "
        "(default: 256 MiB and 2048 times the size of IN)",
    )


def _add_steps(group: Any) -> None:
    group.add_argument("--step", type=float, metavar="S", help="round to multiples of S, in the weights' units")
    group.add_argument("--bits", type=float, metavar="B", help="the step of B bits per parameter")
    group.add_argument(
        "--snr-db", type=float, metavar="D", help="the step of a signal-to-noise ratio of D decibels"
    )
    group.add_argument("--step-per-std", type=float, metavar="R", help="a step of R standard deviations")


def _add_selection(parser: argparse.ArgumentParser, rest: str) -> None:
    parser.add_argument(
        "--include", action="append", metavar="REGEX", help=f"only tensors whose name this matches; {rest}"
    )
    parser.add_argument(
        "--exclude", action="append", metavar="REGEX", help="not tensors whose name this matches"
    )


def _files(args: argparse.Namespace) -> int:
    if str(args.input) != _pipes.PIPE and not args.input.exists():
        return _fail(f"{args.input} does not exist: expected a .safetensors file or an index", 2)
    if args.name == "info":
        from ggjax.app import info as module
    else:
        if args.is_program:
            _cache.use()
        from ggjax.app import files as module

    args.shown = {}
    try:
        args.input = container.checkpoint_at(args.input)
        with _pipes.through_files(args) as args.shown:
            return getattr(module, args.name)(args)
    except BrokenPipeError:
        raise
    except (ValueError, ImportError, TypeError, OSError) as e:
        message = str(e)
        for path, name in args.shown.items():
            message = message.replace(path, name)
        return _fail(message, 1 if isinstance(e, OSError) and not isinstance(e, MISUSED) else 2)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        from importlib.metadata import version

        print(f"ggjax {version('ggjax')}")
        parser.exit()


def _demo(args: argparse.Namespace) -> int:
    missing = [name for name in ("matplotlib", "rich", "zstandard") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"the demo needs {' and '.join(missing)}: pip install 'ggjax[demo]'", 1)
    if args.is_program:
        _cache.use()
    from ggjax.app import demo

    settings = demo.QUICK if args.quick else demo.FULL
    settings = settings._replace(seed=args.seed)
    if args.steps is not None:  # for tests
        settings = settings._replace(steps=max(args.steps, 10), post_steps=10, test_windows=32)
    demo.show(demo.run(args.out, settings, quiet=args.quiet), args.out)
    return 0


def _tables(args: argparse.Namespace) -> int:
    from ggjax.app import tables

    for path in tables.write(args.out):
        print(path)
    return 0


def _fail(message: str, code: int) -> int:
    _terminal.warn(" ".join(message.split()))
    return code


if __name__ == "__main__":
    sys.exit(main())
