"""Learned bit lengths: Quantum Mantissa, Quantum Exponent and BitPruning in one design."""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggjax._internal import trees
from ggjax._internal.gradients import straight_through
from ggjax.baselines._float_format import as_float, float_levels, format_bits
from ggjax.baselines._reparameterization import (
    Frozen,
    Mask,
    Reparameterization,
    beside,
    flatten,
    split,
    values_of,
)

Format = Literal["mantissa", "float", "uniform"]
Mixing = Literal["stochastic", "interpolate"]


class BitsLatent(NamedTuple):
    """What is trained: weights and the bit lengths of their leaves."""

    weights: Any  # tree like the parameters
    lengths: Any  # the same tree: float32 (k,), k lengths of each leaf; None for leaves that are not rounded


class _Grid(NamedTuple):
    """A format with adjustable bit lengths, of which there are k."""

    limits: Callable[[Any], tuple[np.ndarray, np.ndarray]]  # dtype -> the least and the most lengths, (k,)
    other_bits: Callable[[Any], int]  # dtype -> bits of a weight that are not adjustable
    values: Callable[[jax.Array, jax.Array], jax.Array]  # weights, whole lengths float32 (k,) -> float32
    levels: Callable[[jax.Array, jax.Array], jax.Array]  # the same -> int32
    side_bits: int  # of a leaf in a file


def learned_bits(
    format: Format,
    *,
    mixing: Mixing | None = None,
    start: float | tuple[float, ...] | None = None,
    share: Literal["elements", "tensors"] = "elements",
    mask: Mask = "kernels",
) -> Reparameterization:
    """Weights of few bits whose number is trained: a real bit length for every leaf.

    ``learned_bits("mantissa")`` is Quantum Mantissa, ``learned_bits("float")`` adds Quantum Exponent (both of
    arXiv 2204.13666), ``learned_bits("uniform")`` is BitPruning (arXiv 2002.03090). Of the papers:

    - "mantissa" keeps the top n bits of the mantissa; "float" also limits the exponent to e bits; "uniform"
      rounds to 2^n values, evenly from the smallest to the largest weight.
    - Between whole lengths, "stochastic" (for floats) takes floor(n) + 1 bits with probability n - floor(n)
      and floor(n) bits otherwise, one choice for a leaf and step; "interpolate" (for the uniform grid) takes
      the mean of both roundings with these weights. In both the gradient of a length is the sum of dL/dw
      times (rounding to floor(n) + 1 bits - rounding to floor(n) bits), and that of a weight passes through.
    - The loss is that of the task + gamma * rate, where the rate is the mean length, each leaf counting by its
      number of weights (``share="elements"``) or all alike ("tensors"). Add ``gamma * rate(latent)``.
    - In the end lengths are rounded up (``freeze``). To train on at whole lengths, take ``round_up`` and give
      the field ``lengths`` the transform ``optax.set_to_zero()``.

    Ours: the range of exponents (see ``round_floats``); lengths are clipped to their range (mantissa 0 to 23,
    or the dtype's; exponent 1 to 8; uniform 1 to 16) where they are used, and no gradient takes them out of it
    (momentum may carry those in the latent a little further), where the papers clip them after every update;
    with two lengths, each is chosen by itself; activations are not our concern.

    Args:
      format: "mantissa", "float" or "uniform".
      mixing: "stochastic" or "interpolate"; None for the paper's.
      start: first bit lengths, one number or (mantissa, exponent); None for all bits of the dtype, and 8 of the
        uniform grid.
      share: how leaves count in the rate.
      mask: the leaves to round: "kernels", a tree of bools, a prefix of one, or a function from params to one.

    Returns:
      A ``Reparameterization`` with latents ``BitsLatent``. ``apply`` without a key rounds lengths up where they
      are stochastic. The rate counts all bits of a weight, so sign and fixed exponent bits too. The levels of
      ``freeze`` are numbers of the grid from 0 up, with the sign of floats.

    Raises:
      ValueError: an unknown format, mixing or share, or a start out of range; by ``init``, no floating leaf, a
        mask that does not fit, or a NaN or infinite weight (where it is known).

    >>> method = learned_bits("uniform", start=3.5)
    >>> latent = method.init({"w": jnp.linspace(-1, 1, 8)[None]})
    >>> float(method.rate(latent)), int(method.freeze(latent).levels["w"].max())
    (3.5, 15)
    """
    if format not in get_args(Format):
        raise ValueError(f'format must be "mantissa", "float" or "uniform", got {format!r}')
    mixing = ("interpolate" if format == "uniform" else "stochastic") if mixing is None else mixing
    if mixing not in get_args(Mixing):
        raise ValueError(f'mixing must be "stochastic" or "interpolate", got {mixing!r}')
    if share not in ("elements", "tensors"):
        raise ValueError(f'share must be "elements" or "tensors", got {share!r}')
    grid = _GRIDS[format]
    _check_start(grid, start)

    def init(params: Any) -> BitsLatent:
        flat = flatten(params, mask)
        return BitsLatent(params, beside(flat, [_first(grid, x, start) for x in flat.weights()]))

    def pairs(latent: BitsLatent) -> tuple[trees.Flat, list[tuple[jax.Array, jax.Array]]]:
        """The leaves to round with their lengths, brought into range."""
        flat = flatten(latent.weights, mask)
        given = zip(flat.weights(), values_of(flat, latent.lengths), strict=True)
        return flat, [(jnp.asarray(x), within(n, *grid.limits(x.dtype))) for x, n in given]

    def apply(latent: BitsLatent, key: jax.Array | None = None) -> Any:
        flat, leaves = pairs(latent)
        mix = _interpolate if mixing == "interpolate" else _choose
        new = [mix(grid, x, n, k) for (x, n), k in zip(leaves, split(key, flat), strict=True)]
        return flat.replace(new)

    def rate(latent: BitsLatent, key: jax.Array | None = None) -> jax.Array:
        del key
        _, leaves = pairs(latent)
        # Floats: an integer beyond 2^31 is too large for an array's arithmetic.
        counts = [float(x.size) if share == "elements" else 1.0 for x, _ in leaves]
        lengths = [
            c * (grid.other_bits(x.dtype) + jnp.sum(n)) for c, (x, n) in zip(counts, leaves, strict=True)
        ]
        return sum(lengths, jnp.zeros((), jnp.float32)) / max(sum(counts), 1.0)

    def freeze(latent: BitsLatent) -> Frozen:
        flat, leaves = pairs(latent)
        whole = [(x, jnp.ceil(n)) for x, n in leaves]
        weights = flat.replace(grid.values(x, n).astype(x.dtype) for x, n in whole)
        levels = beside(flat, [grid.levels(x, n) for x, n in whole])
        return Frozen(weights, levels, grid.side_bits * len(leaves))

    return Reparameterization(init, apply, rate, freeze)


def round_up(latent: BitsLatent) -> BitsLatent:
    """The latent with whole bit lengths, rounded up: for the last part of a training, at fixed lengths.

    >>> round_up(BitsLatent(jnp.ones(2), jnp.array([2.25]))).lengths.tolist()
    [3.0]
    """
    return latent._replace(lengths=jax.tree.map(lambda n: jnp.ceil(jnp.maximum(n, 0)), latent.lengths))


@jax.custom_vjp
def within(n: jax.Array, low: np.ndarray, high: np.ndarray) -> jax.Array:
    """n, clipped. At a bound only a gradient whose descent leads inwards passes."""
    return jnp.clip(n, low, high)


def _within_forward(n: jax.Array, low: np.ndarray, high: np.ndarray) -> Any:
    return within(n, low, high), (n, low, high)


def _within_backward(kept: Any, g: jax.Array) -> Any:
    n, low, high = kept
    outwards = ((n >= high) & (g < 0)) | ((n <= low) & (g > 0))
    return jnp.where(outwards, 0, g), None, None


within.defvjp(_within_forward, _within_backward)


def _choose(grid: _Grid, x: jax.Array, n: jax.Array, key: jax.Array | None) -> jax.Array:
    """Rounding to whole lengths that are chosen at random, n on average."""
    known = lax.stop_gradient(n)
    low = jnp.floor(known)
    up = jnp.ceil(known) > low if key is None else jax.random.uniform(key, n.shape, jnp.float32) < known - low
    chosen = low + up.astype(low.dtype)
    y = straight_through(grid.values(x, chosen), x.astype(jnp.float32))
    most = jnp.asarray(grid.limits(x.dtype)[1])
    for j in range(len(n)):
        above, below = (grid.values(x, chosen.at[j].set(v)) for v in (jnp.minimum(low + 1, most)[j], low[j]))
        y = y + (n - known)[j] * lax.stop_gradient(above - below)  # adds 0, with the gradient of the length
    return y.astype(x.dtype)


def _interpolate(grid: _Grid, x: jax.Array, n: jax.Array, key: jax.Array | None) -> jax.Array:
    """The mean of the roundings to the whole lengths around n, weighted by their nearness to n."""
    del key
    low = jnp.floor(lax.stop_gradient(n))
    most = jnp.asarray(grid.limits(x.dtype)[1])
    part = n - low
    y = jnp.zeros(x.shape, jnp.float32)
    for corner in itertools.product((0.0, 1.0), repeat=len(n)):
        up = jnp.asarray(corner, jnp.float32)
        weight = jnp.prod(jnp.where(up > 0, part, 1 - part))
        y = y + weight * lax.stop_gradient(grid.values(x, jnp.minimum(low + up, most)))
    return (y + (x - lax.stop_gradient(x)).astype(jnp.float32)).astype(x.dtype)


def _first(grid: _Grid, x: Any, start: Any) -> jax.Array:
    least, most = grid.limits(x.dtype)
    if start is None:
        return jnp.asarray(np.full(1, 8, np.float32) if grid is _GRIDS["uniform"] else most)
    return jnp.clip(jnp.broadcast_to(jnp.asarray(start, jnp.float32), least.shape), least, most)


def _check_start(grid: _Grid, start: Any) -> None:
    if start is None:
        return
    trees.check_not_negative("start", start)
    least, most = grid.limits(np.float32)
    if np.ndim(start) and np.shape(start) != least.shape:
        raise ValueError(f"start must be one number or {len(least)}, got {start!r}")
    if trees.is_concrete(start) and not np.all((least <= np.asarray(start)) & (np.asarray(start) <= most)):
        raise ValueError(f"start must lie between {least.tolist()} and {most.tolist()} bits, got {start!r}")


def _int(n: jax.Array) -> jax.Array:
    return n.astype(jnp.int32)


def _span(x: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The smallest weight, the distance of values (1 if all weights are alike), and the levels as floats."""
    x = lax.stop_gradient(x).astype(jnp.float32)
    if not x.size:
        return jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32), x
    low, high = jnp.min(x), jnp.max(x)
    step = (high - low) / (jnp.exp2(n[0]) - 1)
    step = jnp.where(step > 0, step, 1)
    return low, step, jnp.round((x - low) / step)


def _uniform_values(x: jax.Array, n: jax.Array) -> jax.Array:
    low, step, levels = _span(x, n)
    return low + step * levels


def _array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


_GRIDS: dict[str, _Grid] = {
    "mantissa": _Grid(
        lambda dtype: (_array(0), _array(format_bits(dtype)[0])),
        lambda dtype: 1 + format_bits(dtype)[1],
        lambda x, n: as_float(x, _int(n[0]), jnp.asarray(8, jnp.int32)),
        lambda x, n: float_levels(x, _int(n[0]), jnp.asarray(8, jnp.int32)),
        side_bits=16,  # length and largest exponent, a byte each
    ),
    "float": _Grid(
        lambda dtype: (_array(0, 1), _array(*format_bits(dtype))),
        lambda _: 1,
        lambda x, n: as_float(x, _int(n[0]), _int(n[1])),
        lambda x, n: float_levels(x, _int(n[0]), _int(n[1])),
        side_bits=24,
    ),
    "uniform": _Grid(
        lambda _: (_array(1), _array(16)),
        lambda _: 0,
        _uniform_values,
        lambda x, n: _span(x, n)[2].astype(jnp.int32),
        side_bits=72,  # the ends of the range in float32, and the length
    ),
}
