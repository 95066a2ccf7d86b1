"""How large the arrays of a file may be: a few bytes can stand for many weights, in honest sparse files as in
forged ones.

A chunk of 262,144 equal weights takes 192 bytes, with the coder "zstd" even 20, so a file of 26 kB can hold
1000 MiB of float32. The usual limit lets sparse weights through: where one in a thousand is not zero, a byte
of the file stands for 1,300 of memory. Of weights that are all zero it lets 400 MiB through in a file of
their own (270 with "zstd"), and more beside others.
"""

from typing import Any

from ggjax.codec.container._header import FormatError

FREE = 1 << 28
"""Any file may hold arrays of so many bytes, as much as 64 M weights of float32 take."""

RATIO = 2048
"""And so many more for each of its own bytes."""


def limit_of(file_bytes: int, max_bytes: float | None) -> float:
    """The bytes that the arrays of files of so many may take: ``max_bytes``, or what is usual.

    Raises:
      ValueError: ``max_bytes`` is no number of bytes.
    """
    if max_bytes is None:
        return FREE + RATIO * file_bytes
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, (int, float)) or not max_bytes >= 0:
        raise ValueError(f"max_bytes must be a number of bytes, math.inf for any, got {max_bytes!r:.50}")
    return max_bytes


def check(path: Any, nbytes: int, file_bytes: int, max_bytes: float | None) -> None:
    """Raise unless arrays of so many bytes may be made of files of so many.

    Raises:
      FormatError: they are too large; the message says how large, and how to have them all the same.
    """
    limit = limit_of(file_bytes, max_bytes)
    if nbytes > limit:
        usual = f" that {file_bytes:,} bytes of file may stand for" if max_bytes is None else ""
        raise FormatError(
            f"{path}: its arrays take {nbytes:,} bytes, more than the {limit:,}{usual}: if you trust it, "
            f"max_bytes={nbytes} (on the command line --max-bytes {nbytes}) lets it through"
        )
