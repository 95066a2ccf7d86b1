"""The codec: compressed trees of weights, and files of them.

``quantize`` turns weights into levels and keys, ``entropy`` keys into words, ``container`` words into files.
"""

import ggjax.codec._state_dict  # noqa: F401  (tells flax.serialization of compressed trees)
from ggjax.codec._coded import Coded as Coded
from ggjax.codec._compress import compress as compress
from ggjax.codec._compressed import Blocks as Blocks
from ggjax.codec._compressed import Compressed as Compressed
from ggjax.codec._decompress import decompress as decompress
from ggjax.codec.container._checkpoint import compress_file as compress_file
from ggjax.codec.container._checkpoint import decompress_file as decompress_file
from ggjax.codec.container._file import inspect_file as inspect_file
from ggjax.codec.container._file import load_file as load_file
from ggjax.codec.container._file import save_file as save_file
from ggjax.codec.container._file import verify_file as verify_file
from ggjax.codec.container._header import FormatError as FormatError
from ggjax.codec.container._info import FileInfo as FileInfo
from ggjax.codec.container._info import TensorInfo as TensorInfo
