"""Rates: how many bits a parameter takes once its tree is rounded to a grid, by several codes.

Every weight becomes an integer *level* q = round(theta / step), halves to even. All rates are in bits per
parameter, and all but the last code below see the weights only through the histogram of their levels. No rate
is below the entropy of the levels, except that of the last code, which is an approximation for small steps.

The codes (``CODES``):

- "entropy": the empirical entropy of the levels, each taken by itself: what a perfect code of single levels
  takes.
- "fixed": ceil(log2(max - min + 1)), the fixed-length code of the range in use.
- "exp_golomb": exponential Golomb code of order 0; the levels 0, 1, -1, 2, -2, ... are numbered k = 0, 1, ...
  and take 2 floor(log2(k + 1)) + 1 bits.
- "exp_golomb_rank": the same code of the level's rank by frequency (0 for the most frequent), as in Algorithm 2
  of arXiv 2504.16968. The table that turns ranks into levels is counted too: how many levels are in use, in
  unsigned exp-Golomb, then those levels by rank, each in signed exp-Golomb.
- "huffman": the mean length of an optimal prefix code. The table of its code words, which a file would need as
  well, is not counted. Levels that are all alike take 0 bits.
- "gg": the cross-entropy of the levels under the generalized Gaussian law that is fitted to the weights by
  moments about 0 and integrated over each level's bin. The law's two numbers are not counted.
- "gg_closed_form": the entropy of that law in bits minus log2(step), without a look at the levels. Good once
  the step is well below the law's scale; negative at large steps, and -inf for all-zero weights.

Of sharded arrays only ranges, moments and histograms travel between devices, not weights; outside jit, leaves
of fewer than 2^18 weights are counted on the host.
"""

from ggjax.rate._bits import bits as bits
from ggjax.rate._codes import CODES as CODES
from ggjax.rate._codes import Code as Code
from ggjax.rate._report import Report as Report
from ggjax.rate._report import Row as Row
from ggjax.rate._report import report as report
from ggjax.rate._traced import TRACED_LEVELS as TRACED_LEVELS
from ggjax.train import penalty as penalty
