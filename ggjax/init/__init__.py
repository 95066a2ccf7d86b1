"""First weights: initializers that draw from a generalized Gaussian."""

from ggjax.init._gg_init import gg_init as gg_init
from ggjax.init._reinit import gg_reinit as gg_reinit
