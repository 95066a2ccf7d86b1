"""Compressing a tree: every array of it in its coded form, a group of arrays at a time."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ggjax._internal import trees
from ggjax.codec import _encode, _options
from ggjax.codec._compressed import Blocks, Compressed
from ggjax.codec._host import in_parallel, outside_trace
from ggjax.codec._options import Options
from ggjax.codec._shards import frame_of, shards_of
from ggjax.codec.quantize import _steps
from ggjax.codec.quantize._quantizers import is_codable

GROUP = 1 << 24
"""Arrays are coded together up to so many weights, which bounds the memory."""


def compress(
    params: Any,
    *,
    step: float | None = None,
    bits: float | None = None,
    snr_db: float | None = None,
    step_per_std: float | None = None,
    rf8: bool = False,
    lossless: bool = False,
    dead_zone: float = 0.0,
    centroids: bool = False,
    coder: str = "rans",
    mask: trees.Mask = None,
) -> Compressed:
    """Entropy-code the weights of a tree.

    One of ``step``, ``bits``, ``snr_db``, ``step_per_std``, ``rf8`` and ``lossless`` says what is kept of them.
    Leaves that are not floating, not selected or of fewer than 1024 elements are kept as they are (a file keeps
    small ones together, losslessly), and so are leaves that would take more when coded, and leaves of dtypes
    other than float32, bfloat16, float16, float64 (whose values are kept in float32), float8_e4m3fn and
    float8_e5m2. Lossless, the last three are coded where they have at most 255 distinct values.

    Args:
      params: a tree of arrays (outside jit). Sharded leaves are coded shard by shard.
      step: round weights to multiples of this, from 2^-120 to 2^100, in their units.
      bits: choose the step of every leaf so that it takes about so many bits per parameter by entropy.
      snr_db: choose the step of every leaf for this ratio of its power to that of the error, in decibels.
      step_per_std: choose the step of every leaf as so many of its standard deviations.
      rf8: keep the 8-bit codes of ``ggjax.rf8``, one exponent a leaf.
      lossless: keep every bit: of NaN, infinities, -0 and subnormals too.
      dead_zone: in [0, 0.5): levels are sign(w) floor(|w| / step + 1/2 - dead_zone), nearer to 0 than rounded,
        for fewer bits at a higher error.
      centroids: decode a level to the mean of the weights that it stands for instead of to the middle of its
        range: a lower error for a few bytes.
      coder: "rans", which decodes on any device, or "zstd" (extra ``zstd``), faster on a CPU and a little
        larger.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.

    Returns:
      A ``Compressed`` tree; its ``nbytes`` and ``bits`` tell what it takes.

    Raises:
      ValueError: none or several of the six, one that is not positive, a bad dead_zone or coder, a mask that
        does not fit, a NaN or infinite weight unless lossless, weights beyond 2^31 steps, a traced leaf.
      ImportError: coder "zstd" without the library.

    >>> import jax.numpy as jnp
    >>> from ggjax.codec import decompress
    >>> w = jnp.linspace(-1, 1, 5000)
    >>> small = compress({"w": w}, step=0.25)
    >>> bool(jnp.abs(decompress(small)["w"] - w).max() <= 0.125), small.nbytes < w.nbytes / 8
    (True, True)
    """
    given = _options.checked(
        step=step,
        bits=bits,
        snr_db=snr_db,
        step_per_std=step_per_std,
        rf8=rf8,
        lossless=lossless,
        dead_zone=dead_zone,
        centroids=centroids,
        coder=coder,
    )
    flat = trees.flatten(params, mask, needs_weights=False)
    names, leaves = flat.weight_names(), flat.weights()
    for name, leaf in zip(names, leaves, strict=True):
        if not trees.is_concrete(leaf):
            raise ValueError(
                f"leaf {name!r}: compress needs the weights themselves, got {leaf}: call it outside jit"
            )
    known: list[np.ndarray] = []
    coded: list[Any] = []
    for group in index_groups([(i, math.prod(np.shape(x))) for i, x in enumerate(leaves)]):
        coded.extend(code([names[i] for i in group], [leaves[i] for i in group], given, known))
    return Compressed(flat.replace(coded))


def index_groups(sizes: list[tuple[Any, int]], most: int = GROUP) -> Iterator[list[Any]]:
    """Runs of items (name, size), each run of at most ``most`` in all or of one item."""
    group: list[Any] = []
    total = 0
    for i, size in sizes:
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(i)
        total += size
    if group:
        yield group


def code(names: list[str], leaves: list[Any], given: Options, known: list[np.ndarray]) -> list[Any]:
    """Code some leaves together: each comes as ``Coded``, ``Blocks``, or as it is where it is not worth coding.

    Args:
      names: of the leaves, for messages.
      leaves: emptied, so that the memory of each is free as soon as it can be.
      given: how.
      known: the tables made so far, to be used again; new ones are appended.
    """
    with outside_trace():
        return _code(names, leaves, given, known)


def _code(names: list[str], leaves: list[Any], given: Options, known: list[np.ndarray]) -> list[Any]:
    out = list(leaves)
    leaves.clear()
    blocks: dict[int, list[Any]] = {}  # of each leaf that is coded, by its place
    frames: dict[int, Blocks] = {}  # for leaves in several blocks
    steps: dict[int, np.float32] = {}
    originals: dict[int, Any] = {}  # until it is known that they are coded
    for i, leaf in enumerate(out):
        if is_codable(leaf, given.kind):
            parts = shards_of(leaf)
            blocks[i] = [_host(x) for _, x in parts]
            if len(parts) != 1 or blocks[i][0].shape != leaf.shape:
                frames[i] = frame_of(leaf, [start for start, _ in parts])
                if not leaf.is_fully_addressable:  # all processes together, one leaf at a time
                    steps[i] = _steps.step_for(names[i], blocks[i], given.kind, given.want, everywhere=True)
            originals[i], out[i] = leaf, None
    rest = [i for i in blocks if i not in steps]
    found = in_parallel(lambda i: _steps.step_for(names[i], blocks[i], given.kind, given.want), rest)
    steps |= dict(zip(rest, found, strict=True))
    work = [(i, j) for i, parts in blocks.items() for j, x in enumerate(parts) if x.size]
    tokens = in_parallel(lambda w: _tokens_of(blocks[w[0]][w[1]], steps[w[0]], given), work)
    worth = []
    for (i, j), t in zip(work, tokens, strict=True):
        if t is not None:  # otherwise it is kept as it is
            blocks[i][j] = None
            originals.pop(i, None)
            worth.append((i, j, t))
    coded = _encode.finish([t for *_, t in worth], known, given.coder)
    for (i, j, _), c in zip(worth, coded, strict=True):
        blocks[i][j] = c
    for i, parts in blocks.items():
        whole = originals.get(i, parts[0])
        out[i] = dataclasses.replace(frames[i], blocks=tuple(parts)) if i in frames else whole
    return out


def _host(x: Any) -> np.ndarray:
    """The array on the host, contiguous and in the byte order of this machine."""
    array = np.asarray(x)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array).reshape(array.shape)


def _tokens_of(x: np.ndarray, step: np.float32, given: Options) -> _encode.Tokens | None:
    centroids = _steps.centroids([x], step, given.dead_zone) if given.centroids else ()
    return _encode.shortest_tokens(x, given.kind, step, given.dead_zone, centroids)
