"""Baselines."""

from ggjax.baselines._bitwave import BitWaveState as BitWaveState
from ggjax.baselines._bitwave import bitwave_init as bitwave_init
from ggjax.baselines._bitwave import bitwave_update as bitwave_update
from ggjax.baselines._compander import gg_compand as gg_compand
from ggjax.baselines._dfloat11 import DFloat11Bits as DFloat11Bits
from ggjax.baselines._dfloat11 import dfloat11_bits as dfloat11_bits
from ggjax.baselines._entquant import entquant as entquant
from ggjax.baselines._epr import EPRLatent as EPRLatent
from ggjax.baselines._epr import epr as epr
from ggjax.baselines._float_format import round_floats as round_floats
from ggjax.baselines._gecko import GeckoCode as GeckoCode
from ggjax.baselines._gecko import gecko_bits as gecko_bits
from ggjax.baselines._gecko import gecko_decode as gecko_decode
from ggjax.baselines._gecko import gecko_encode as gecko_encode
from ggjax.baselines._learned_bits import BitsLatent as BitsLatent
from ggjax.baselines._learned_bits import learned_bits as learned_bits
from ggjax.baselines._learned_bits import round_up as round_up
from ggjax.baselines._mse_clip import mse_clip as mse_clip
from ggjax.baselines._powerquant import power_exponent as power_exponent
from ggjax.baselines._powerquant import power_quant as power_quant
from ggjax.baselines._quest import QuestLatent as QuestLatent
from ggjax.baselines._quest import quest as quest
from ggjax.baselines._reparameterization import Frozen as Frozen
from ggjax.baselines._reparameterization import Reparameterization as Reparameterization
