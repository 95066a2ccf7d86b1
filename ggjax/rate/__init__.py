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

from ggjax.rate._rates import CODES as CODES
from ggjax.rate._rates import TRACED_LEVELS as TRACED_LEVELS
from ggjax.rate._rates import Code as Code
from ggjax.rate._rates import Report as Report
from ggjax.rate._rates import Row as Row
from ggjax.rate._rates import bits as bits
from ggjax.rate._rates import report as report
from ggjax.train import penalty as penalty
