"""Products with a matrix that is kept in few bits and decoded tile by tile, never as a whole.

A matrix of K rows and N columns lies in one or more arrays of shape (K / P, ..., N): every row of the arrays
holds P rows of the matrix, neighbours of each other (two of 4 bits in a byte, say). A ``decode`` function takes
some rows of these arrays and gives P float32 arrays (rows, N): of all first neighbours, of all second ones, and
so on. Numbers x (B, K) come apart in the same way, as (P, B, K / P). Arrays after the first one may be 1 long
in place of K / P, or of N: what all rows share, or all columns.

The file of each idea: ``_rules`` (derivatives, vmap, meshes, platforms), ``_loops`` (in plain XLA, for CPUs),
``_kernel`` (in Pallas, for GPUs and TPUs).
"""

from ggjax._internal.tiled._loops import Decode as Decode
from ggjax._internal.tiled._rules import dot as dot
from ggjax._internal.tiled._rules import dot_transposed as dot_transposed
