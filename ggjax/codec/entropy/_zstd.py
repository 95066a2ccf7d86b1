"""Coder "zstd": chunks of tokens through the zstandard library, a frame each; it decodes on the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ggjax.codec.entropy._chunks import Chunk, Code, Damaged

LEVEL = 1


def library() -> Any:
    """The module ``zstandard``.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise ImportError("coder 'zstd' needs the library zstandard: pip install 'ggjax[zstd]'") from None
    return zstandard


def encode(chunks: Sequence[tuple[np.ndarray, Any]]) -> list[Code]:
    """Code chunks: (tokens uint8 (n,), anything) each; there are no tables."""
    compressor = library().ZstdCompressor(level=LEVEL)
    frames = [compressor.compress(np.ascontiguousarray(c)) for c, _ in chunks]
    none = np.zeros(0, np.uint32)
    return [Code(np.frombuffer(f, np.uint8), none, np.array([len(f)], np.uint32)) for f in frames]


def decode(chunks: Sequence[Chunk]) -> list[np.ndarray]:
    """The tokens of every chunk.

    Raises:
      Damaged: a frame that zstd does not take, or that does not have the tokens of its chunk.
    """
    zstd = library()
    decompressor = zstd.ZstdDecompressor()
    tokens = []
    for c in chunks:
        frame = c.code.words.tobytes()
        try:
            stated = zstd.get_frame_parameters(frame).content_size
            if stated != c.size:
                raise Damaged(f"{c.where}: a frame of {stated} tokens, expected {c.size}")
            data = decompressor.decompress(frame, allow_extra_data=False)
        except zstd.ZstdError as e:
            raise Damaged(f"{c.where}: {e}") from None
        tokens.append(np.frombuffer(data, np.uint8))
    return tokens
