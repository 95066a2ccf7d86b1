"""Kinds of arguments on the command line, each a function from text."""

import argparse
import math
from pathlib import Path


def folder(text: str) -> Path:
    """A folder, there or not."""
    path = Path(text)
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a folder, got an empty one")
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, but {text!r} is a file")
    return path


def count(text: str) -> int:
    """A whole number."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^31 - 1, got {text!r}")
    return int(text)


def bytes(text: str) -> float:
    """A whole number of bytes, or inf."""
    if text == "inf":
        return math.inf
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number of bytes, or inf, got {text!r}")
    return int(text)
