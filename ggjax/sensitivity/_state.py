"""The factors of all leaves, and gradients added to them."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import mesh, trees
from ggjax.sensitivity import _views
from ggjax.sensitivity._views import View

HALVES = 2
"""Gradients are added to two halves in turn: what is fitted to one half is judged by the other."""

MAX_DIM = 8192
"""A longer axis has a diagonal factor: 8192 x 8192 numbers take 256 MiB."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors:
    """The two factors of a leaf, seen as a stack of b matrices of m rows and n columns; all float32.

    - rows: (2, b, m, m), the sum of G G^T of either half; or (2, b, m), its diagonal
    - columns: (2, b, n, n), the sum of G^T G; or (2, b, n)
    """

    rows: jax.Array
    columns: jax.Array
    view: View = dataclasses.field(metadata={"static": True})

    def summed(self, which: slice) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(rows, columns, their trace (b,)): the sums over some of the halves."""
        rows, columns = self.rows[which].sum(0), self.columns[which].sum(0)
        full = columns.ndim == 3
        return rows, columns, jnp.trace(columns, axis1=1, axis2=2) if full else columns.sum(-1)


def diagonal(factor: jax.Array) -> jax.Array:
    """The diagonal (b, k) of a factor (b, k, k), or the factor itself where that is all of it."""
    return jnp.diagonal(factor, axis1=1, axis2=2) if factor.ndim == 3 else factor


class Sensitivity(NamedTuple):
    """What is known of the weights of a tree: a pytree, by the names of its leaves."""

    factors: dict[str, Factors]  # by leaf name, such as ``params/dense/kernel``
    examples: jax.Array  # float32 (2,), how many examples the gradients of each half are sums over
    updates: jax.Array  # int32 (), how many gradients were added
    measured: jax.Array | np.ndarray = np.zeros((0, 2), np.float32)
    """float32 (k, 2): of trial roundings by the first half, in the order of their rises, the rise that the
    second half predicts and that which was measured, drawn to the prediction where the measurement is noisy.
    None of them where no model was there to be measured."""


def init(
    params: Any,
    *,
    max_dim: int = MAX_DIM,
    batch_axis: _views.BatchAxis = (),
    split: _views.Split | None = None,
    mask: trees.Mask = None,
) -> Sensitivity:
    """A sensitivity that knows of no gradient yet.

    Args:
      params: the weights: a tree of arrays or of ``jax.ShapeDtypeStruct``.
      max_dim: an axis of a matrix that is longer has a diagonal factor (embeddings of many tokens). Leaves of
        one axis have a diagonal always.
      batch_axis: the axis or axes along which layers are stacked (by ``nn.scan`` or ``jax.vmap``), for every
        leaf that has more axes; or a function of (leaf name, leaf). Each layer has factors of its own.
      split: a function of (leaf name, leaf) that tells how many axes of the leaf are rows, the others being
        columns, or gives None. By default the last axis of a convolution's kernel (four axes and more) is its
        columns; leaves of three axes, as ``nn.DenseGeneral`` has them, are split where the matrix is most
        nearly square.
      mask: which leaves to cover: tree of bools, prefix of one, or a function from params to one; None for all
        floating leaves.

    Returns:
      A ``Sensitivity`` of zeros. For a matrix of m x n it takes 8 (m^2 + n^2) bytes.

    Raises:
      ValueError: no floating leaf, a mask that does not fit, a batch_axis or split that a leaf does not have,
        two leaves of one name.
    """
    flat = trees.flatten(params, mask)
    factors: dict[str, Factors] = {}
    for name, x in zip(flat.weight_names(), flat.weights(), strict=True):
        if name in factors:
            raise ValueError(f"two leaves are named {name!r}, expected names that tell leaves apart")
        view = _views.view_of(name, x, batch_axis, split)
        b, m, n = view.sizes
        matrix = bool(view.rows) and bool(view.columns)
        rows, columns = (
            jnp.zeros((HALVES, b, d, d) if matrix and d <= max_dim else (HALVES, b, d), jnp.float32)
            for d in (m, n)
        )
        factors[name] = Factors(rows, columns, view)
    return Sensitivity(factors, jnp.zeros(HALVES, jnp.float32), jnp.zeros((), jnp.int32))


def update(state: Sensitivity, grads: Any, examples: jax.typing.ArrayLike = 1) -> Sensitivity:
    """Add a gradient.

    The gradient must be that of a sum over examples, whose labels are drawn from the model's own predictions
    (or, without a likelihood, of outputs times normal noise): only then does one gradient of a whole batch tell
    what the sum over its examples would. ``estimate`` takes care of that.

    Jittable; the state can be donated. Float32 sums, whatever the dtype of the gradients.

    Args:
      state: what is known so far.
      grads: a tree with the leaves that the state covers, by name; others are passed over.
      examples: how many examples the gradient is a sum over.

    Raises:
      ValueError: a leaf of the state is not among the gradients, or has another shape there; the message names
        it.
    """
    flat = trees.flatten(grads, needs_weights=False)
    given = dict(zip(flat.names, flat.leaves, strict=True))
    half = state.updates % HALVES
    factors = {}
    for name, f in state.factors.items():
        g = leaf_of(given, name, f.view, "grads")
        if min(f.view.sizes):
            rows = mesh.reduce(functools.partial(_product, f, rows=True), g)
            columns = mesh.reduce(functools.partial(_product, f, rows=False), g)
            f = Factors(f.rows.at[half].add(rows), f.columns.at[half].add(columns), f.view)
        factors[name] = f
    counted = state.examples.at[half].add(jnp.asarray(examples, jnp.float32))
    return state._replace(factors=factors, examples=counted, updates=state.updates + 1)


def leaf_of(given: dict[str, Any], name: str, view: View, what: str) -> jax.Array:
    """The leaf of a name, checked against the view of it."""
    if name not in given:
        raise ValueError(f"leaf {name!r} is not in {what}, which has {len(given)} leaves")
    shape = tuple(np.shape(given[name]))
    if shape != view.shape:
        raise ValueError(f"leaf {name!r} has shape {shape} in {what}, expected {view.shape}")
    return jnp.asarray(given[name])


def _product(f: Factors, g: jax.Array, *, rows: bool) -> jax.Array:
    """G G^T (of rows) or G^T G of one gradient, or its diagonal where the factor is one."""
    g = f.view.matrices(g.astype(jnp.float32))
    g = g if rows else g.swapaxes(1, 2)
    diagonal = (f.rows if rows else f.columns).ndim == 3
    return (
        jnp.square(g).sum(2) if diagonal else jnp.matmul(g, g.swapaxes(1, 2), precision=jax.lax.Precision.HIGH)
    )
