"""Compressing a tree: every array of it in its coded form, a group of arrays at a time."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from ggjax import masks
from ggjax._internal import trees
from ggjax.codec import _calibrated, _encode, _options
from ggjax.codec._compressed import Blocks, Compressed
from ggjax.codec._host import in_parallel, outside_trace
from ggjax.codec._meet import Taken, meet
from ggjax.codec._options import Options, Per, is_of_all, kept_losslessly
from ggjax.codec._shards import frame_of, host_blocks_of
from ggjax.codec._survey import Leaf, survey
from ggjax.codec.quantize import _steps
from ggjax.codec.quantize._quantizers import QUANTIZERS, is_codable
from ggjax.codec.quantize._steps import Unfit
from ggjax.codec.quantize._uniform import SMALLEST
from ggjax.sensitivity import Sensitivity

GROUP = 1 << 24
"""Arrays are coded together up to so many weights, which bounds the memory."""

Kept = dict[str, str]
"""Leaves that are kept losslessly though they were to be rounded, by name, and why."""


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
    per: Per = "tree",
    mask: trees.Mask | Literal["kernels"] = "kernels",
    loss_rise: float | None = None,
    sensitivity: Sensitivity | None = None,
) -> Compressed:
    """Entropy-code the weights of a tree.

    One of ``step``, ``bits``, ``snr_db``, ``step_per_std``, ``rf8`` and ``lossless`` says what is kept of the
    leaves that ``mask`` selects: by default the kernels, those of two and more dimensions. Biases, scales of
    normalization layers and running statistics are kept losslessly then, since they are few and a network does
    not survive that they are rounded.

    ``bits`` and ``snr_db`` are asked of the whole tree, whose leaves share one step: that loses the least at
    given bits (reverse water-filling), since leaves of larger weights get more of them. With ``per="leaf"``
    every leaf gets so many bits, or that ratio, by itself. Leaves of few distinct values (pruned, ternary,
    taken back from integers) come out exact where that takes no more.

    Leaves that are not floating or of fewer than 1024 elements are kept as they are (a file keeps small ones
    together, losslessly), and so are leaves that would take more when coded, and leaves of dtypes other than
    float32, bfloat16, float16, float64 (whose values are kept in float32), float8_e4m3fn and float8_e5m2.
    Lossless, the last three are coded where they have at most 255 distinct values.

    Args:
      params: a tree of arrays (outside jit). Sharded leaves are coded shard by shard.
      step: round weights to multiples of this, from 2^-120 to 2^100, in their units.
      bits: never more than so many bits per parameter, and less than that by at most 1 % or 0.02 bits where the
        values allow. What counts: with the default mask all floating leaves, those that are kept included; with
        another mask the leaves that it selects; with ``per="leaf"`` every leaf that is rounded, by itself. The
        header of a file comes on top (``compress_file`` counts it).
        (With several processes less by up to 3 %: none of them sees what all take.)
      snr_db: lose no more than by this ratio of the power of the rounded leaves to that of their error, in
        decibels. Leaves that come out exact do not count.
      step_per_std: choose the step of every leaf as so many of its standard deviations.
      rf8: keep the 8-bit codes of ``ggjax.rf8``, one exponent a leaf.
      lossless: keep every bit: of NaN, infinities, -0 and subnormals too; of all floating leaves.
      dead_zone: in [0, 0.5): levels are sign(w) floor(|w| / step + 1/2 - dead_zone), nearer to 0 than rounded,
        for fewer bits at a higher error.
      centroids: decode a level to the mean of the weights that it stands for instead of to the middle of its
        range: a lower error for a few bytes.
      coder: "rans", which decodes on any device, or "zstd" (extra ``zstd``), faster on a CPU and a little
        larger.
      per: "tree" or "leaf": what ``bits`` and ``snr_db`` are asked of.
      mask: the leaves to code as asked: "kernels", those that ``ggjax.masks.kernels`` selects, the other
        floating ones losslessly; or a tree of bools, a prefix of one or a function from params to one, the
        others as they are; None for all floating leaves.
      loss_rise: in place of those six, with a ``sensitivity``: round so that the loss rises by about this much,
        in nats per example as the sensitivity counts them, by its quadratic model.
      sensitivity: what a change of each weight costs, as ``ggjax.sensitivity.estimate`` gives it for these
        weights. With it and ``bits`` or ``loss_rise``, every row and column has a step of its own, and the
        error of each weight is made good by those that come after it (``sensitivity.round_to``).

    Returns:
      A ``Compressed`` tree; its ``nbytes`` and ``bits`` tell what it takes.

    Raises:
      ValueError: none or several of the six, one that is not positive, a leaf to be rounded that the
        sensitivity does not cover, a bad dead_zone or coder, a mask that
        does not fit, a NaN or infinite weight to be rounded, weights beyond 2^31 steps, bits that cannot be met
        however coarse the step, a traced leaf.
      ImportError: coder "zstd" without the library.

    >>> import jax.numpy as jnp
    >>> from ggjax.codec import decompress
    >>> w = jnp.linspace(-1, 1, 5000)
    >>> small = compress({"w": w}, step=0.25)
    >>> bool(jnp.abs(decompress(small)["w"] - w).max() <= 0.125), small.nbytes < w.nbytes / 8
    (True, True)
    """
    asked: dict[str, Any] = dict(
        step=step,
        bits=bits,
        snr_db=snr_db,
        step_per_std=step_per_std,
        rf8=rf8,
        lossless=lossless,
        dead_zone=dead_zone,
        centroids=centroids,
        coder=coder,
        per=per,
    )
    if sensitivity is None and loss_rise is None:
        given = _options.checked(**asked)
    else:
        given = _options.calibrated(**asked, loss_rise=loss_rise, sensitivity=sensitivity)
    flat, rounded = _chosen(params, given, mask)
    names, leaves = flat.weight_names(), flat.weights()
    for name, leaf in zip(names, leaves, strict=True):
        if not trees.is_concrete(leaf):
            raise ValueError(
                f"leaf {name!r}: compress needs the weights themselves, got {leaf}: call it outside jit"
            )
    if sensitivity is not None:
        return Compressed(flat.replace(_calibrated_to(names, leaves, rounded, given, sensitivity)))
    if not is_of_all(given):
        options = [given if it_is else kept_losslessly(given) for it_is in rounded]
        return Compressed(flat.replace(_coded(names, leaves, options)))
    with outside_trace():
        known = surveyed(list(zip(names, leaves, rounded, strict=True)), lossless=True)
    out: list[Any] = []
    before: list[Options | None] = []

    def code_all(options: list[Options | None]) -> Taken:
        new = [i for i, o in enumerate(options) if not before or before[i] != o]
        coded = _coded([names[i] for i in new], [leaves[i] for i in new], [options[i] for i in new])
        out[:] = out or leaves
        for i, x in zip(new, coded, strict=True):
            out[i] = x
        before[:] = options
        return Taken([8.0 * x.nbytes for x in out])

    meet(known, given, code_all)
    return Compressed(flat.replace(out))


def _calibrated_to(
    names: list[str], leaves: list[Any], rounded: list[bool], given: Options, state: Sensitivity
) -> list[Any]:
    """Leaves in their coded form, those that are to be rounded by the sensitivity."""
    chosen = {
        n: x
        for n, x, it_is in zip(names, leaves, rounded, strict=True)
        if it_is and str(x.dtype) in QUANTIZERS["scaled"].dtypes and x.size >= _calibrated.MIN_SIZE
    }
    rest = [n not in chosen for n in names]
    out = dict(zip(names, _coded(names, leaves, [kept_losslessly(given) if r else None for r in rest]), strict=True))
    if chosen and given.loss_rise is not None:
        out |= _calibrated.at_loss(chosen, state, given.loss_rise, given.coder)
    elif chosen:
        assert given.want.bits is not None
        room = given.want.bits * sum(x.size for x in leaves)
        room -= sum(8.0 * out[n].nbytes for n, r in zip(names, rest, strict=True) if r)
        out |= _calibrated.in_bits(chosen, state, room, given.coder)
    return [out[n] for n in names]


def surveyed(
    leaves: Sequence[tuple[str, Any, bool]],
    *,
    lossless: bool,
    leaves_in_all: int | None = None,
    kept: Kept | None = None,
) -> list[Leaf]:
    """What is known of some leaves, each (name, leaf, whether it is to be rounded), together.

    ``kept`` is as for ``code``.
    """

    def look(item: tuple[str, Any, bool]) -> Leaf:
        name, leaf, rounded = item
        among = leaves_in_all or len(leaves)
        try:
            return survey(name, leaf, rounded=rounded, lossless=lossless, leaves=among, least=_least(kept))
        except Unfit as e:
            _keep(kept, name, e)
            return survey(name, leaf, rounded=False, lossless=lossless, leaves=among)

    alone = all(getattr(leaf, "is_fully_addressable", True) for _, leaf, _ in leaves)
    return in_parallel(look, leaves) if alone else [look(item) for item in leaves]


def _chosen(params: Any, given: Options, mask: Any) -> tuple[trees.Flat, list[bool]]:
    """The tree with those leaves selected that are to be coded, and which of these are to be rounded."""
    if not isinstance(mask, str):
        flat = trees.flatten(params, mask, needs_weights=False)
        return flat, [True] * len(flat.weights())
    if mask != "kernels":
        raise ValueError(f'mask must be "kernels", a tree of bools or a function to one, got {mask!r}')
    flat = trees.flatten(params, None, needs_weights=False)
    kernels = trees.flatten(params, masks.kernels, needs_weights=False).selected
    lossless = given.kind == "lossless"
    return flat, [lossless or k for k, s in zip(kernels, flat.selected, strict=True) if s]


def _coded(names: list[str], leaves: list[Any], options: Sequence[Options | None]) -> list[Any]:
    """Leaves in their coded form, a group at a time."""
    known: list[np.ndarray] = []
    coded: list[Any] = []
    for group in index_groups([(i, math.prod(np.shape(x))) for i, x in enumerate(leaves)]):
        how = [options[i] for i in group]
        coded.extend(code([names[i] for i in group], [leaves[i] for i in group], how, known))
    return coded


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


def _least(kept: Kept | None) -> float:
    """What the largest weight of a leaf must be at least, to be rounded; see ``code``."""
    return 0.0 if kept is None else SMALLEST


def _keep(kept: Kept | None, name: str, e: Unfit) -> None:
    """Note a leaf that cannot be rounded, or raise what is wrong with it."""
    if kept is None:
        raise e
    kept[name] = e.why


def code(
    names: list[str],
    leaves: list[Any],
    options: Sequence[Options | None],
    known: list[np.ndarray],
    kept: Kept | None = None,
) -> list[Any]:
    """Code some leaves together: each comes as ``Coded``, ``Blocks``, or as it is where it is not worth coding.

    Args:
      names: of the leaves, for messages.
      leaves: emptied, so that the memory of each is free as soon as it can be.
      options: how, for each; None: as it is.
      known: the tables made so far, to be used again; new ones are appended.
      kept: gets the leaves that cannot be rounded (NaN among their weights, or all of them subnormal), and why;
        they are coded losslessly. None: the first of them is an error, and small weights are rounded to 0.
    """
    with outside_trace():
        return _code(names, leaves, options, known, kept)


def _code(
    names: list[str],
    leaves: list[Any],
    options: Sequence[Options | None],
    known: list[np.ndarray],
    kept: Kept | None,
) -> list[Any]:
    out = list(leaves)
    leaves.clear()
    blocks: dict[int, list[Any]] = {}  # of each leaf that is coded, by its place
    frames: dict[int, Blocks] = {}  # for leaves in several blocks
    steps: dict[int, np.float32] = {}
    originals: dict[int, Any] = {}  # until it is known that they are coded
    given: dict[int, Options] = {}
    for i, (leaf, how) in enumerate(zip(out, options, strict=True)):
        if how is not None and is_codable(leaf, how.kind):
            given[i] = how
            parts = host_blocks_of(leaf)
            blocks[i] = [x for _, x in parts]
            if len(parts) != 1 or blocks[i][0].shape != leaf.shape:
                frames[i] = frame_of(leaf, [start for start, _ in parts])
                if not leaf.is_fully_addressable:  # all processes together, one leaf at a time
                    steps[i] = _steps.step_for(names[i], blocks[i], how.kind, how.want, everywhere=True)
            originals[i], out[i] = leaf, None
    rest = [i for i in blocks if i not in steps]

    def step_of(i: int) -> np.float32:
        try:
            return _steps.step_for(names[i], blocks[i], given[i].kind, given[i].want, least=_least(kept))
        except Unfit as e:
            _keep(kept, names[i], e)
            given[i] = kept_losslessly(given[i])
            return np.float32(0)

    steps |= dict(zip(rest, in_parallel(step_of, rest), strict=True))
    work = [(i, j) for i, parts in blocks.items() for j, x in enumerate(parts) if x.size]
    tokens = in_parallel(lambda w: _tokens_of(blocks[w[0]][w[1]], steps[w[0]], given[w[0]]), work)
    worth = []
    for (i, j), t in zip(work, tokens, strict=True):
        if t is not None:  # otherwise it is kept as it is
            blocks[i][j] = None
            originals.pop(i, None)
            worth.append((i, j, t))
    coder = next((how.coder for how in given.values()), "rans")
    coded = _encode.finish([t for *_, t in worth], known, coder)
    for (i, j, _), c in zip(worth, coded, strict=True):
        blocks[i][j] = c
    for i, parts in blocks.items():
        whole = originals.get(i, parts[0])
        out[i] = dataclasses.replace(frames[i], blocks=tuple(parts)) if i in frames else whole
    return out


def _tokens_of(x: np.ndarray, step: np.float32, given: Options) -> _encode.Tokens | None:
    centroids = _steps.centroids([x], step, given.dead_zone) if given.centroids else ()
    return _encode.shortest_tokens(x, given.kind, step, given.dead_zone, centroids)
