"""Coder "zstd": tokens through the zstandard library, a frame a chunk; it decodes on the host."""

import itertools
from typing import Any

import numpy as np

from ggjax.codec import _coded
from ggjax.codec._coded import Coded
from ggjax.codec._decode import Damaged
from ggjax.codec._encode import Tokens

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


def encode(t: Tokens) -> Coded:
    """Code an array; it has no tables."""
    compressor = library().ZstdCompressor(level=LEVEL)
    frames = [compressor.compress(np.ascontiguousarray(c)) for p in t.parts for c in p.chunks]
    return Coded(
        np.frombuffer(b"".join(frames), np.uint8),
        np.zeros(0, np.uint32),
        np.array([len(f) for f in frames], np.uint32),
        np.concatenate([p.raw for p in t.parts]),
        np.concatenate([p.exceptions for p in t.parts]),
        np.zeros((0, 256), np.uint16),
        t.classes,
        t.meta,
    )


def decode(c: Coded, where: str) -> list[np.ndarray]:
    """The tokens of every chunk.

    Raises:
      Damaged: a frame that zstd does not take, or that has not the tokens of its chunk.
    """
    zstd = library()
    decompressor = zstd.ZstdDecompressor()
    sizes = [n for p in c.meta.parts for n in _coded.chunk_sizes(p.size)]
    ends = itertools.accumulate(int(n) for n in c.counts)
    tokens, begin = [], 0
    for i, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        try:
            frame = c.words[begin:end].tobytes()
            stated = zstd.get_frame_parameters(frame).content_size
            if stated != size:
                raise Damaged(f"{where}, chunk {i}: a frame of {stated} tokens, expected {size}")
            data = decompressor.decompress(frame, allow_extra_data=False)
        except zstd.ZstdError as e:
            raise Damaged(f"{where}, chunk {i}: {e}") from None
        tokens.append(np.frombuffer(data, np.uint8))
        begin = end
    return tokens
