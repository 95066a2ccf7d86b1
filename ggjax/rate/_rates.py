"""Rates: how many bits a parameter takes once its tree is rounded to a grid, by several codes.

Every weight becomes an integer *level* q = round(theta / step), halves to even. All rates are in bits per
parameter and depend on the levels through their histogram only. They are never below the entropy of the
levels, apart from the closed form of the fitted law, which is an approximation for small steps.

The codes (``CODES``):

- "entropy": the empirical order-0 entropy of the levels, what a perfect code of single levels takes.
- "fixed": ceil(log2(max - min + 1)), the fixed-length code of the range in use.
- "exp_golomb": exponential Golomb code of order 0; the levels 0, 1, -1, 2, -2, ... are numbered k = 0, 1, ...
  and take 2 floor(log2(k + 1)) + 1 bits.
- "exp_golomb_rank": the same code of the level's rank by frequency (0 the most frequent), as in Algorithm 2 of
  arXiv 2504.16968. The table that turns ranks into levels is counted too: how many levels are in use, in
  unsigned exp-Golomb, then those levels by rank, each in signed exp-Golomb.
- "huffman": the mean length of an optimal prefix code, without its table (a file needs the length of every
  level's code word besides). Levels that are all alike take 0 bits.
- "gg": the cross-entropy of the levels under the generalized Gaussian law fitted by moments about 0
  (``gennorm.fit``) and integrated over each level's bin; its table is two numbers, not counted.
- "gg_closed_form": the entropy of that law in bits minus log2(step), with no look at the levels. Good once the
  step is well below the law's scale; it turns negative at large steps and is -inf for all-zero weights.

On sharded arrays only ranges, moments and histograms travel between devices, not parameters.
"""

import functools
import heapq
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammainc, gammaln
from jax.typing import ArrayLike

from ggjax import gennorm
from ggjax._internal import mesh, trees
from ggjax.gennorm import _fit

Code = Literal["entropy", "fixed", "exp_golomb", "exp_golomb_rank", "huffman", "gg", "gg_closed_form"]
CODES: tuple[Code, ...] = get_args(Code)

TRACED_LEVELS = 1 << 17
"""How many levels, from the smallest to the largest in use, a histogram under jit has room for."""

_TABLE_LEVELS = 1 << 22
"""The widest range counted on the device outside jit; beyond it the levels are sorted on the host."""


class Row(NamedTuple):
    """The rates of one leaf, or of the whole tree."""

    name: str
    size: int  # parameters
    nu: float  # shape of the fitted law
    std: float  # standard deviation of the weights, in their units
    levels: int  # distinct levels in use
    bits: dict[str, float]  # bits per parameter, by code


class Report(NamedTuple):
    """Rates of every leaf and of the whole tree; ``str()`` of it is an aligned table.

    A leaf's row is coded for itself (its own range, histogram and law), the total with one code for all.
    """

    step: float
    rows: tuple[Row, ...]
    total: Row

    def nbytes(self, code: str) -> float:
        """Bytes that the whole tree takes with this code (the total row's)."""
        return self.total.bits[code] * self.total.size / 8

    def __str__(self) -> str:
        codes = list(self.total.bits)
        table = [["leaf", "size", "nu", "std", "levels", *codes]]
        for r in (*self.rows, self.total):
            bits = [f"{r.bits[c]:.3f}" for c in codes]
            table.append([r.name, f"{r.size:,}", f"{r.nu:.2f}", f"{r.std:.3g}", f"{r.levels:,}", *bits])
        blank = [""] * 4
        table.append(["bytes of the total", *blank, *(f"{self.nbytes(c):,.0f}" for c in codes)])
        for name, width in (("float32", 32), ("bfloat16", 16)):
            ratios = [f"{width / b:.2f}x" if (b := self.total.bits[c]) > 0 else "-" for c in codes]
            table.append([f"smaller than {name}", *blank, *ratios])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table
        ]
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        head, body, total, foot = lines[0], lines[1:-4], lines[-4], lines[-3:]
        title = f"bits per parameter at step {self.step:.6g}"
        return "\n".join([title, head, rule, *body, rule, total, *foot])


def bits(params: Any, step: ArrayLike, *, code: Code = "entropy", mask: trees.Mask = None) -> jax.Array:
    """Bits per parameter of the levels round(theta / step), one code for the whole tree.

    Works outside jit for any range of levels. Under jit, where the table has to be of a fixed size, the codes
    that need the histogram give NaN when the levels span more than ``TRACED_LEVELS`` ("fixed" and
    "gg_closed_form" do not need it). Weights that are NaN or infinite, levels beyond int32 and a step that
    is not positive give NaN under jit, and errors outside.

    Args:
      params: a tree of arrays; floating leaves count, in any floating dtype. Levels are computed in float32
        (float64 for float64 leaves).
      step: distance between levels, in the units of the weights, a positive number; may be traced.
      code: one of ``CODES``, described at the head of this module. "huffman" runs on the host only.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.

    Returns:
      A float32 scalar; 0 when there are no weights.

    Raises:
      ValueError: an unknown code, a step that is not positive, "huffman" under jit, no floating leaf, a mask
        that does not fit, a NaN or infinite weight, or a level beyond int32.

    >>> w = jnp.array([0.0, 0.0, 0.5, -0.5])
    >>> float(bits({"w": w}, 0.5)), float(bits({"w": w}, 0.5, code="fixed"))
    (1.5, 2.0)
    """
    _check_code(code)
    flat = trees.flatten(params, mask)
    leaves = flat.weights()
    _check_step(step)
    if not trees.is_concrete(step, *leaves):
        if code == "huffman":
            raise ValueError(
                'code "huffman" is built on the host and cannot run under jit: call it outside, '
                'or take "entropy", which is less than one bit below it'
            )
        return _traced_bits(leaves, step, code)
    step = float(np.asarray(step))
    total = _merge(_count(flat.weight_names(), leaves, step))
    return jnp.asarray(_rates(total, step, (code,))[code], jnp.float32)


def report(params: Any, step: ArrayLike, *, codes: Sequence[Code] = CODES, mask: trees.Mask = None) -> Report:
    """Rates of every selected leaf and of the whole tree, by several codes.

    Args:
      params, step, mask: as in ``bits``, but not traced.
      codes: which codes to work out, in the order of the columns.

    Returns:
      A ``Report(step, rows, total)`` of Python numbers; ``print`` shows it as a table.

    Raises:
      ValueError: as in ``bits``, or traced values.

    >>> import jax
    >>> w = gennorm.sample(jax.random.key(0), 1.0, (1000,))
    >>> r = report({"w": w}, 0.1, codes=["entropy", "huffman"])
    >>> [row.name for row in r.rows], r.total.bits["entropy"] <= r.total.bits["huffman"]
    (['w'], True)
    """
    for code in codes:
        _check_code(code)
    flat = trees.flatten(params, mask)
    _check_step(step)
    if not trees.is_concrete(step, *flat.weights()):
        raise ValueError("rate.report needs concrete weights and a concrete step: call it outside jit")
    names = flat.weight_names()
    step = float(np.asarray(step))
    counted = _count(names, flat.weights(), step)
    rows = [_row(name, c, step, tuple(codes)) for name, c in zip(names, counted, strict=True)]
    return Report(step, tuple(rows), _row("total", _merge(counted), step, tuple(codes)))


def _check_code(code: Any) -> None:
    if code not in CODES:
        raise ValueError(f"code must be one of {', '.join(CODES)}; got {code!r}")


def _check_step(step: Any) -> None:
    trees.check_positive("step", step)
    if np.shape(step) != ():
        raise ValueError(f"step must be one number, got an array of shape {np.shape(step)}")


# Counting, outside jit: the range of every leaf is looked at, then its histogram has just that width.


class _Stats(NamedTuple):
    """What is summed up about the weights of one leaf, six scalars."""

    low: Any  # the smallest level, a float: NaN when any weight is
    high: Any
    first: Any  # sum |x|
    second: Any  # sum x^2
    mean: Any
    spread: Any  # sum (x - mean)^2


class _Counted(NamedTuple):
    """The levels of one leaf or tree in rising order with their counts, and moments of the weights."""

    levels: np.ndarray  # (k,) int64
    counts: np.ndarray  # (k,) int64, positive
    size: int
    stats: _Stats


def _count(names: list[str], leaves: list[Any], step: float) -> list[_Counted]:
    stats = jax.device_get([_leaf_stats(x, step) for x in leaves])
    if not all(np.isfinite(s.low) and np.isfinite(s.high) for s in stats):
        trees.check_finite(names, leaves)
    counted = []
    for name, x, s in zip(names, leaves, stats, strict=True):
        if not (s.low > -(2.0**31) and s.high < 2.0**31):
            raise ValueError(
                f"leaf {name!r}: levels run from {s.low:.4g} to {s.high:.4g} at step {step:.4g}, "
                "expected levels between -2^31 and 2^31: take a larger step"
            )
        s = _Stats(*map(float, s))
        counted.append(_Counted(*_leaf_levels(x, step, int(s.low), int(s.high)), trees.size([x]), s))
    return counted


def _leaf_levels(x: Any, step: float, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """The levels of a leaf in rising order and their counts, by a table or, for a wide range, by sorting."""
    if not x.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    width = high - low + 1
    if width > _TABLE_LEVELS:
        levels, counts = np.unique(np.asarray(_levels(x, step)), return_counts=True)
        return levels.astype(np.int64), counts
    counts = _whole(np.asarray(_histogram(x, step, low, _empty(_room(width)))))
    used = np.flatnonzero(counts)
    return used + low, counts[used]


def _room(width: int) -> int:
    """A table size with room for this many levels: a power of 4, so that few programs are compiled."""
    return 4 ** max(5, (width - 1).bit_length() // 2 + (width - 1).bit_length() % 2)


def _merge(parts: list[_Counted]) -> _Counted:
    """The counts and moments of all leaves together."""
    empty = np.zeros(0, np.int64)
    levels, where = np.unique(np.concatenate([empty, *(p.levels for p in parts)]), return_inverse=True)
    counts = np.zeros(len(levels), np.int64)
    np.add.at(counts, where, np.concatenate([empty, *(p.counts for p in parts)]))
    size = sum(p.size for p in parts)
    mean = sum(p.stats.mean * p.size for p in parts) / max(size, 1)
    spread = sum(p.stats.spread + p.size * (p.stats.mean - mean) ** 2 for p in parts)
    first, second = sum(p.stats.first for p in parts), sum(p.stats.second for p in parts)
    low, high = (levels[0], levels[-1]) if len(levels) else (0, 0)
    return _Counted(levels, counts, size, _Stats(low, high, first, second, mean, spread))


def _row(name: str, counted: _Counted, step: float, codes: tuple[Code, ...]) -> Row:
    rates = jax.device_get(_rates(counted, step, codes))
    std = (counted.stats.spread / max(counted.size, 1)) ** 0.5
    nu = float(_law_of(counted.stats.first, counted.stats.second, float(counted.size)).nu)
    return Row(name, counted.size, nu, std, len(counted.levels), {c: float(rates[c]) for c in codes})


def _rates(counted: _Counted, step: float, codes: tuple[Code, ...]) -> dict[str, Any]:
    """The rates of concrete counts: "huffman" here, the others by the same program that runs under jit."""
    if not counted.size:
        return dict.fromkeys(codes, 0.0)
    pad = (0, _room(max(len(counted.levels), 1)) - len(counted.levels))
    law = _law_of(counted.stats.first, counted.stats.second, float(counted.size))
    device = tuple(c for c in codes if c != "huffman")
    rates: dict[str, Any] = _measure(
        np.pad(counted.levels, pad).astype(np.int32),
        np.pad(counted.counts, pad).astype(np.float32),
        int(counted.stats.low),
        int(counted.stats.high),
        float(counted.size),
        law,
        step,
        codes=device,
    )
    if "huffman" in codes:
        rates["huffman"] = _huffman(counted.counts.tolist()) / max(counted.size, 1)
    return rates


def _huffman(counts: list[int]) -> int:
    """The length in bits of all levels together in an optimal prefix code: every merge adds its weight."""
    heapq.heapify(counts)
    length = 0
    while len(counts) > 1:
        pair = heapq.heappop(counts) + counts[0]
        heapq.heapreplace(counts, pair)
        length += pair
    return length


# On the device.


@functools.partial(jax.jit, static_argnames="code")
def _traced_bits(leaves: list[Any], step: Any, code: Code) -> jax.Array:
    some = [x for x in leaves if np.size(x)]
    if not some:
        return jnp.zeros((), jnp.float32)
    ends = [e for x in some for e in _ends(trees.wide(x), step)]
    # A sort (NaN last), since XLA would work out a minimum of minima anew for every leaf's histogram.
    ends = jnp.sort(jnp.stack([e.astype(jnp.float32) for e in ends]))
    low, high = ends[0], ends[-1]
    valid = (low > -(2.0**31)) & (high < 2.0**31) & (jnp.asarray(step) > 0)
    low, high = (jnp.where(valid, e, 0).astype(jnp.int32) for e in (low, high))
    levels, counts = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.float32)
    if code not in ("fixed", "gg_closed_form"):
        valid &= _span(low, high) < TRACED_LEVELS
        table = _empty(TRACED_LEVELS)
        for x in some:
            table = _histogram(x, step, low, table)
        counts = _float(table)
        levels = low + jnp.arange(TRACED_LEVELS, dtype=jnp.int32)
    law = _fit.fit_leaves(some)
    n = float(trees.size(some))
    rate = _measure(levels, counts, low, high, n, law, step, codes=(code,))[code]
    return jnp.where(valid, rate, jnp.nan)


@jax.jit
def _leaf_stats(x: Any, step: Any) -> _Stats:
    x = trees.wide(x)
    if not x.size:
        return _Stats(*[jnp.zeros((), x.dtype)] * 6)
    first, second = _fit.abs_moments([x])
    mean = jnp.mean(x)
    return _Stats(*_ends(x, step), first, second, mean, jnp.sum((x - mean) ** 2))


@jax.jit
def _law_of(first: Any, second: Any, n: Any) -> gennorm.Fit:
    return _fit.from_moments(*(jnp.asarray(v, float) for v in (first, second, n)))


def _levels(x: Any, step: Any) -> jax.Array:
    x = trees.wide(x)
    return jnp.round(x / jnp.asarray(step).astype(x.dtype)).astype(jnp.int32)


def _ends(x: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest level, as floats: rounding and dividing keep the order."""
    step = jnp.asarray(step).astype(x.dtype)
    return jnp.round(jnp.min(x) / step), jnp.round(jnp.max(x) / step)


def _span(low: jax.Array, high: jax.Array) -> jax.Array:
    """high - low as uint32, which cannot overflow."""
    return high.astype(jnp.uint32) - low.astype(jnp.uint32)


@jax.jit
def _histogram(x: Any, step: Any, low: Any, total: jax.Array) -> jax.Array:
    """Add the counts of the levels low, low + 1, ... to a table: (2, size) uint32, the low and the high words.

    A large leaf is counted in up to 16 parts, which are cut along its longest axis so that they stay sharded
    as the leaf is; counting at once would take twice the leaf's memory.
    """
    x = jnp.asarray(x)
    axis = int(np.argmax(x.shape)) if x.ndim else 0
    parts = int(np.gcd(16, x.shape[axis])) if x.size >= 1 << 20 else 1

    def add(x: jax.Array, step: jax.Array, low: jax.Array, total: jax.Array) -> jax.Array:
        words = total[0].at[_levels(x, step) - low].add(1, mode="drop")
        carry = (words < total[0]).astype(jnp.uint32)
        return jnp.stack([words, total[1] + carry])

    def add_parts(x: jax.Array, step: jax.Array, low: jax.Array, total: jax.Array) -> jax.Array:
        cut = x.reshape(*x.shape[:axis], -1, parts, *x.shape[axis + 1 :])

        def part(i: Any, total: jax.Array) -> jax.Array:
            return add(lax.dynamic_index_in_dim(cut, i, axis + 1, keepdims=False), step, low, total)

        return lax.fori_loop(0, parts, part, total)

    f = add_parts if parts > 1 else add
    return mesh.reduce(f, x, jnp.asarray(step), jnp.asarray(low), total)


def _empty(size: int) -> jax.Array:
    return jnp.zeros((2, size), jnp.uint32)


def _whole(words: np.ndarray) -> np.ndarray:
    return words[0].astype(np.int64) + (words[1].astype(np.int64) << 32)


def _float(words: jax.Array) -> jax.Array:
    return words[0].astype(jnp.float32) + words[1].astype(jnp.float32) * 2.0**32


@functools.partial(jax.jit, static_argnames="codes")
def _measure(
    levels: jax.Array,
    counts: jax.Array,
    low: Any,
    high: Any,
    n: Any,
    law: gennorm.Fit,
    step: Any,
    *,
    codes: tuple[Code, ...],
) -> dict[str, jax.Array]:
    """Bits per parameter from levels and float32 counts (levels that do not occur have count 0)."""
    n = jnp.maximum(jnp.asarray(n, jnp.float32), 1)
    p = counts / n
    used = counts > 0
    step = jnp.asarray(step).astype(jnp.float32)
    nu, scale = (v.astype(jnp.float32) for v in (law.nu, law.scale))

    def mean(lengths: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.sum(jnp.where(used, p * lengths, 0)), 0)  # no -0, nor the sum's rounding below 0

    rates: dict[str, jax.Array] = {}
    for code in codes:
        if code == "entropy":
            rate = mean(-jnp.log2(jnp.where(used, p, 1)))
        elif code == "fixed":
            span = _span(jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32))
            rate = (32 - lax.clz(span)).astype(jnp.float32)
        elif code == "exp_golomb":
            rate = mean(_golomb(_number(levels)))
        elif code == "exp_golomb_rank":
            ranks = jnp.arange(len(counts), dtype=jnp.uint32)
            table = jnp.sum(jnp.where(used, _golomb(_number(levels)), 0))
            table = table + _golomb(jnp.sum(used, dtype=jnp.uint32))
            rate = (jnp.sum(-jnp.sort(-p) * _golomb(ranks))) + table / n
            rate = jnp.where(used.any(), rate, 0)
        elif code == "gg":
            rate = mean(_gg_lengths(levels, nu, scale, step))
        else:
            rate = (1 / nu - jnp.log(nu / (2 * scale)) + gammaln(1 / nu)) / np.log(2) - jnp.log2(step)
            rate = jnp.where(scale > 0, rate, -jnp.inf)
        rates[code] = rate
    return rates


def _number(levels: jax.Array) -> jax.Array:
    """The levels 0, 1, -1, 2, -2, ... as 0, 1, 2, 3, 4, ..."""
    return 2 * jnp.abs(levels).astype(jnp.uint32) - (levels > 0).astype(jnp.uint32)


def _golomb(k: jax.Array) -> jax.Array:
    """Bits of the exponential Golomb code, of order 0, of k = 0, 1, ..., 2^32 - 2."""
    return (63 - 2 * lax.clz(k + jnp.uint32(1)).astype(jnp.int32)).astype(jnp.float32)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)  # on (-1, 1)


def _gg_lengths(levels: jax.Array, nu: jax.Array, scale: jax.Array, step: jax.Array) -> jax.Array:
    """-log2 of the probability of each level: the mass of the law in (q - 1/2, q + 1/2) step.

    With t = (|x| / scale)^nu, the mass of a level other than 0 is the integral of t^(a - 1) exp(-t) / (2
    Gamma(a)), a = 1/nu, over t0 <= t <= t1. It is a difference of incomplete gamma functions, which cancel in
    float32 when the step is small and underflow in the tail; so it is written as t0^(a - 1) exp(-t0) times an
    integral that is close to 1, for Gaussian quadrature, and kept as a logarithm.
    """
    a = 1 / nu
    log_unit = jnp.log(step) - jnp.log(jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))
    zero = gammainc(a, jnp.exp(jnp.minimum(nu * (log_unit + np.log(0.5)), 80)))

    inner = jnp.maximum(jnp.abs(levels).astype(jnp.float32), 1) - 0.5
    log_t = jnp.clip(nu * (log_unit + jnp.log(inner)), -80, 80)
    t = jnp.exp(log_t)
    grow = jnp.expm1(nu * jnp.log1p(1 / inner))  # t1 / t0 - 1
    end = jnp.minimum(t * grow, 18.0)  # of t - t0; what lies beyond is below 1e-7 of the whole
    s = end[:, None] * jnp.asarray((1 + _NODES) / 2, jnp.float32)[None]
    values = jnp.exp((a - 1) * jnp.log1p(s / t[:, None]) - s)
    integral = end * jnp.sum(values * jnp.asarray(_WEIGHTS / 2, jnp.float32)[None], -1)
    log_mass = jnp.log(integral) + (a - 1) * log_t - t - gammaln(a) - np.log(2)
    return jnp.where(levels == 0, -jnp.log(zero), -log_mass) / np.log(2)
