"""ggjax: generalized-Gaussian priors for neural-network weights, as pure functions over parameter trees."""

from ggjax import gennorm as gennorm
from ggjax import rate as rate
from ggjax import rf8 as rf8
from ggjax._backslash import BackSlashState as BackSlashState
from ggjax._backslash import backslash as backslash
from ggjax._backslash import follow_learning_rate as follow_learning_rate
from ggjax._deepshape import DeepShapeInfo as DeepShapeInfo
from ggjax._deepshape import deepshape as deepshape
from ggjax._initializers import gg_init as gg_init
from ggjax._initializers import gg_reinit as gg_reinit
from ggjax._stochastic import apply_updates_stochastic as apply_updates_stochastic

__version__ = "0.1.0"
