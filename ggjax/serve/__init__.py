"""Models that run on small weights as they are: multiplied where they lie, never made floats as a whole.

A *small array* is an array in a few bits a weight: an ``rf8.RF8Array``, a ``codec.LevelArray``, a
``codec.TwelveBitArray``, or an entropy-coded array of ``compress``. ``in_place(f)`` is f for arguments that
hold small arrays in place of float ones. It traces f as for floats, then runs what was traced with the small
arrays themselves:

- products (``dot``, ``matmul``, ``einsum``, whatever becomes a ``dot_general``) decode tile by tile;
- rows that are looked up (embeddings) are looked up first and decoded then;
- transposing, reshaping, splitting and slicing act on the codes;
- ``jit``, ``scan``, ``while_loop``, ``cond`` and ``checkpoint`` are entered: scanned layers stay small;
- everything else (a convolution, a norm of the weights) gets that one array decoded, there and then. So does
  every use of an entropy-coded array.

So it does not matter which library a model was written in, and its dtypes, precisions and errors are its own.
A product with small weights is added up in float32 at least, and weights are not rounded to a narrower dtype
before it, where a model computes in one.

``apply`` is this for models with an ``apply`` (Flax linen, Haiku), ``nnx_module`` for Flax nnx; an Equinox
module is an argument like any other. All of them belong under ``jax.jit``: each call traces anew.

The hooks of Flax (``intercept_methods``, ``dot_general=``) would serve the layers that know them. Quax (0.2.0)
goes about it as we do, but does not enter ``scan``.
"""

from ggjax.serve._in_place import in_place as in_place
from ggjax.serve._kinds import is_small as is_small
from ggjax.serve._kinds import nbytes as nbytes
from ggjax.serve._kinds import tree_decode as tree_decode
from ggjax.serve._models import apply as apply
from ggjax.serve._nnx import nnx_module as nnx_module
