"""DeepShape: trained weights reshaped to a narrower generalized Gaussian."""

from ggjax.reshape._deepshape import DeepShapeInfo as DeepShapeInfo
from ggjax.reshape._deepshape import deepshape as deepshape
