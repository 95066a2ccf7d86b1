"""Errors of one leaf made good by others: rounding leaf after leaf, with gradient descent in between."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ggjax import masks
from ggjax._internal import trees
from ggjax.sensitivity import _outputs, _planned, _search
from ggjax.sensitivity._levels import Levels
from ggjax.sensitivity._outputs import Output
from ggjax.sensitivity._planned import Planned
from ggjax.sensitivity._rounding import Rounded, asked_of, chosen_of, rounded_tree
from ggjax.sensitivity._search import CAP, Found
from ggjax.sensitivity._state import Factors, Sensitivity

SCALES = (0.03, 0.1, 0.3, 1.0)
"""Of a step along the preconditioned gradient, those that are tried: 1 would reach the minimum if all leaves
but one stayed as they are and the factors were exact."""

BATCHES_A_STEP = 4

SAFETY = 0.1
"""Added to the diagonals of the factors before they are inverted, relative to their mean."""


class _Model(NamedTuple):
    """What the descent needs of the model; leaves are dicts of arrays by name."""

    divergence: Callable[[dict[str, Any], Any], jax.Array]  # of leaves, on a batch, from what the model was
    gradient: Callable[[dict[str, Any], Any], dict[str, jax.Array]]
    batches: list[Any]  # to descend by
    judges: list[Any]  # to tell what was gained by


def compensate(
    apply: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    state: Sensitivity,
    *,
    bits: float | None = None,
    loss_rise: float | None = None,
    output: Output = "logits",
    groups: Sequence[Sequence[str]] | None = None,
    steps: int = 2,
    damping: float | None = None,
    cap: float = CAP,
    mask: trees.Mask = masks.kernels,
    progress: Callable[[str, float], None] | None = None,
) -> Rounded:
    """Round the weights of a tree as ``round_to``, with errors of earlier leaves made good by later ones.

    Leaves are rounded one after the other. After each, those that are still free move a few steps against the
    gradient of the divergence between the outputs and those of the unrounded model, preconditioned by their
    factors. It needs the model and batches again, and the time of some ten gradients a leaf; one program is
    compiled for all of them. (The idea of quantizing each layer against what the quantized ones before it feed
    it, as GPTQ and WaterSIC do it, arXiv 2603.04956, without knowing what a layer is.)

    What it gains depends on the model: at equal divergence 2 to 4 % of the bits of ``round_to`` for a small
    language model, about as much for a recurrent one, more for a small convolutional one, nothing for a
    pretrained encoder (``tests/benchmarks/bench_calibrated``, 10 batches). Try both.

    Args:
      apply, params, output: as ``estimate`` has them.
      batches: inputs, held in memory; those of the calibration will do. All of one shape. The last fifth only
        tells what was gained; the more there are, the more is.
      state: the sensitivity of the weights.
      bits, loss_rise, damping, cap, mask: as in ``round_to``.
      groups: the names of the leaves that are rounded together, in the order in which they are, best from the
        input of the model to its output; None for every leaf by itself in the order of the tree. Leaves that
        are not named come last.
      steps: how many steps of descent follow each group.
      progress: called after each group with the name of its last leaf and the divergence so far.

    Returns:
      A ``Rounded``, which ``codec.compress`` and ``save_file`` take. Its rises are those of ``round_to``,
      lowered in the proportion in which the measured divergence was.

    Raises:
      ValueError: as ``round_to`` and ``estimate``; no batch; a group names a leaf that is not rounded.
    """
    search, asked = asked_of(bits, loss_rise)
    flat = trees.flatten(params, mask)
    chosen = chosen_of(flat)
    order = _groups_of(list(chosen), groups)
    model = _model_of(apply, flat, batches, output)
    known = _planned.planned(chosen, state, damping)
    found = search(known, asked, cap=cap)
    inverses = {n: _inverse(f, float(known.examples.sum())) for n, f in known.factors.items()}
    levels, share = _descend(model, known, found, inverses, order, steps, progress)
    if loss_rise is not None and share > 0:  # once more, as coarse as what was gained allows
        found = _search.near(found, asked / share)
        levels, share = _descend(model, known, found, inverses, order, steps, progress)
    return rounded_tree(flat, levels, {n: share * r for n, r in found.rises.items()})


def _groups_of(names: list[str], groups: Sequence[Sequence[str]] | None) -> list[list[str]]:
    if groups is None:
        return [[n] for n in names]
    named = [n for group in groups for n in group]
    for n in named:
        if n not in names or named.count(n) > 1:
            raise ValueError(
                f"groups name {n!r} {named.count(n)} times, expected leaves that are rounded, once"
            )
    rest = [n for n in names if n not in named]
    return [list(group) for group in groups if group] + ([rest] if rest else [])


def _model_of(
    apply: Callable[[Any, Any], Any], flat: trees.Flat, batches: Iterable[Any], output: Output
) -> _Model:
    held = [jax.tree.map(jnp.asarray, b) for b in batches]
    if not held:
        raise ValueError("batches is empty, expected at least one batch")
    weights, others = flat.weights(), flat.other_arrays()

    def mean(leaves: dict[str, Any], weights: list[Any], others: list[Any], batch: Any) -> jax.Array:
        new = [leaves.get(n, x) for n, x in zip(flat.weight_names(), weights, strict=True)]
        before, after = (_outputs.floating(apply(flat.rebuilt(w, others), batch)) for w in (weights, new))
        return _outputs.divergences(before, after, output).mean()

    value, slope = jax.jit(mean), jax.jit(jax.grad(mean))
    judges = max(len(held) // 5, 1)
    return _Model(
        lambda x, b: value(x, weights, others, b),
        lambda x, b: slope(x, weights, others, b),
        held[:-judges] or held,
        held[-judges:],
    )


def _descend(
    model: _Model,
    known: Planned,
    found: Found,
    inverses: dict[str, tuple[jax.Array, jax.Array]],
    order: list[list[str]],
    steps: int,
    progress: Callable[[str, float], None] | None,
) -> tuple[dict[str, Levels], float]:
    """(levels of all leaves, the share of the divergence of ``found`` that is left)."""

    def mean(leaves: dict[str, Any], batches: Sequence[Any]) -> float:
        return sum(float(model.divergence(leaves, b)) for b in batches) / len(batches)

    def turn(first: int) -> list[Any]:
        return [model.batches[i % number] for i in range(first, first + some)]

    number, seen = len(model.batches), 0
    some = min(BATCHES_A_STEP, number)
    levels: dict[str, Levels] = {}
    leaves = dict(known.leaves)
    free = set(leaves)
    for group in order:
        own = found.known._replace(leaves={n: leaves[n] for n in group})
        new = _planned.rounded(own, found.constant, found.cap)
        levels |= new
        leaves |= _planned.values_of(new, known.leaves)
        free -= set(group)
        left = mean(leaves, turn(seen))
        for _ in range(steps if free else 0):
            now, then = turn(seen), turn(seen + some)
            seen += some
            slopes = [model.gradient(leaves, b) for b in now]
            total = functools.reduce(functools.partial(jax.tree.map, jnp.add), slopes)
            way = {n: _preconditioned(total[n] / some, *inverses[n], known.factors[n].view) for n in free}
            best, left = leaves, mean(leaves, then)
            for scale in SCALES:
                moved = leaves | {
                    n: (trees.wide(leaves[n]) - scale * d).astype(leaves[n].dtype) for n, d in way.items()
                }
                value = mean(moved, then)
                if not value < left:
                    break
                best, left = moved, value
            if best is leaves:
                break
            leaves = best
        if progress is not None:
            progress(group[-1], left)
    plain = mean(_planned.values_of(found.levels, known.leaves), model.judges)
    return levels, min(mean(leaves, model.judges) / plain, 1.0) if plain > 0 else 1.0


def _inverse(f: Factors, examples: float) -> tuple[jax.Array, jax.Array]:
    """The inverses of the damped factors of a leaf, so scaled that together they invert its curvature."""
    _, m, n = f.view.sizes
    rows, columns, total = f.summed(slice(None))
    trace = jnp.where(total > 0, total, 1)

    def inverse(x: jax.Array, size: int) -> jax.Array:
        x = x * (size / trace).reshape(-1, *(1,) * (x.ndim - 1))
        return (
            jnp.linalg.inv(x + SAFETY * jnp.eye(size, dtype=jnp.float32)[None])
            if x.ndim == 3
            else 1 / (x + SAFETY)
        )

    scale = jnp.where(total > 0, m * n * examples / trace, 0)
    first = inverse(rows, m)
    return first * scale.reshape(-1, *(1,) * (first.ndim - 1)), inverse(columns, n)


@functools.partial(jax.jit, static_argnames="view")
def _preconditioned(slope: jax.Array, rows: jax.Array, columns: jax.Array, view: Any) -> jax.Array:
    g = view.matrices(trees.wide(slope))
    g = rows @ g if rows.ndim == 3 else rows[:, :, None] * g
    return view.leaf(g @ columns if columns.ndim == 3 else g * columns[:, None, :])
