"""The registry: every public function of a parameter tree, and the tree that they are all tried on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ggjax
from ggjax import baselines, rf8

KEY = jax.random.key(0)
STEP = 2.0**-6


def updates_by(tx: optax.GradientTransformation, tree: Any) -> Any:
    """The updates that a transformation makes of small ones."""
    updates = jax.tree.map(
        lambda x: jnp.full_like(x, 2**-10 if jnp.issubdtype(x.dtype, np.floating) else 0), tree
    )
    return tx.update(updates, tx.init(tree), tree)[0]


def backslash_once(tree: Any) -> Any:
    return updates_by(ggjax.backslash(0.5, eps=0.1, mask=None), tree)


def to_rate_once(tree: Any) -> Any:
    return updates_by(ggjax.backslash_to_rate(2.0, STEP, learning_rate=0.1, start=1.0, mask=None), tree)


def seen(method: baselines.Reparameterization) -> Callable[[Any], Any]:
    """What the forward pass sees of first weights."""
    return lambda tree: method.apply(method.init(tree))


def frozen(method: baselines.Reparameterization) -> Callable[[Any], Any]:
    """What first weights would be rounded to in the end."""
    return lambda tree: method.freeze(method.init(tree)).weights


class Case(NamedTuple):
    """A public function of a parameter tree, and what may be claimed of it."""

    function: Callable[[Any], Any]
    keeps_tree: bool  # gives a tree of the same structure, shapes, dtypes and shardings
    exact: bool  # integers decide the result: bit-equal under jit and sharding


CASES = {
    "fit": Case(ggjax.gennorm.fit, False, False),
    "fit_interp": Case(lambda t: ggjax.gennorm.fit(t, center=True, method="interp"), False, False),
    "gg_reinit": Case(lambda t: ggjax.gg_reinit(KEY, t, 0.8), True, False),
    "backslash": Case(backslash_once, True, False),
    "backslash_to_rate": Case(to_rate_once, True, False),
    "apply_updates_stochastic": Case(
        lambda t: ggjax.apply_updates_stochastic(t, jax.tree.map(jnp.zeros_like, t), KEY), True, True
    ),
    "deepshape": Case(lambda t: ggjax.deepshape(t, step=STEP)[0], True, False),
    "rf8": Case(lambda t: rf8.tree_decode(rf8.tree_encode(t)), True, True),
    "rf8_nearest": Case(lambda t: rf8.tree_decode(rf8.tree_encode(t, axis=-1, rounding="nearest")), True, True),
    "entropy": Case(lambda t: ggjax.rate.bits(t, STEP), False, False),
    "exp_golomb": Case(lambda t: ggjax.rate.bits(t, STEP, code="exp_golomb"), False, False),
    "gg": Case(lambda t: ggjax.rate.bits(t, STEP, code="gg"), False, False),
    "penalty": Case(lambda t: ggjax.rate.penalty(t, eps=0.1, mask=None), False, False),
    "epr": Case(seen(baselines.epr(mask=None)), True, False),
    "epr_frozen": Case(frozen(baselines.epr(prior="gg", mask=None)), True, False),
    "learned_bits": Case(seen(baselines.learned_bits("uniform", mask=None)), True, False),
    "learned_bits_frozen": Case(frozen(baselines.learned_bits("mantissa", mask=None)), True, False),
    "quest": Case(seen(baselines.quest(3, mask=None)), True, False),
    "quest_frozen": Case(frozen(baselines.quest(3, mask=None)), True, False),
    "round_floats": Case(lambda t: baselines.round_floats(t, 3, 4, mask=None), True, True),
    "power_quant": Case(lambda t: baselines.power_quant(t, 4, mask=None).weights, True, False),
    "gg_compand": Case(lambda t: baselines.gg_compand(t, 4, mask=None).weights, True, False),
    "entquant": Case(lambda t: baselines.entquant(t, 0.1, mask=None).weights, True, False),
}
NAMES = sorted(CASES)
TRANSFORMATIONS = {
    "backslash": ggjax.backslash(0.5, eps=0.1),
    "backslash_to_rate": ggjax.backslash_to_rate(2.0, STEP, learning_rate=0.1),
}
"""Those of the cases that take updates."""

JITTED = {name: jax.jit(case.function) for name, case in CASES.items()}


def tree(seed: int = 0) -> dict[str, Any]:
    """Leaves of every kind that a parameter tree may hold."""
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "kernel": jax.random.normal(keys[0], (16, 8)) * 0.3,
        "brain": jax.random.normal(keys[1], (8, 8), jnp.bfloat16),
        "half": jax.random.normal(keys[2], (8, 4), jnp.float16),
        "scale": jax.random.normal(keys[3], ()),
        "zeros": jnp.zeros((4, 4)),
        "empty": jnp.zeros((0, 4)),
        "counts": jnp.arange(3),
        "flags": jnp.array([True, False]),
        "none": None,
        "masked": optax.MaskedNode(),
    }


def leaves_of(x: Any) -> list[Any]:
    return [np.asarray(v, np.float64) for v in jax.tree.leaves(x)]


def assert_close(case: Case, got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(leaves_of(got), leaves_of(want), strict=True):
        if case.exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-6)


def signature(x: Any) -> Any:
    return jax.tree.map(lambda v: (jnp.shape(v), jnp.result_type(v)), x)
