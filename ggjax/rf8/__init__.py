"""RF8: a weight in one byte, as its two leading signed binary digits (arXiv 2506.00486, version 3).

    a = round(log2 |w|),  r = w - sign(w) 2^a,  b = round(log2 |r|),
    w^ = sign(w) 2^a + [a - b <= 4] sign(r) 2^b,  exact zero stays zero

so |w^| / 2^a is one of 3/4, 7/8, 15/16, 1, 17/16, 9/8, 5/4, 3/2, and a product with w^ is two shifts and an
addition. The byte is laid out so that its seven magnitude bits rise with the value:

    bit 7: sign | bits 6-3: exponent E | bits 2-0: residual, in rising order
    residual    000   001   010   011   100   101   110   111
               -1/4  -1/8 -1/16    0  +1/16  +1/8  +1/4  +1/2
    value      (-1)^sign (1 + residual) 2^(E + exponent)

- Byte 0x00 is zero. 3/4 2^a is always written as 3/2 2^(a-1), so the other bytes of residual 000 are reserved:
  they decode to 3/4 2^(E + exponent) and are never written, and neither is 0x80 (it decodes to -0).
- ``exponent``, an int8 shared by the whole tensor or by one channel, places the window of 16 exponents so that
  its top is the exponent of the largest encoded value: exponent = top - 15, at least -125 (so that every
  decoded value is a normal float32) and at most 113. All-zero and empty tensors get -125.
- The smallest value of the window is 7/8 2^exponent. A weight that would round to less becomes zero or plus or
  minus that value, whichever is nearer; a tie goes away from zero. This includes subnormal float32 weights.
- A weight that would round beyond the largest finite number of its dtype (to 2^128 in float32 and bfloat16,
  to 2^16 in float16) becomes the largest RF8 value below it: 15/16 of that power.
- RF8 has no infinities and no NaN. Outside jit they raise an error. Under jit, where nothing can be raised, the
  tensor or channel that holds one gets the exponent 127, which decodes to NaN everywhere.

The relative error of a weight inside the window is at most 0.1082 with rounding "digits" (the paper's rule
above), and at most 1/11 with rounding "nearest" (the nearest of the same values, ties away from zero).

All decisions are integer comparisons on the bits of the weight as a float32, so they are exact, and the same on
every device, with jit and without. Narrower dtypes convert to float32 exactly; float64 is first rounded to it.
"""

from ggjax.rf8._array import RF8Array as RF8Array
from ggjax.rf8._array import validate as validate
from ggjax.rf8._decode import decode as decode
from ggjax.rf8._dot import dot as dot
from ggjax.rf8._dot import einsum as einsum
from ggjax.rf8._encode import Axis as Axis
from ggjax.rf8._encode import encode as encode
from ggjax.rf8._encode import round as round
from ggjax.rf8._format import MAX_EXPONENT as MAX_EXPONENT
from ggjax.rf8._format import MIN_EXPONENT as MIN_EXPONENT
from ggjax.rf8._format import NOT_FINITE as NOT_FINITE
from ggjax.rf8._format import RESIDUALS as RESIDUALS
from ggjax.rf8._format import is_reserved as is_reserved
from ggjax.rf8._format import values as values
from ggjax.rf8._multiplier import MultiplyAdds as MultiplyAdds
from ggjax.rf8._multiplier import multiply_adds as multiply_adds
from ggjax.rf8._rounding import Rounding as Rounding
from ggjax.rf8._trees import tree_decode as tree_decode
from ggjax.rf8._trees import tree_encode as tree_encode
