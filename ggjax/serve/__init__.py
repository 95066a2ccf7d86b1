"""Models that run on small weights as they are: multiplied where they lie.

A *small array* is an array in a few bits a weight: an ``rf8.RF8Array``, a ``codec.LevelArray``, a
``codec.TwelveBitArray``, or an entropy-coded array of ``compress``. ``in_place(f)`` is f for arguments that
hold small arrays in place of float ones. It traces f as for floats, then runs what was traced with the small
arrays themselves:

- products (``dot``, ``matmul``, ``einsum``, whatever becomes a ``dot_general``) decode tile by tile, never a
  matrix as a whole;
- rows that are looked up (embeddings) are looked up first and decoded then;
- transposing, splitting and slicing act on the codes (of a ``LevelArray`` with patches and of a
  ``TwelveBitArray`` along stacked axes only), and so does reshaping those of an ``RF8Array``;
- ``jit``, ``scan``, ``while_loop``, ``cond`` and ``checkpoint`` are entered: scanned layers stay small
  (scanned rows of levels do not). An inner ``jit`` becomes part of the program around it, and shardings that
  it asks for are dropped;
- everything else (a convolution, a norm of the weights) gets that one array decoded, there and then. So does
  every use of an entropy-coded array.

So it does not matter which library a model was written in, and its dtypes, precisions and errors are its own.
A product with small weights is added up in float32 at least, and weights are not rounded to a narrower dtype
before it, where a model computes in one. Derivatives are in reverse mode only.

``apply`` is this for models with an ``apply`` (Flax linen, Haiku), ``nnx_module`` for Flax nnx; an Equinox
module is an argument like any other. All of them belong under ``jax.jit``: each call traces anew.

The hooks of Flax (``intercept_methods``, ``dot_general=``) would serve the layers that know them. Quax (0.2.0)
goes about it as we do, but does not enter ``scan``.
"""

from typing import TYPE_CHECKING

from ggjax._internal import lazy

if TYPE_CHECKING:  # what type checkers and editors see of the list below (a test compares the two)
    from ggjax.serve._in_place import in_place as in_place
    from ggjax.serve._kinds import is_small as is_small
    from ggjax.serve._kinds import nbytes as nbytes
    from ggjax.serve._kinds import tree_decode as tree_decode
    from ggjax.serve._models import apply as apply
    from ggjax.serve._nnx import nnx_module as nnx_module

_HOME = {
    "in_place": "ggjax.serve._in_place",
    "is_small": "ggjax.serve._kinds",
    "nbytes": "ggjax.serve._kinds",
    "tree_decode": "ggjax.serve._kinds",
    "apply": "ggjax.serve._models",
    "nnx_module": "ggjax.serve._nnx",
}

__all__ = [*_HOME]

__getattr__ = lazy.loader(__name__, _HOME, globals())


def __dir__() -> list[str]:
    return sorted(_HOME)
