"""Compressing a tree: every array of it in its coded form."""

from collections.abc import Callable
from typing import Any, Literal

from ggjax._internal import trees
from ggjax.codec import _calibrated, _options
from ggjax.codec._compressed import Compressed
from ggjax.codec._groups import code_in_groups, surveyed
from ggjax.codec._host import outside_trace
from ggjax.codec._meet import Taken, meet
from ggjax.codec._options import Options, Per, is_of_all, kept_losslessly
from ggjax.sensitivity import Rounded, Sensitivity


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
    loss: Callable[[Any], Any] | None = None,
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
      params: a tree of arrays (outside jit). Sharded leaves are coded shard by shard. Or what
        ``sensitivity.round_to`` or ``compensate`` made of one: its levels are coded, and other floating leaves
        losslessly; of the options it takes ``coder`` only.
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
      lossless: keep every bit: of NaN, infinities, -0 and subnormals too; of all floating leaves. The zeros of
        pruned weights take little more than their entropy.
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
      loss: with ``loss_rise``, a function from a tree like ``params`` to its loss in the same unit, on data
        that is neither calibrated nor tested with: the rise is then measured, and met within 5 % where that
        is possible. It is called up to six times.

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
    if isinstance(params, Rounded):
        asked = {"step": step, "bits": bits, "snr_db": snr_db, "step_per_std": step_per_std, "rf8": rf8}
        asked |= {"lossless": lossless, "loss_rise": loss_rise, "sensitivity": sensitivity, "loss": loss}
        asked |= {"dead_zone": dead_zone, "centroids": centroids}
        asked |= {"per": per != "tree", "mask": not isinstance(mask, str)}
        odd = [n for n, v in asked.items() if v not in (None, False)]
        if odd:
            raise ValueError(f"the tree is rounded already: {' and '.join(odd)} cannot be asked of it")
        return _rounded(params, _options.checked(lossless=True, coder=coder))
    given = _options.of(
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
        loss_rise=loss_rise,
        sensitivity=sensitivity,
    )
    if loss is not None and loss_rise is None:
        raise ValueError("loss belongs to loss_rise")
    flat, rounded = _chosen(params, given, mask)
    names, leaves = flat.weight_names(), flat.weights()
    for name, leaf in zip(names, leaves, strict=True):
        if not trees.is_concrete(leaf):
            raise ValueError(
                f"leaf {name!r}: compress needs the weights themselves, got {leaf}: call it outside jit"
            )
    if sensitivity is not None:
        return Compressed(flat.replace(_calibrated_to(flat, rounded, given, sensitivity, loss)))
    if not is_of_all(given):
        options = [given if it_is else kept_losslessly(given) for it_is in rounded]
        return Compressed(flat.replace(code_in_groups(names, leaves, options)))
    with outside_trace():
        known = surveyed(list(zip(names, leaves, rounded, strict=True)), lossless=True)
    out: list[Any] = []
    before: list[Options | None] = []

    def code_all(options: list[Options | None]) -> Taken:
        new = [i for i, o in enumerate(options) if not before or before[i] != o]
        coded = code_in_groups([names[i] for i in new], [leaves[i] for i in new], [options[i] for i in new])
        out[:] = out or leaves
        for i, x in zip(new, coded, strict=True):
            out[i] = x
        before[:] = options
        return Taken([8.0 * x.nbytes for x in out])

    meet(known, given, code_all)
    return Compressed(flat.replace(out))


def _rounded(given: Rounded, lossless: Options) -> Compressed:
    """What ``sensitivity.round_to`` gives, in its coded form."""
    flat = trees.flatten(given.params, None, needs_weights=False)
    names, leaves = flat.weight_names(), flat.weights()
    options = [None if n in given.levels else lossless for n in names]
    out = dict(zip(names, code_in_groups(names, leaves, options), strict=True))
    chosen = {n: x for n, x in zip(names, leaves, strict=True) if n in given.levels}
    out |= _calibrated.coded(chosen, given.levels, given.rises, lossless.coder)
    return Compressed(flat.replace(out[n] for n in names))


def _calibrated_to(
    flat: trees.Flat,
    rounded: list[bool],
    given: Options,
    state: Sensitivity,
    loss: Callable[[Any], Any] | None,
) -> list[Any]:
    """Leaves in their coded form, those that are to be rounded by the sensitivity."""
    names, leaves = flat.weight_names(), flat.weights()
    triples = zip(names, leaves, rounded, strict=True)
    chosen = {n: x for n, x, it_is in triples if it_is and _calibrated.is_rounded(x)}
    rest = [n not in chosen for n in names]
    options = [kept_losslessly(given) if r else None for r in rest]
    out = dict(zip(names, code_in_groups(names, leaves, options), strict=True))
    if chosen and given.loss_rise is not None:

        def measured(new: dict[str, Any]) -> float:
            assert loss is not None
            return float(loss(flat.with_named(new)))

        measure = None if loss is None else measured
        out |= _calibrated.at_loss(chosen, state, given.loss_rise, given.coder, measure)
    elif chosen:
        assert given.want.bits is not None
        room = given.want.bits * sum(x.size for x in leaves)
        room -= sum(8.0 * out[n].nbytes for n, r in zip(names, rest, strict=True) if r)
        out |= _calibrated.in_bits(chosen, state, room, given.coder)
    return [out[n] for n in names]


def _chosen(params: Any, given: Options, mask: Any) -> tuple[trees.Flat, list[bool]]:
    """The tree with those leaves selected that are to be coded, and which of these are to be rounded."""
    if not isinstance(mask, str):
        flat = trees.flatten(params, mask, needs_weights=False)
        return flat, [True] * len(flat.weights())
    flat = trees.flatten(params, None, needs_weights=False)
    kernels = trees.flatten(params, mask, needs_weights=False).selected
    lossless = given.kind == "lossless"
    return flat, [lossless or k for k, s in zip(kernels, flat.selected, strict=True) if s]
