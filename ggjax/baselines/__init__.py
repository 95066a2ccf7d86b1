"""Other ways to make weights small, to compare with: one function or a few for each system, in pure JAX.

Each docstring says what is the paper's and what is ours. Only weights are dealt with, no activations and no
gradients.

Methods that are trained (``learned_bits``, ``epr``, ``quest``) give a ``Reparameterization``, four pure
functions that one training loop serves: ``init`` turns parameters into latents, which any optax transform
trains; ``apply`` gives the weights of the forward pass, ``rate`` a term for the loss, and ``freeze`` the
rounded weights in the end, with the whole numbers to code them by.

>>> import jax, jax.numpy as jnp, optax
>>> params = {"w": jax.random.normal(jax.random.key(0), (16, 8))}
>>> method = epr(step=0.1)  # or learned_bits("uniform"), quest(4), ...
>>> tx = optax.sgd(0.1, momentum=0.9)
>>> @jax.jit
... def train_step(latent, state, key):
...     def loss(latent):
...         weights = method.apply(latent, key)
...         return jnp.mean((weights["w"] - params["w"]) ** 2) + 0.1 * method.rate(latent, key)
...     updates, state = tx.update(jax.grad(loss)(latent), state, latent)
...     return optax.apply_updates(latent, updates), state
>>> latent = method.init(params)
>>> state, before = tx.init(latent), float(method.rate(latent))
>>> for key in jax.random.split(jax.random.key(1), 50):
...     latent, state = train_step(latent, state, key)
>>> float(method.rate(latent)) < before, method.freeze(latent).levels["w"].dtype
(True, dtype('int32'))

Methods without training (``power_quant``, ``gg_compand``, ``entquant``) give the same ``Frozen`` at once.
``bitwave_update`` steers the bits of ``round_floats`` by the loss. ``gecko_encode`` and ``gecko_decode`` are a
lossless code of exponents; ``gecko_bits`` and ``dfloat11_bits`` are measures.
"""

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
