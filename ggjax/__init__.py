"""ggjax: generalized-Gaussian priors for neural-network weights, as pure functions over parameter trees."""

from ggjax import gennorm as gennorm

__version__ = "0.1.0"
