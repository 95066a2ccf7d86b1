"""The codec: compressed trees of weights, and files of them."""

from ggjax.codec._coded import Coded as Coded
from ggjax.codec._compress import Blocks as Blocks
from ggjax.codec._compress import Compressed as Compressed
from ggjax.codec._compress import compress as compress
from ggjax.codec._compress import decompress as decompress
