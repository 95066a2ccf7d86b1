"""From words to bytes: the file format, and checkpoints of one file or of several.

What a program needs beside the functions of ``ggjax.codec``, the command line for one: opened checkpoints, and
checkpoints told file by file.
"""

from typing import TYPE_CHECKING

from ggjax._internal import lazy

if TYPE_CHECKING:  # what type checkers and editors see of the list below (a test compares the two)
    from ggjax.codec.container._checkpoint import Result as Result
    from ggjax.codec.container._checkpoint import Written as Written
    from ggjax.codec.container._checkpoint import decompress_checkpoint as decompress_checkpoint
    from ggjax.codec.container._coding import common_step as common_step
    from ggjax.codec.container._coding import parameters_of as parameters_of
    from ggjax.codec.container._coding import told as told
    from ggjax.codec.container._compressing import compress_checkpoint as compress_checkpoint
    from ggjax.codec.container._index import checkpoint_at as checkpoint_at
    from ggjax.codec.container._index import index_of as index_of
    from ggjax.codec.container._info import info_of as info_of
    from ggjax.codec.container._info import info_of_files as info_of_files
    from ggjax.codec.container._sources import load as load
    from ggjax.codec.container._sources import opened as opened
    from ggjax.codec.container._sources import plain_bytes as plain_bytes

_HOME = {
    "Result": "ggjax.codec.container._checkpoint",
    "Written": "ggjax.codec.container._checkpoint",
    "common_step": "ggjax.codec.container._coding",
    "compress_checkpoint": "ggjax.codec.container._compressing",
    "decompress_checkpoint": "ggjax.codec.container._checkpoint",
    "parameters_of": "ggjax.codec.container._coding",
    "told": "ggjax.codec.container._coding",
    "checkpoint_at": "ggjax.codec.container._index",
    "index_of": "ggjax.codec.container._index",
    "info_of": "ggjax.codec.container._info",
    "info_of_files": "ggjax.codec.container._info",
    "load": "ggjax.codec.container._sources",
    "opened": "ggjax.codec.container._sources",
    "plain_bytes": "ggjax.codec.container._sources",
}

__all__ = [*_HOME]

__getattr__ = lazy.loader(__name__, _HOME, globals())


def __dir__() -> list[str]:
    return sorted(_HOME)
