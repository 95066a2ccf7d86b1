"""Trees whose weights stay small in a running model."""

from typing import Any, Literal

from ggjax._internal import trees
from ggjax.sensitivity._views import BatchAxis


def resident(
    tree: Any,
    *,
    bits: Literal[4, 8, 12] | None = None,
    batch_axis: BatchAxis = (),
    mask: trees.Mask | Literal["kernels"] = "kernels",
) -> Any:
    """The tree with its weights in the forms that ``codec.dot`` and ``codec.einsum`` multiply with.

    What ``compress`` or calibrated rounding put on levels becomes a ``LevelArray``: a byte a weight, or half of
    one where that holds nearly all levels (the others are kept beside it), or two. What was coded as RF8
    becomes an ``rf8.RF8Array``. Everything else becomes an array, or stays what it is.

    Args:
      tree: a ``Compressed`` tree, what ``sensitivity.round_to`` gives, or any tree of arrays, coded arrays and
        ``sensitivity.Levels``. Outside jit.
      bits: what becomes of kernels that are on no levels: None, they stay floats; 8 or 4, they are rounded to
        the nearest level, with a step for every output channel; 12, those of bfloat16 are kept losslessly in a
        ``TwelveBitArray``.
      batch_axis: the axes along which layers are stacked, so that steps can be sliced along them: a number, a
        tuple, or a function of name and leaf (see ``sensitivity.estimate``).
      mask: the leaves that ``bits`` is for.

    Raises:
      ValueError: bits that are none of these, or a leaf that cannot be kept so; the message names the leaf.
    """
    raise NotImplementedError
