"""The generalized Gaussian law: density, distribution, moments, fitting and sampling.

    p(x) = nu / (2 alpha Gamma(1/nu)) exp(-(|x - mu| / alpha)^nu)

``nu`` is the shape (1 Laplace, 2 Gaussian, below 2 heavier-tailed), ``scale`` is alpha and ``loc`` is mu.
SciPy's equivalent is ``scipy.stats.gennorm(nu, loc, scale)``. The fit by moments over a table of shapes
follows arXiv 2506.00486 and arXiv 2504.16968.
"""

from ggjax.gennorm._density import cdf as cdf
from ggjax.gennorm._density import entropy as entropy
from ggjax.gennorm._density import logpdf as logpdf
from ggjax.gennorm._density import std as std
from ggjax.gennorm._fit import Fit as Fit
from ggjax.gennorm._fit import fit as fit
from ggjax.gennorm._quantile import ppf as ppf
from ggjax.gennorm._sample import sample as sample
from ggjax.gennorm._table import TABLE_SIZE as TABLE_SIZE
from ggjax.gennorm._table import TABLE_START as TABLE_START
from ggjax.gennorm._table import TABLE_STEP as TABLE_STEP
from ggjax.gennorm._table import rho as rho
from ggjax.gennorm._table import shape_from_ratio as shape_from_ratio
from ggjax.gennorm._table import table as table
