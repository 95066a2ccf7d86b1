"""First weights: initializers that draw from a generalized Gaussian."""

from ggjax.init._initializers import gg_init as gg_init
from ggjax.init._initializers import gg_reinit as gg_reinit
