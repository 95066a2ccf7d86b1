"""DeepShape: give trained weights the histogram of a narrower, more peaked generalized Gaussian.

Histogram specification by ranks: the order of the weights stays, their values change (arXiv 2504.16968). The
statistics are integer histograms, so that sharded weights exchange tables of half a megabyte and no weights,
and give the same result as whole ones.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ggjax import gennorm
from ggjax._internal import mesh, trees
from ggjax.gennorm import _fit

_REACH = 1 << 16
"""Levels beyond this one (a weight of 8 at the default step) are never reshaped."""

_BINS = 2 * _REACH + 1
"""Bins of both histograms: one a level first, then as many a level as fit on the kept range."""

_COUNT_BITS = 31
"""Ranks are counted in units of the smallest power of two that makes them fit into this many bits."""

_CHUNK = 1 << 18

_FEW, _SMALL, _PACK = 16, _CHUNK, 64
"""Trees of more than _FEW leaves have those below _SMALL weights packed together, up to _PACK of them.

The time that XLA takes to compile rises with the square of the number of slices taken from one array.
"""

_Cut = Callable[..., jax.Array]

_Method = Literal["histogram", "rank"]


class DeepShapeInfo(NamedTuple):
    """What ``deepshape`` did: two laws in the units of the weights, and two scalars.

    ``before`` and ``after`` are fitted by moments about 0 to the reshaped weights, as they came and as they
    are on return; ``loc`` of both is the centre of the target. ``after`` and ``moved`` are read off the
    histogram's table.
    """

    before: gennorm.Fit
    after: gennorm.Fit
    max_level: jax.Array  # int32 (): weights within so many levels of the centre are reshaped
    moved: jax.Array  # float32 (): fraction of the selected weights that left the level next to them


def deepshape(
    params: Any,
    *,
    shape_scale: ArrayLike = 0.8,
    std_scale: ArrayLike = 0.6,
    step: ArrayLike = 2**-13,
    min_count: ArrayLike = 1000,
    method: _Method = "histogram",
    mask: trees.Mask = None,
) -> tuple[Any, DeepShapeInfo]:
    """Reshape the histogram of a model's weights to a generalized Gaussian that takes fewer bits.

    With levels q = round(theta / step) over all selected leaves together, ``max_level`` is the smallest
    positive level that occurs, but at most ``min_count`` times. A law of shape nu and scale alpha is fitted,
    by moments about 0, to the weights within max_level * step of 0; mu is their mean, cut to a whole level.
    The weights with a level in [mu - max_level, mu + max_level] are then moved, in their order, to the levels
    of the law (shape_scale nu, std_scale alpha) about mu. All other weights are rounded to their level: every
    weight returned is a multiple of step. If no level is that rare (always so with min_count = 0), nothing is
    cut: the fit takes all weights and max_level reaches the one farthest from mu.

    ``min_count`` suits models of millions of weights. It must lie well below the count of the levels next to
    0, or max_level is one of these and next to nothing is reshaped: for a small model take 0 or a few.

    A second call narrows the weights again; post-train in between (arXiv 2504.16968, section on DeepShape).

    Args:
      params: a tree of arrays. Floating leaves are reshaped and keep their dtype (the multiple of step nearest
        to it, in bfloat16 and float16, where those have too few digits); others pass through.
      shape_scale: the target's shape over the fitted one, positive.
      std_scale: the target's scale alpha over the fitted one, positive.
      step: distance of the levels, in the units of the weights; positive. Weights more than 65536 levels away
        from 0 (a weight of 8, at the default) are only rounded.
      min_count: a level that occurs this often or less ends the kept range; 0 for no end.
      method: "histogram" maps every weight through one monotone table, made from a histogram of about 10^5
        bins over the kept range, and works on sharded weights; equal weights stay equal. The result is within
        a total variation of 0.01 of the target unless many weights are equal. "rank" sorts all weights, on
        one device, and splits equal ones over several levels: the reference, exact and slow.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.

    Returns:
      The tree with its selected leaves reshaped, sharded as they were, and a ``DeepShapeInfo``. Empty and
      all-zero trees come back as they are, with Fit(2, 0, 0).

    Raises:
      ValueError: shape_scale, std_scale or step is not positive, min_count is negative, method is unknown, a
        weight is NaN or infinite (outside jit), no leaf is floating, the mask does not fit, or "rank" is
        asked for leaves sharded over an Explicit mesh.

    >>> import jax
    >>> w = 0.05 * gennorm.sample(jax.random.key(0), 1.0, (1000, 1000))
    >>> new, info = deepshape({"w": w}, min_count=100)
    >>> bool(abs(info.after.nu / info.before.nu - 0.8) < 0.1)
    True
    """
    flat = trees.flatten(params, mask)
    names, leaves = flat.weight_names(), flat.weights()
    trees.check_positive("shape_scale", shape_scale)
    trees.check_positive("std_scale", std_scale)
    trees.check_positive("step", step)
    if trees.is_concrete(min_count):
        if not jnp.issubdtype(np.asarray(min_count).dtype, np.number):
            raise TypeError(f"min_count must be a number, got {min_count!r}")
        if not np.asarray(min_count) >= 0:
            raise ValueError(f"min_count must be at least 0, got {min_count!r}")
    if method not in ("histogram", "rank"):
        raise ValueError(f'method must be "histogram" or "rank", got {method!r}')
    if method == "rank":
        _refuse_sharded(names, leaves)
    trees.check_finite(names, leaves)
    if not trees.size(leaves):
        nothing = gennorm.Fit(*map(jnp.float32, (2, 0, 0)))
        return params, DeepShapeInfo(nothing, nothing, jnp.int32(0), jnp.float32(0))
    scales = (shape_scale, std_scale, step, min_count)
    args = [jnp.asarray(x, jnp.float32) for x in scales]
    new, info = _reshape(leaves, *args, method=method, whole=_is_whole(leaves))
    return flat.replace(new), info


def _refuse_sharded(names: Sequence[str], leaves: Sequence[Any]) -> None:
    for name, leaf in zip(names, leaves, strict=True):
        sharding = mesh.explicit_sharding(leaf)
        if sharding is not None and any(sharding.spec):
            raise ValueError(
                f'method="rank" sorts the weights on one device, but leaf {name!r} is sharded over an Explicit '
                f'mesh as {sharding.spec}: use method="histogram", or replicate it'
            )


def _is_whole(leaves: Sequence[Any]) -> bool:
    """Whether the leaves surely lie on one device each, so that they can be cut into chunks."""
    if not trees.is_concrete(*leaves):
        return jax.device_count() == 1
    return all(len(x.sharding.device_set) == 1 for x in leaves if isinstance(x, jax.Array))


@functools.partial(jax.jit, static_argnames=("method", "whole", "pieces"))
def _reshape(
    leaves: list[Any],
    shape_scale: jax.Array,
    std_scale: jax.Array,
    step: jax.Array,
    min_count: jax.Array,
    *,
    method: _Method,
    whole: bool,
    pieces: bool = False,
) -> tuple[list[jax.Array], DeepShapeInfo]:
    leaves = [jnp.asarray(x) for x in leaves]
    if whole and method == "histogram" and len(leaves) > _FEW and not pieces:
        packed, unpack = _pack(leaves)
        if len(packed) < len(leaves):
            args = (shape_scale, std_scale, step, min_count)
            new, info = _reshape(packed, *args, method=method, whole=whole, pieces=True)
            return unpack(new), info
    n = trees.size(leaves)
    unit = max((n - 1).bit_length() - _COUNT_BITS, 0)  # log2 of the unit that ranks are counted in

    # One bin a level: the kept range, from -reach to reach. Levels are counted from -_REACH on.
    counts = _float_counts(_histograms(leaves, step, None, jnp.int32(_REACH), whole))
    levels = jnp.arange(-_REACH, _REACH + 1, dtype=jnp.int32)
    rare = (counts > 0) & (counts <= min_count) & (levels > 0)
    cut = rare.any()
    lowest = jnp.argmax(counts > 0).astype(jnp.int32) - _REACH
    highest = _REACH - jnp.argmax(counts[::-1] > 0).astype(jnp.int32)
    farthest = jnp.where(counts.any(), jnp.maximum(highest, -lowest), 0)
    edge = jnp.where(cut, jnp.argmax(rare).astype(jnp.int32) - _REACH, farthest)
    mean = _moments(jnp.where(jnp.abs(levels) <= edge, counts, 0), levels.astype(jnp.float32))[2]
    reach = jnp.where(cut, jnp.minimum(edge + jnp.abs(mean).astype(jnp.int32) + 1, _REACH), farthest)

    # As many bins a level as fit: the fit, and the rank at every bin's edge.
    per_level = jnp.int32(_BINS) // (2 * reach + 1)
    per_level = per_level - 1 + per_level % 2  # odd: a bin in the middle of every level
    fine = _histograms(leaves, step, per_level, reach, whole)
    counts = _float_counts(fine)
    bins = jnp.arange(_BINS, dtype=jnp.int32)
    level = bins // per_level - reach
    part = bins % per_level - per_level // 2
    centre = level.astype(jnp.float32) + part.astype(jnp.float32) / per_level.astype(jnp.float32)
    fitted = ~cut | (jnp.abs(centre) <= edge.astype(jnp.float32))
    first, second, mean, number = _moments(jnp.where(fitted, counts, 0), centre)
    mu = jnp.trunc(mean).astype(jnp.int32)
    law = _law_of(first, second, number, leaves)
    # Where nothing is cut, the levels lie in [-reach, reach] and mu between them.
    max_level = jnp.where(cut, edge, jnp.minimum(jnp.maximum(highest - mu, mu - lowest), _REACH))
    max_level = jnp.where(counts.any(), max_level, 0)
    kept = jnp.abs(level - mu) <= max_level
    ranks = _ranks([jnp.where(kept, c, 0) for c in fine], unit)
    nu, scale = law.nu.astype(jnp.float32), law.scale.astype(jnp.float32)
    ends = _target_ends(ranks[-1], nu * shape_scale, scale * std_scale, max_level)
    end = (mu + max_level + 1).astype(jnp.float32)
    positions = mu.astype(jnp.float32) + _positions(ranks, ends, max_level)
    positions = jnp.minimum(positions, jnp.nextafter(end, jnp.zeros_like(end) - jnp.inf))

    low, high = jnp.maximum(mu - max_level, -reach), jnp.minimum(mu + max_level, reach)

    if method == "histogram":
        table = (positions, step, per_level, reach, low, high)
        place = _place_in_pieces if pieces else _place
        new = [mesh.elementwise(place, x, *table) for x in leaves]
    else:
        new = _place_by_rank(leaves, step, low, high, mu, ends)

    after = jnp.floor(0.5 * (positions[:-1] + positions[1:])).astype(jnp.int32)
    after = jnp.where(kept, after, level)
    moved = jnp.sum(jnp.where(after != level, counts, 0)) / float(max(n, 1))
    first, second, _, number = _moments(jnp.where(kept, counts, 0), after.astype(jnp.float32))
    after = _law_of(first, second, number, leaves)
    width = step.astype(law.nu.dtype)
    before, after = (
        f._replace(scale=f.scale * width, loc=mu.astype(width.dtype) * width) for f in (law, after)
    )
    return new, DeepShapeInfo(before, after, max_level, moved)


def _pack(leaves: list[jax.Array]) -> tuple[list[jax.Array], Callable[[list[jax.Array]], list[jax.Array]]]:
    """Small leaves one after another in a few vectors, and the function that cuts results like these up again.

    A program for each of thousands of leaves would take minutes to compile.
    """
    groups: list[list[int]] = []
    open_group: dict[Any, int] = {}
    for i, x in enumerate(leaves):
        small = x.size < _SMALL
        g = open_group.get(x.dtype) if small else None
        if g is None or len(groups[g]) == _PACK:
            g = len(groups)
            groups.append([])
            if small:
                open_group[x.dtype] = g
        groups[g].append(i)
    packed = [leaves[g[0]] if len(g) == 1 else jnp.concatenate([leaves[i].ravel() for i in g]) for g in groups]

    def unpack(new: list[jax.Array]) -> list[jax.Array]:
        out = list(leaves)
        for g, x in zip(groups, new, strict=True):
            start = 0
            for i in g:
                size = leaves[i].size
                out[i] = x if len(g) == 1 else x[start : start + size].reshape(leaves[i].shape)
                start += size
        return out

    return packed, unpack


def _level(x: jax.Array, step: jax.Array) -> jax.Array:
    """The level of x, a whole number in float32 (float64 for float64 weights)."""
    t = trees.wide(x)
    return jnp.round(t / step.astype(t.dtype))


def _bin(x: jax.Array, step: jax.Array, per_level: jax.Array, reach: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bin of x, and where in it x lies, 0 to 1 (any number for an x out of reach). Monotone in x."""
    t = trees.wide(x)
    z = (t / step.astype(t.dtype) + (reach.astype(t.dtype) + 0.5)) * per_level.astype(t.dtype)
    i = jnp.clip(z.astype(jnp.int32), 0, _BINS - 1)
    return i, z - i.astype(z.dtype)


def _within(q: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    return (q >= low.astype(q.dtype)) & (q <= high.astype(q.dtype))


def _place(
    x: jax.Array,
    positions: jax.Array,
    step: jax.Array,
    per_level: jax.Array,
    reach: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> jax.Array:
    """Levels low to high go between the positions of their bin's edges, linearly; the others are rounded."""
    q = _level(x, step)
    i, u = _bin(x, step, per_level, reach)
    ends = (positions.at[i + k].get(mode="promise_in_bounds", wrap_negative_indices=False) for k in (0, 1))
    left, right = (p.astype(u.dtype) for p in ends)
    new = jnp.floor(jnp.minimum(left + u * (right - left), right))
    return _value(x, jnp.where(_within(q, low, high), new, q), step)


def _place_in_pieces(x: jax.Array, *table: jax.Array) -> jax.Array:
    """``_place`` in a loop: XLA would else compute it anew, in a program of its own, for each slice of x."""

    def place(flat: jax.Array, cut: _Cut, new: jax.Array) -> jax.Array:
        old = cut(flat)
        return cut(flat, jnp.where(new, _place(old, *table), old))

    return _in_pieces(x.size, x.ravel(), place).reshape(x.shape)


def _value(x: jax.Array, q: jax.Array, step: jax.Array) -> jax.Array:
    """The multiple q of step, like x: the weight itself where its level is beyond the digits of a float."""
    digits = jnp.finfo(q.dtype).nmant + 1
    value = jnp.where(jnp.abs(q) < 2.0**digits, q * step.astype(q.dtype), trees.wide(x))
    return value.astype(x.dtype)


def _histograms(
    leaves: list[jax.Array], step: jax.Array, per_level: jax.Array | None, reach: jax.Array, whole: bool
) -> list[jax.Array]:
    """Counts of the bins from -reach to reach, as int32 arrays to be added up: one per 2^31 weights.

    per_level is the number of bins a level, or None for one.
    """
    args = (step, reach) if per_level is None else (step, reach, per_level)

    def add(
        counts: jax.Array,
        x: jax.Array,
        new: jax.Array | bool,
        step: jax.Array,
        reach: jax.Array,
        per_level: jax.Array | None = None,
    ) -> jax.Array:
        q = _level(x, step)
        # One bin a level: the levels as they are rounded. The sum in _bin may shift a weight halfway between.
        i = q.astype(jnp.int32) + _REACH if per_level is None else _bin(x, step, per_level, reach)[0]
        i = jnp.where(_within(q, -reach, reach) & new, i, _BINS)
        return counts.at[i].add(1, mode="promise_in_bounds", wrap_negative_indices=False)

    def fresh(x: jax.Array, *args: jax.Array) -> jax.Array:
        return add(jnp.zeros(_BINS + 1, jnp.int32), x, True, *args)

    empty = jnp.zeros(_BINS + 1, jnp.int32)  # the last one for weights out of reach
    parts = []
    for group in _groups(leaves):
        counts = empty
        for x in group:
            if mesh.explicit_sharding(x) is not None:
                counts = counts + mesh.reduce(fresh, x, *args)
            elif whole and x.size > _CHUNK:
                # In pieces that stay in a cache: several times faster, and in little memory.
                flat = x.ravel()
                counts = _in_pieces(x.size, counts, lambda c, cut, new, v=flat: add(c, cut(v), new, *args))
            else:
                counts = add(counts, x, True, *args)
        parts.append(counts[:_BINS])
    return parts


def _in_pieces(
    size: int, carry: jax.Array, body: Callable[[jax.Array, _Cut, jax.Array], jax.Array]
) -> jax.Array:
    """A loop over pieces of a vector of so many elements.

    ``body(carry, cut, new)`` gives the next carry: ``cut(v)`` is the piece of v, ``cut(v, piece)`` is v with
    that piece instead, ``new`` tells which of its elements were not in the piece before, as the last one
    overlaps it.
    """
    piece = max(min(max(_CHUNK, size // 1024), size // 2), 1)

    def step(i: jax.Array, carry: jax.Array) -> jax.Array:
        start = jnp.minimum(i * piece, size - piece)

        def cut(v: jax.Array, new: jax.Array | None = None) -> jax.Array:
            if new is None:
                return lax.dynamic_slice_in_dim(v, start, piece)
            return lax.dynamic_update_slice_in_dim(v, new, start, 0)

        return body(carry, cut, start + jnp.arange(piece, dtype=jnp.int32) >= i * piece)

    return lax.fori_loop(0, -(-size // piece), step, carry) if size else carry


def _groups(leaves: list[jax.Array]) -> Iterator[list[jax.Array]]:
    """The leaves in runs whose counts fit into int32 (as does a larger leaf's, unless it is all equal)."""
    group: list[jax.Array] = []
    for x in leaves:
        if group and trees.size([*group, x]) >= 1 << _COUNT_BITS:
            yield group
            group = []
        group.append(x)
    if group:
        yield group


def _float_counts(parts: list[jax.Array]) -> jax.Array:
    """Counts in float32: exact up to 2^24."""
    return sum((c.astype(jnp.float32) for c in parts[1:]), parts[0].astype(jnp.float32))


def _moments(counts: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(sum |x|, sum x^2, mean of x, number) of a histogram; mean 0 of an empty one."""
    number = counts.sum()
    mean = jnp.sum(counts * x) / jnp.maximum(number, 1)
    return jnp.sum(counts * jnp.abs(x)), jnp.sum(counts * x * x), mean, number


def _law_of(first: jax.Array, second: jax.Array, number: jax.Array, leaves: list[jax.Array]) -> gennorm.Fit:
    """The law of these moments, in the dtype that ``gennorm.fit`` gives for the leaves."""
    dtype = trees.wide_dtype(*(x.dtype for x in leaves))
    return _fit.from_moments(first.astype(dtype), second.astype(dtype), number.astype(dtype))


def _ranks(parts: list[jax.Array], unit: int) -> jax.Array:
    """How many weights lie below every edge of the bins, in units of 2^unit, rounded down: exact integers."""
    high = sum((c >> unit for c in parts[1:]), parts[0] >> unit)
    ranks = _cumulate(high)
    if unit:
        rest = (1 << unit) - 1
        ranks = ranks + (_cumulate(sum((c & rest for c in parts[1:]), parts[0] & rest)) >> unit)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), ranks])


def _cumulate(x: jax.Array) -> jax.Array:
    """Cumulated sum by plain additions in order, in rows: quick to compile, and rising also in floats."""
    rows = jnp.pad(x, (0, -x.size % 512)).reshape(512, -1)
    sums, inner = lax.scan(lambda c, v: (c + v, c + v), jnp.zeros(512, x.dtype), rows.T)
    _, before = lax.scan(lambda c, v: (c + v, c), jnp.zeros((), x.dtype), sums)
    return (inner.T + before[:, None]).ravel()[: x.size]


def _target_ends(number: jax.Array, nu: jax.Array, scale: jax.Array, max_level: jax.Array) -> jax.Array:
    """The rank at which each level of the target ends, levels from -_REACH to _REACH, int32.

    The discrete law is symmetric: its tail is summed from the outside in, to keep small ranks accurate.
    """
    distance = jnp.arange(_REACH, -1, -1, dtype=jnp.int32)
    z = distance.astype(jnp.float32) / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
    density = jnp.where(distance <= max_level, jnp.exp(-(z**nu)), 0)
    tail = _cumulate(density)[:-1]  # levels -_REACH to -1
    total = 2 * tail[-1] + density[-1]
    left = jnp.round(number.astype(jnp.float32) * (tail / total)).astype(jnp.int32)
    left = jnp.clip(left, 0, number // 2)
    return jnp.concatenate([left, number - left[::-1], number[None]])


def _positions(ranks: jax.Array, ends: jax.Array, max_level: jax.Array) -> jax.Array:
    """Where each rank falls on the target: its level, counted from the centre, plus the part of it used up."""
    i = jnp.searchsorted(ends, ranks, side="right").astype(jnp.int32)
    i = jnp.clip(i, _REACH - max_level, _REACH + max_level)
    start = jnp.where(i > 0, ends[i - 1], 0)
    used = (ranks - start).astype(jnp.float32) / jnp.maximum(ends[i] - start, 1).astype(jnp.float32)
    return (i - _REACH).astype(jnp.float32) + jnp.clip(used, 0, 1)


def _place_by_rank(
    leaves: list[jax.Array], step: jax.Array, low: jax.Array, high: jax.Array, mu: jax.Array, ends: jax.Array
) -> list[jax.Array]:
    """The weights of levels low to high, sorted (equal ones in tree order), fill the target's levels."""
    n = trees.size(leaves)
    if n >= 1 << _COUNT_BITS:
        raise ValueError(f'method="rank" sorts fewer than 2^31 weights, got {n}: use method="histogram"')
    dtype = trees.wide_dtype(*(x.dtype for x in leaves))
    flat = jnp.concatenate([x.ravel().astype(dtype) for x in leaves])
    q = jnp.concatenate([_level(x, step).ravel().astype(dtype) for x in leaves])
    kept = _within(q, low, high)
    # An integer key in the order of the values (XLA's sort of floats is ten times slower on a CPU).
    integer = jnp.int64 if dtype == jnp.float64 else jnp.int32
    bits = lax.bitcast_convert_type(jnp.where(flat == 0, 0, flat), integer)
    key = bits ^ ((bits >> (8 * dtype(0).itemsize - 1)) & jnp.iinfo(integer).max)
    key = jnp.where(kept, key, jnp.iinfo(integer).max)
    order = lax.sort((key, jnp.arange(n, dtype=jnp.int32)), num_keys=1, is_stable=True)[1]
    level = jnp.searchsorted(ends, jnp.arange(n, dtype=jnp.int32), side="right") - _REACH
    level = mu.astype(dtype) + level.astype(dtype)
    new = jnp.where(kept, jnp.zeros(n, dtype).at[order].set(level, unique_indices=True), q)
    out, start = [], 0
    for x in leaves:
        q_x = new[start : start + x.size].reshape(x.shape).astype(trees.wide_dtype(x.dtype))
        out.append(_value(x, q_x, step))
        start += x.size
    return out
