"""RF8: a weight in one byte, as its two leading signed binary digits (arXiv 2506.00486).

    a = round(log2 |w|),  r = w - sign(w) 2^a,  b = round(log2 |r|),
    w^ = sign(w) 2^a + [a - b <= 4] sign(r) 2^b,  exact zero stays zero

so |w^| / 2^a is one of 3/4, 7/8, 15/16, 1, 17/16, 9/8, 5/4, 3/2, and a product with w^ is two shifts and an
addition. The byte is laid out so that its seven magnitude bits rise with the value:

    bit 7: sign | bits 6-3: exponent E | bits 2-0: residual, in rising order
    residual    000   001   010   011   100   101   110   111
               -1/4  -1/8 -1/16    0  +1/16  +1/8  +1/4  +1/2
    value      (-1)^sign (1 + residual) 2^(E + exponent)

- Byte 0x00 is zero. 3/4 2^a is always written as 3/2 2^(a-1), so the other bytes of residual 000 are reserved:
  they decode to 3/4 2^(E + exponent) and are never emitted, nor is 0x80 (it decodes to -0).
- ``exponent``, an int8 shared by the tensor or by a channel, places the window of 16 exponents so that its top
  is the exponent of the largest encoded value: exponent = top - 15, at least -125 (every decoded value is then
  a normal float32) and at most 113; all-zero and empty tensors get -125.
- The smallest value of the window is 7/8 2^exponent; weights that round to less become zero or plus or minus
  that value, whichever is nearer (the tie goes away from zero). So do subnormal float32 weights.
- A weight that would round beyond the largest finite number of its dtype (to 2^128 in float32 and bfloat16,
  to 2^16 in float16) becomes the largest RF8 value below: 15/16 of that power.
- RF8 has no infinities and no NaN. Outside jit they raise; under jit, where nothing can be raised, the tensor
  or channel that holds one gets the exponent 127, which decodes to NaN everywhere.

The relative error of a weight inside the window is at most 0.1082 (rounding "digits", the paper's rule above)
or 1/11 (rounding "nearest": the nearest of the same values, ties away from zero).

All decisions are integer comparisons on the bits of the weight as a float32, hence exact and the same on every
device, eager or jitted. bfloat16 and float16 convert exactly; float64 is first rounded to float32.
"""

from ggjax.rf8._rf8 import MAX_EXPONENT as MAX_EXPONENT
from ggjax.rf8._rf8 import MIN_EXPONENT as MIN_EXPONENT
from ggjax.rf8._rf8 import NOT_FINITE as NOT_FINITE
from ggjax.rf8._rf8 import RESIDUALS as RESIDUALS
from ggjax.rf8._rf8 import Axis as Axis
from ggjax.rf8._rf8 import RF8Array as RF8Array
from ggjax.rf8._rf8 import Rounding as Rounding
from ggjax.rf8._rf8 import decode as decode
from ggjax.rf8._rf8 import dot as dot
from ggjax.rf8._rf8 import encode as encode
from ggjax.rf8._rf8 import is_reserved as is_reserved
from ggjax.rf8._rf8 import round as round
from ggjax.rf8._rf8 import tree_decode as tree_decode
from ggjax.rf8._rf8 import tree_encode as tree_encode
from ggjax.rf8._rf8 import validate as validate
from ggjax.rf8._rf8 import values as values
