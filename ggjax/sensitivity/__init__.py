"""Sensitivity: how much a change of each weight costs, from gradients alone.

Near trained weights, the loss of a model rises by about 1/2 vec(E)^T F vec(E) when an error E is added to a
weight matrix, with F the Fisher matrix of that leaf (or the Gauss-Newton matrix of half the squared error). F
is taken as a Kronecker product of one factor for the rows of the matrix and one for its columns, both of which
are sums over gradients G: of G G^T and of G^T G (as in K-FAC, arXiv 1503.05671, but from gradients alone, so
that it works for any function of a tree of arrays).

``estimate`` makes a ``Sensitivity`` from a model and some batches, without labels; ``init`` and ``update`` do
it inside a loop of one's own; ``from_second_moments`` takes what Adam knows already. ``predict`` then tells
what any change of the weights costs, and ``round_to`` rounds them so that it costs least; ``compensate`` does
so leaf after leaf, and lets later leaves make good the errors of earlier ones. ``row_steps`` gives the steps of
rows to ``ggjax.backslash_to_rate``.
"""

from ggjax.sensitivity._compensate import compensate as compensate
from ggjax.sensitivity._estimate import estimate as estimate
from ggjax.sensitivity._file import load as load
from ggjax.sensitivity._file import save as save
from ggjax.sensitivity._levels import Levels as Levels
from ggjax.sensitivity._moments import from_second_moments as from_second_moments
from ggjax.sensitivity._predict import Prediction as Prediction
from ggjax.sensitivity._predict import predict as predict
from ggjax.sensitivity._rounding import Rounded as Rounded
from ggjax.sensitivity._rounding import round_to as round_to
from ggjax.sensitivity._row_steps import row_steps as row_steps
from ggjax.sensitivity._state import Factors as Factors
from ggjax.sensitivity._state import Sensitivity as Sensitivity
from ggjax.sensitivity._state import init as init
from ggjax.sensitivity._state import update as update
from ggjax.sensitivity._views import View as View
