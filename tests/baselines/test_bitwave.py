"""BitWave's controller: bits fall with the loss and rise with it, and what is not a number brings all back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import baselines


def run(losses, start=7, **kwargs):
    """The bits after every step, alike with and without jit."""
    update = functools.partial(baselines.bitwave_update, **kwargs)
    jitted = jax.jit(update)
    state, twin, seen = baselines.bitwave_init(start), baselines.bitwave_init(start), []
    for loss in losses:
        state, twin = update(state, loss), jitted(twin, jnp.float32(loss))
        np.testing.assert_allclose(np.array(state), np.array(twin), rtol=1e-6)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, baselines.bitwave_init(start))
        seen.append(int(state.bits))
    return seen


def test_bits_fall_while_the_loss_falls_and_rise_when_it_rises():
    assert run([5.0, 4.0, 3.0, 2.0]) == [7, 6, 5, 4]
    assert run([1.0, 2.0, 3.0, 4.0], start=3) == [3, 4, 5, 6]
    assert run([1.0] * 4, start=3) == [3] * 4


def test_bits_stay_in_their_range():
    assert run(range(9, 0, -1), start=2, least=1)[-1] == 1
    assert run(range(9), start=6, most=7)[-1] == 7


def test_within_the_margin_nothing_changes():
    assert run([1.0, 0.95, 1.05, 0.8], start=3, margin=0.1) == [3, 3, 3, 2]


def test_decisions_come_after_a_window():
    assert run([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0], every=3) == [7, 7, 6, 6, 6, 5, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_brings_all_bits_back(bad):
    assert run([5.0, 4.0, 3.0, bad, 2.0]) == [7, 6, 5, 7, 6]
    assert run([bad, 5.0, 4.0], start=4, most=6) == [6, 6, 5]
    state = baselines.bitwave_update(baselines.bitwave_init(3), 1.5)
    assert baselines.bitwave_update(state, bad).average == state.average == 1.5


def test_a_new_learning_rate_brings_all_bits_back():
    state = baselines.bitwave_init(3)
    for loss in (5.0, 4.0):
        state = baselines.bitwave_update(state, loss)
    assert int(state.bits) == 2
    assert int(baselines.bitwave_update(state, 1.0, learning_rate_changed=True).bits) == 7


def test_wrong_arguments():
    state = baselines.bitwave_init(3)
    for kwargs, words in [
        ({"least": -1}, "least must be at least 0"),
        ({"least": 5, "most": 3}, "most must be a whole number from 5 to 64, got 3"),
        ({"every": 0}, "every must be a whole number .*got 0"),
        ({"decay": 1.0}, "decay must be below 1, got 1.0"),
        ({"margin": float("nan")}, "margin must be .*got nan"),
    ]:
        with pytest.raises(ValueError, match=words):
            baselines.bitwave_update(state, 1.0, **kwargs)
    with pytest.raises(ValueError, match=r"loss must be a scalar, got an array of shape \(2,\)"):
        baselines.bitwave_update(state, jnp.ones(2))
    with pytest.raises(ValueError, match="bits must be a whole number .*got 2.5"):
        baselines.bitwave_init(2.5)


def test_a_change_of_the_learning_rate_is_one():
    with pytest.raises(ValueError, match="learning_rate_changed must be a scalar"):
        baselines.bitwave_update(baselines.bitwave_init(7), 1.0, learning_rate_changed=jnp.array([True]))
