"""The codec: compressed trees of weights, and files of them.

``quantize`` turns weights into levels and keys, ``entropy`` keys into words, ``container`` words into files,
``serving`` keeps weights small in a running model.
"""

from typing import TYPE_CHECKING

from ggjax._internal import lazy

if TYPE_CHECKING:  # what type checkers and editors see of the list below (a test compares the two)
    from ggjax.codec._coded import Coded as Coded
    from ggjax.codec._compress import compress as compress
    from ggjax.codec._compressed import Blocks as Blocks
    from ggjax.codec._compressed import Compressed as Compressed
    from ggjax.codec._decompress import decompress as decompress
    from ggjax.codec.container._checkpoint import decompress_file as decompress_file
    from ggjax.codec.container._compressing import compress_file as compress_file
    from ggjax.codec.container._file import inspect_file as inspect_file
    from ggjax.codec.container._file import load_file as load_file
    from ggjax.codec.container._file import save_file as save_file
    from ggjax.codec.container._file import verify_file as verify_file
    from ggjax.codec.container._header import FormatError as FormatError
    from ggjax.codec.container._info import FileInfo as FileInfo
    from ggjax.codec.container._info import TensorInfo as TensorInfo
    from ggjax.codec.serving._array import LevelArray as LevelArray
    from ggjax.codec.serving._dot import dot as dot
    from ggjax.codec.serving._dot import einsum as einsum
    from ggjax.codec.serving._layers import layers as layers
    from ggjax.codec.serving._resident import resident as resident
    from ggjax.codec.serving._twelve import TwelveBitArray as TwelveBitArray

_HOME = {
    "Coded": "ggjax.codec._coded",
    "compress": "ggjax.codec._compress",
    "Blocks": "ggjax.codec._compressed",
    "Compressed": "ggjax.codec._compressed",
    "decompress": "ggjax.codec._decompress",
    "compress_file": "ggjax.codec.container._compressing",
    "decompress_file": "ggjax.codec.container._checkpoint",
    "inspect_file": "ggjax.codec.container._file",
    "load_file": "ggjax.codec.container._file",
    "save_file": "ggjax.codec.container._file",
    "verify_file": "ggjax.codec.container._file",
    "FormatError": "ggjax.codec.container._header",
    "FileInfo": "ggjax.codec.container._info",
    "TensorInfo": "ggjax.codec.container._info",
    "LevelArray": "ggjax.codec.serving._array",
    "dot": "ggjax.codec.serving._dot",
    "einsum": "ggjax.codec.serving._dot",
    "layers": "ggjax.codec.serving._layers",
    "resident": "ggjax.codec.serving._resident",
    "TwelveBitArray": "ggjax.codec.serving._twelve",
}

__all__ = [*_HOME]

__getattr__ = lazy.loader(__name__, _HOME, globals())


def __dir__() -> list[str]:
    return sorted(_HOME)
