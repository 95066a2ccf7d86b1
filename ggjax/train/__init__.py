"""Fewer bits while training: BackSlash, its schedules, the rate as a term of the loss, stochastic rounding,
and training on the grid of calibrated rounding."""

from ggjax.train._backslash import BackSlashState as BackSlashState
from ggjax.train._backslash import backslash as backslash
from ggjax.train._on_grid import OnGrid as OnGrid
from ggjax.train._on_grid import on_grid as on_grid
from ggjax.train._penalty import penalty as penalty
from ggjax.train._schedules import follow_learning_rate as follow_learning_rate
from ggjax.train._stochastic import apply_updates_stochastic as apply_updates_stochastic
from ggjax.train._to_rate import BackSlashToRateState as BackSlashToRateState
from ggjax.train._to_rate import backslash_to_rate as backslash_to_rate
