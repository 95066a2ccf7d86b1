"""DeepShape: give trained weights the histogram of a narrower, more peaked generalized Gaussian.

Histogram specification by ranks: the order of the weights stays, their values change (arXiv 2506.00486,
version 3). The statistics are integer histograms, so that sharded weights exchange tables of half a megabyte
and no weights, and give the same result as whole ones.
"""

import contextlib
import functools
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ggjax import gennorm
from ggjax._internal import mesh, pack, steps, trees
from ggjax.reshape import _kept, _table
from ggjax.reshape._histogram import Counting, histogram, number_of
from ggjax.reshape._levels import MAX_LEVEL, Grid
from ggjax.reshape._pieces import PIECE
from ggjax.reshape._place import Table, place
from ggjax.reshape._rank import place_by_rank
from ggjax.reshape._target import target_ends

_FEW_LEAVES = 16
"""Trees of more leaves than this on one device have those smaller than a piece packed together.

The time that XLA takes to compile rises with the square of the number of slices taken from one array.
"""

_NEXT_TO_NOTHING = 0.05
"""Share of the weights off level 0 below which a ``min_count`` that was asked for earns a warning."""

_LARGEST_COUNT = 2**31 - 128
"""The largest float32 that is an int32."""

_Method = Literal["histogram", "rank"]


class DeepShapeInfo(NamedTuple):
    """What ``deepshape`` did: two laws in the units of the weights, and three scalars.

    ``before`` and ``after`` are fitted by moments about 0 to the weights that were reshaped, as they came and
    as they are on return; ``loc`` of both is the centre of the target. Zeros that are kept count nowhere.
    ``after`` and ``moved`` are read off the histogram's table.
    """

    before: gennorm.Fit
    after: gennorm.Fit
    max_level: jax.Array  # int32 (): weights within so many levels of the centre are reshaped
    moved: jax.Array  # float32 (): fraction of the weights (but for zeros kept) whose level changed
    min_count: jax.Array  # int32 (): as given, or as chosen


class _Settings(NamedTuple):
    """The numbers that a call can change without a new program."""

    shape_scale: jax.Array  # float32 ()
    std_scale: jax.Array  # float32 ()
    step: jax.Array  # float32 (), or float64 for float64 weights
    min_count: jax.Array | None  # float32 (), or None to have it chosen


def deepshape(
    params: Any,
    *,
    shape_scale: ArrayLike = 0.8,
    std_scale: ArrayLike = 0.6,
    step: ArrayLike = 2**-13,
    min_count: ArrayLike | None = None,
    method: _Method = "histogram",
    keep_zeros: bool = True,
    axis_name: Hashable = None,
    mask: trees.Mask = None,
) -> tuple[Any, DeepShapeInfo]:
    """Reshape the histogram of a model's weights to a generalized Gaussian that takes fewer bits.

    With levels q = round(theta / step) over all selected leaves together, ``max_level`` is the smallest
    positive level that occurs, but at most ``min_count`` times. A law of shape nu and scale alpha is fitted,
    by moments about 0, to the weights within max_level * step of 0; mu is their mean in levels, truncated
    toward zero. The weights with a level in [mu - max_level, mu + max_level] are then moved, in their order,
    to the levels of the law (shape_scale nu, std_scale alpha) about mu. All other weights are rounded to their
    level: every weight returned is a multiple of step. If no level is that rare (always so with min_count = 0),
    every weight is kept: the fit takes all of them, and max_level reaches the one farthest from mu.

    Weights that are exactly 0, as pruning leaves them, stay 0 and count nowhere: neither in the fit nor in the
    ranks. So the other weights are reshaped as they would be alone, and the histogram of the result is the
    target law with a spike at 0, as high as there were zeros. The published rule, keep_zeros = False, ranks
    the zeros like all weights and spreads them over the levels that their ranks ask for: a pruned model is
    pruned no longer.

    ``min_count`` spares the rare large weights. It has to lie well below the count of the levels next to 0, or
    max_level is one of these and next to nothing is reshaped. By default it is n / 10^5, as the published 1000
    is for models of some 10^8 weights, but at most 1/200 of the count of the levels next to 0 (the mean of
    levels 1 and -1), rounded down: 0 for a model of fewer than 10^5 weights, for a step so fine that levels
    hold few weights, and where pruning left none near 0. n counts the weights that take part.

    A second call narrows the weights again; post-train in between (arXiv 2506.00486v3, section on DeepShape).
    Without training in between, weights that the first call moved to level 0 are zeros for the second.

    Under jit a NaN or an infinite weight stays what it is and counts nowhere. Subnormal numbers (float32 below
    1.2e-38) are zeros, as XLA takes them.

    Inside ``jax.shard_map`` every device reshapes the leaves it sees by their own histogram: right for
    replicated weights. For weights divided over an axis of the mesh, name it in ``axis_name``.

    Args:
      params: a tree of arrays. Floating leaves are reshaped and keep their dtype (the multiple of step nearest
        to it, in dtypes that have too few digits for it); others pass through, as do leaves that are no
        arrays. One law fits all of them: leave out what has a law of its own, such as scales of norms about 1
        (``mask=ggjax.masks.kernels``).
      shape_scale: the target's shape over the fitted one, positive.
      std_scale: the target's scale alpha over the fitted one, positive.
      step: distance of the levels, in the units of the weights; positive. Weights more than 65536 levels away
        from 0 (a weight of 8, at the default) are only rounded.
      min_count: a level that occurs this often or less ends the kept range; 0 for no end, None to choose.
      method: "histogram" maps every weight through one monotone table, made from a histogram of about 10^5
        bins over the kept range, and works on sharded weights; equal weights stay equal. The result is within
        a total variation of 0.01 of the target unless many weights are equal. "rank" sorts all weights, on
        one device, and splits equal ones over several levels: the reference, exact and slow.
      keep_zeros: keep weights that are exactly 0, see above; False for the published rule.
      axis_name: name of an axis of ``jax.shard_map`` or ``jax.vmap``, or a tuple of names: the histogram is
        that of all devices (or members) together. A leaf that they all hold whole counts once for each.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.

    Returns:
      The tree with its selected leaves reshaped, sharded as they were, and a ``DeepShapeInfo``. Empty and
      all-zero trees come back as they are, with Fit(2, 0, 0).

    Raises:
      ValueError: shape_scale, std_scale or step is not positive, min_count is negative, one of them is no
        scalar, method is unknown, a weight is NaN or infinite (outside jit), no leaf is floating, the mask
        does not fit, or "rank" is asked for leaves sharded over an Explicit mesh or with an axis_name.

    Warns:
      UserWarning: outside jit, when a min_count that was given leaves next to nothing to reshape.

    >>> import jax
    >>> w = 0.05 * gennorm.sample(jax.random.key(0), 1.0, (1000, 1000))
    >>> new, info = deepshape({"w": w})
    >>> bool(abs(info.after.nu / info.before.nu - 0.8) < 0.1)
    True
    """
    flat = trees.flatten(params, mask)
    names, leaves = flat.weight_names(), flat.weights()
    _check_scalars(shape_scale=shape_scale, std_scale=std_scale, step=step, min_count=min_count)
    if method not in ("histogram", "rank"):
        raise ValueError(f'method must be "histogram" or "rank", got {method!r}')
    if not isinstance(keep_zeros, (bool, np.bool_)):
        raise TypeError(f"keep_zeros must be a bool, got {keep_zeros!r}")
    steps.check_step(step, leaves)
    if method == "rank":
        _refuse_sharded(names, leaves, axis_name)
    trees.check_finite(names, leaves)
    numbers = [x for x in (shape_scale, std_scale, step, min_count) if x is not None]
    with _at_trace_time(leaves, numbers, axis_name):
        settings = _Settings(
            jnp.asarray(shape_scale, jnp.float32),
            jnp.asarray(std_scale, jnp.float32),
            jnp.asarray(step, trees.wide_dtype(*(x.dtype for x in leaves))),
            None if min_count is None else jnp.asarray(min_count, jnp.float32),
        )
        if not trees.size(leaves):
            nothing = gennorm.Fit(*map(jnp.float32, (2, 0, 0)))
            least = jnp.float32(0) if settings.min_count is None else settings.min_count
            return params, DeepShapeInfo(nothing, nothing, jnp.int32(0), jnp.float32(0), _whole_count(least))
        counting = Counting(bool(keep_zeros), _each_on_one_device(leaves), axis_name)
        new, info, found = _reshape(leaves, settings, counting, method)
    if min_count is not None:
        _warn_if_idle(info, found)
    return flat.replace(new), info


def _check_scalars(**scalars: Any) -> None:
    for name, value in scalars.items():
        if value is None:
            continue
        if jnp.ndim(value):
            raise ValueError(f"{name} must be a scalar, got an array of shape {jnp.shape(value)}")
        check = trees.check_not_negative if name == "min_count" else trees.check_positive
        check(name, value)


def _refuse_sharded(names: Sequence[str], leaves: Sequence[Any], axis_name: Hashable) -> None:
    if axis_name is not None:
        raise ValueError(
            f'method="rank" sorts the weights on one device, and cannot with axis_name={axis_name!r}: use '
            'method="histogram"'
        )
    for name, leaf in zip(names, leaves, strict=True):
        sharding = mesh.explicit_sharding(leaf)
        if sharding is not None and any(sharding.spec):
            raise ValueError(
                f'method="rank" sorts the weights on one device, but leaf {name!r} is sharded over an Explicit '
                f'mesh as {sharding.spec}: use method="histogram", or replicate it'
            )


def _each_on_one_device(leaves: Sequence[Any]) -> bool:
    """Whether every leaf surely lies on one device, so that it may be read in pieces."""
    if not trees.is_concrete(*leaves):
        around = jax.sharding.get_abstract_mesh()  # inside shard_map its axes are Manual
        return pack.one_device() or (not around.empty and around.are_all_axes_manual)
    return all(len(x.sharding.device_set) == 1 for x in leaves if isinstance(x, jax.Array))


def _at_trace_time(
    leaves: Sequence[Any], numbers: Sequence[Any], axis_name: Hashable
) -> contextlib.AbstractContextManager[None]:
    """Compute now, and not in the program, what a traced function asks about weights that it closes over.

    The result is a constant of its program, which XLA would else take long to fold. (JAX cannot do so with
    arrays on an Explicit mesh.)
    """
    traced = isinstance(jnp.zeros(()), jax.core.Tracer)
    known = axis_name is None and trees.is_concrete(*leaves, *numbers)
    if traced and known and not any(mesh.explicit_sharding(x) for x in leaves):
        return jax.ensure_compile_time_eval()
    return contextlib.nullcontext()


def _warn_if_idle(info: DeepShapeInfo, found: _kept.Scan) -> None:
    """Warn, outside jit, when the range that min_count leaves holds next to none of the weights."""
    if not trees.is_concrete(*found):
        return
    inside, outside = float(found.inside), float(found.outside)
    if not found.cut or inside >= _NEXT_TO_NOTHING * (inside + outside):
        return
    warnings.warn(
        f"deepshape reshaped next to nothing: min_count={int(info.min_count)} ends the kept range at level "
        f"{int(info.max_level)}, within which lie {inside / (inside + outside):.2%} of the weights that are "
        f"not rounded to 0. The levels next to 0 hold {float(found.beside_zero):.4g} weights each, and "
        "min_count has to lie well below that: leave it out to have it chosen, or pass 0 to reshape all",
        UserWarning,
        stacklevel=3,
    )


@functools.partial(jax.jit, static_argnames=("counting", "method"))
def _reshape(
    leaves: list[Any], settings: _Settings, counting: Counting, method: _Method
) -> tuple[list[jax.Array], DeepShapeInfo, _kept.Scan]:
    """``deepshape`` of a list of leaves, without its checks; what the levels' counts say comes third."""
    arrays = [jnp.asarray(x) for x in leaves]
    packing = None
    if counting.whole and method == "histogram" and len(arrays) > _FEW_LEAVES:
        packing = pack.plan(arrays, below=PIECE, at_most=pack.MOST)
        arrays = packing.pack(arrays)
    step = settings.step

    # One bin a level: the kept range.
    every_level = Grid(step, jnp.int32(MAX_LEVEL), None)
    coarse = histogram(arrays, every_level, counting)
    found = _kept.scan_levels(coarse.counts(), coarse.beyond, settings.min_count)

    # As many bins a level as there is room for: the law, and the rank at every bin's edge.
    per_level = _kept.bins_per_level(found.reach)
    grid = Grid(step, found.reach, per_level)
    fine = histogram(arrays, grid, counting)
    counts, bins = fine.counts(), _kept.bins(found.reach, per_level)
    dtype = trees.wide_dtype(*(x.dtype for x in arrays))
    kept = _kept.kept_range(found, bins, counts, dtype)
    ranks = _table.ranks_of_edges(fine.parts, kept.mask, _table.unit_bits(number_of(arrays, counting)))

    # The target, and where the edges go.
    nu, scale = kept.law.nu.astype(jnp.float32), kept.law.scale.astype(jnp.float32)
    ends = target_ends(ranks[-1], nu * settings.shape_scale, scale * settings.std_scale, kept.max_level)
    positions = _table.positions_of(ranks, ends, kept)

    if method == "histogram":
        table = Table(positions, grid, kept.low, kept.high)
        new = [place(x, table, counting.keep_zeros, in_pieces=packing is not None) for x in arrays]
    else:
        new = place_by_rank(arrays, step, kept, ends, counting.keep_zeros)
    if packing is not None:
        new = packing.unpack(new)

    level = _table.levels_after(positions, bins, kept)
    number = counts.sum() + fine.beyond
    moved = jnp.sum(jnp.where(level != bins.level, counts, 0)) / jnp.maximum(number, 1)
    after = _kept.law(_kept.moments(jnp.where(kept.mask, counts, 0), level.astype(jnp.float32)), dtype)
    width = step.astype(dtype)
    before, after = (
        f._replace(scale=f.scale * width, loc=kept.mu.astype(dtype) * width) for f in (kept.law, after)
    )
    info = DeepShapeInfo(before, after, kept.max_level, moved, _whole_count(found.min_count))
    return new, info, found


def _whole_count(x: jax.Array) -> jax.Array:
    return jnp.minimum(jnp.floor(x), _LARGEST_COUNT).astype(jnp.int32)
