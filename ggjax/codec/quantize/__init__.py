"""From weights to levels, and from levels to keys: what a compressed array keeps of its weights.

What a program needs beside the functions of ``ggjax.codec``: the step that ``compress`` would choose.
"""

from ggjax.codec.quantize._quantizers import is_codable as is_codable
from ggjax.codec.quantize._steps import Unfit as Unfit
from ggjax.codec.quantize._steps import Want as Want
from ggjax.codec.quantize._steps import check_want as check_want
from ggjax.codec.quantize._steps import step_for as step_for
