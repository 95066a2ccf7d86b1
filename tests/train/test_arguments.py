"""What BackSlash refuses, and with which words."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ggjax


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_weight": -1.0}, "rate_weight must be at least 0 and finite, got -1.0"),
        ({"rate_weight": np.nan}, "rate_weight must be at least 0 and finite, got nan"),
        ({"eps": 0.0}, "eps must be positive and finite, got 0.0"),
        ({"gg_shape": -2}, "gg_shape must be positive and finite, got -2"),
        ({"estimate_every": 0}, "estimate_every must be positive and finite, got 0"),
        ({"estimate_every": 1.5}, "estimate_every must be a whole number of at least 1, got 1.5"),
    ],
)
def test_bad_arguments_are_named_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        ggjax.backslash(**({"rate_weight": 1.0} | options))


def test_bad_types_and_trees_are_named():
    with pytest.raises(TypeError, match="rate_weight must be a number, got 'high'"):
        ggjax.backslash("high")
    with pytest.raises(TypeError, match="clamp must be a bool, got 1"):
        ggjax.backslash(1.0, clamp=1)
    with pytest.raises(TypeError, match="learning_rate must be a schedule"):
        ggjax.follow_learning_rate(1.0, 0.1, peak=0.1)
    with pytest.raises(ValueError, match="peak must be positive"):
        ggjax.follow_learning_rate(1.0, lambda c: c, peak=0)
    with pytest.raises(ValueError, match='mask must be "kernels".*got .biases.'):
        ggjax.backslash(1.0, mask="biases")
    with pytest.raises(TypeError, match="estimate_every must be a number, got .often."):
        ggjax.backslash(1.0, estimate_every="often")
    tx = ggjax.backslash(1.0)
    params = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="works on the parameters and got none"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="(?i)key|structure|node"):
        tx.update({"v": jnp.ones(3)}, tx.init(params), params)


def test_a_function_for_a_mask_under_inject_hyperparams_has_to_be_static():
    params = {"w": jnp.ones((3, 4))}
    make = optax.inject_hyperparams(ggjax.backslash)
    with jax.numpy_dtype_promotion("standard"), pytest.raises(TypeError, match="static_args"):
        make(rate_weight=1.0, mask=ggjax.masks.kernels).init(params)
    optax.inject_hyperparams(ggjax.backslash, static_args="mask")(rate_weight=1.0, mask=ggjax.masks.kernels)
