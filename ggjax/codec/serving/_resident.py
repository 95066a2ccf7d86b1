"""Trees whose weights stay small in a running model."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import rf8
from ggjax._internal import names, trees
from ggjax.codec._compressed import Blocks, Compressed, is_coded
from ggjax.codec._decompress import decompress
from ggjax.codec._groups import index_groups
from ggjax.codec._host import outside_trace
from ggjax.codec.serving import _blocks, _making, _nearest, _pieces, _twelve
from ggjax.codec.serving._array import LevelArray
from ggjax.codec.serving._floats_needed import Small
from ggjax.codec.serving._pieces import Piece
from ggjax.sensitivity import Levels, Rounded
from ggjax.sensitivity._views import BatchAxis, View, view_of


def resident(
    tree: Any,
    *,
    bits: Literal[4, 8, 12] | None = None,
    batch_axis: BatchAxis = (),
    mask: trees.Mask | Literal["kernels"] = "kernels",
) -> Any:
    """The tree with its weights in the forms that ``codec.dot`` and ``codec.einsum`` multiply with.

    - What ``compress`` or calibrated rounding put on levels becomes a ``LevelArray``, straight from the levels:
      in half a byte a weight where that holds nearly all of them (the others are kept beside it), in one, or in
      two.
    - What was coded as RF8 becomes an ``rf8.RF8Array``.
    - Everything else that is coded becomes an array in its own dtype: what was coded losslessly, with
      centroids, or with levels of more than 16 bits, and vectors.
    - Embeddings have a byte or more for every level and nothing beside them, so that rows can be looked up:
      ``table[tokens].decode()``.

    Args:
      tree: a ``Compressed`` tree, what ``sensitivity.round_to`` gives, or any tree of arrays, coded arrays and
        ``sensitivity.Levels``. Outside jit.
      bits: what becomes of kernels of floats: None, they stay; 8 or 4, they are rounded to the nearest level,
        with a step for every output channel (embeddings to 8 bits, with one for every row); 12, those of
        bfloat16 are kept losslessly in a ``TwelveBitArray``, except embeddings, and where the exponents are too
        many or rows odd in number.
      batch_axis: the axes along which layers are stacked, so that steps can be sliced along them: a number or
        a tuple, for leaves that have two more axes, or a function of name and leaf (see
        ``sensitivity.estimate``).
      mask: the leaves that ``bits`` is for.

    Raises:
      ValueError: bits that are none of these, a NaN or infinite weight to be rounded, or a kernel of another
        dtype than bfloat16 for 12 bits; the message names the leaf.

    >>> from ggjax.codec import compress, dot
    >>> w = jnp.sin(jnp.arange(8192.0)).reshape(64, 128)
    >>> small = resident(compress({"kernel": w}, step=0.25))["kernel"]
    >>> small.shape, small.nbytes, dot(jnp.ones((1, 64)), small).shape
    ((64, 128), 4104, (1, 128))
    """
    if bits not in (None, 4, 8, 12):
        raise ValueError(f"bits must be None, 4, 8 or 12, got {bits!r}")
    paths, treedef = jax.tree_util.tree_flatten_with_path(_opened(tree), is_leaf=_is_leaf)
    own, leaves = [trees.leaf_name(path) for path, _ in paths], [x for _, x in paths]
    pairs = [(n, x) for n, x in zip(own, leaves, strict=True) if _has_rows(x)]
    views = {n: view_of(n, x, _stacked(x, batch_axis), None) for n, x in pairs}
    small = _small(own, leaves, views)
    chosen = [False] * len(small) if bits is None else _chosen(treedef.unflatten(small), mask)
    for i, (name, x) in enumerate(zip(own, small, strict=True)):
        if chosen[i] and name in views:
            assert bits is not None
            small[i] = _of_floats(name, x, bits, views[name])
    return treedef.unflatten(small)


def _of_floats(name: str, x: Any, bits: int, view: View) -> Any:
    """An array of floats in so many bits a weight."""
    if bits != 12:
        trees.check_finite([name], [x])
        return _nearest.nearest(x, bits, view, _is_table(name))
    if x.dtype != jnp.bfloat16:
        raise ValueError(
            f"leaf {name!r}: 12 bits are a form of bfloat16, got {x.dtype}: cast it, or ask for 8 or 4 bits"
        )
    found = (
        None if _is_table(name) or not view.rows else _twelve.encode(np.asarray(x), view.rows[-1], view.batch)
    )
    return x if found is None else found


def _opened(tree: Any) -> Any:
    """The tree of what is to be converted."""
    if isinstance(tree, Rounded):
        return trees.flatten(tree.params, None, needs_weights=False).with_named(tree.levels)
    return tree.tree if isinstance(tree, Compressed) else tree


def _is_leaf(x: Any) -> bool:
    return is_coded(x) or isinstance(x, (Levels, Small, rf8.RF8Array))


def _has_rows(x: Any) -> bool:
    """Whether it is an array of rows and columns, in whatever form."""
    return not isinstance(x, Levels) and len(getattr(x, "shape", ())) > 1


def _stacked(x: Any, batch_axis: BatchAxis) -> BatchAxis:
    """The axes along which layers are stacked; none where that would leave no matrix."""
    return batch_axis if callable(batch_axis) or len(x.shape) >= 2 + np.size(batch_axis) else ()


def _is_table(name: str) -> bool:
    return names.kind_of(name) == "embedding"


def _small(own: list[str], leaves: list[Any], views: dict[str, View]) -> list[Any]:
    """The leaves with none of them coded."""
    out = list(leaves)
    for i, (name, x) in enumerate(zip(own, leaves, strict=True)):
        if isinstance(x, Levels):
            out[i] = _on_levels(name, _pieces.of_levels(x), x.dtype, x.view)
    coded = [i for i, x in enumerate(leaves) if _pieces.is_on_levels(x) and own[i] in views]
    with outside_trace():
        for group in index_groups([(i, leaves[i].size) for i in coded]):
            for i, piece in zip(group, _pieces.of_coded([leaves[i] for i in group]), strict=True):
                if piece is not None:
                    out[i] = _on_levels(own[i], piece, leaves[i].dtype, views[own[i]])
    for i, x in enumerate(leaves):
        piece = _blocks.piece_of(x) if isinstance(x, Blocks) and own[i] in views else None
        if piece is not None:
            out[i] = _blocks.placed(_on_levels(own[i], piece, x.dtype, views[own[i]]), x.sharding)
    rest = [i for i, x in enumerate(out) if is_coded(x)]
    found = decompress(
        [decompress(out[i]) if isinstance(out[i], Blocks) else out[i] for i in rest], keep_rf8=True
    )
    for i, x in zip(rest, found, strict=True):
        out[i] = x
        if isinstance(x, rf8.RF8Array) and own[i] in views:
            out[i] = dataclasses.replace(x, exponents=_sliceable(x.exponents, views[own[i]]))
    return out


def _on_levels(name: str, piece: Piece, dtype: Any, view: View) -> LevelArray:
    rows = view.rows or (len(view.shape) - 1,)
    axis = rows[-1] if piece.axis is None else piece.axis
    wide = piece._replace(
        row_steps=_sliceable(piece.row_steps, view),
        column_steps=_sliceable(piece.column_steps, view),
        limit=None if piece.limit is None else _sliceable(piece.limit, view),
    )
    return _making.level_array(wide, dtype, axis, is_table=_is_table(name))


def _sliceable(numbers: Any, view: View) -> Any:
    """Numbers that weights share, repeated along the axes that layers are stacked along."""
    shape = [view.shape[a] if a in view.batch else n for a, n in enumerate(numbers.shape)]
    return (np if isinstance(numbers, np.ndarray) else jnp).broadcast_to(numbers, shape)


def _chosen(tree: Any, mask: Any) -> list[bool]:
    """Which leaves are floats that are to be rounded."""
    floats = jax.tree.map(lambda x: 0 if _is_leaf(x) else x, tree, is_leaf=_is_leaf)
    return trees.flatten(floats, mask, needs_weights=False).selected
