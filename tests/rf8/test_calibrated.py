"""RF8 with feedback: on the grid, in fewer losses, and like plain rounding where nothing is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import rf8, sensitivity

KEY = jax.random.key(0)
PARAMS = {
    "w": jax.random.normal(KEY, (48, 64)),
    "half": jax.random.normal(KEY, (32, 24), jnp.bfloat16),
    "bias": jnp.linspace(-1, 1, 64),
}


def state_of(mix):
    state = sensitivity.init(PARAMS, mask=lambda p: {"w": True, "half": True, "bias": False})
    for i in range(8):
        keys = jax.random.split(jax.random.fold_in(KEY, i), 2)
        grads = {"w": mix @ jax.random.normal(keys[0], (48, 64)), "half": jax.random.normal(keys[1], (32, 24))}
        state = sensitivity.update(state, grads, 4)
    return state


CORRELATED = np.float32(
    np.linalg.qr(np.random.default_rng(0).normal(size=(48, 48)))[0] * np.logspace(0, -2, 48)
)


@pytest.mark.parametrize("axis", [None, 0, 1], ids=["tensor", "column", "row"])
@pytest.mark.parametrize("rounding", ["digits", "nearest"])
def test_it_costs_less_than_plain_rounding_and_stays_on_the_grid(axis, rounding):
    state = state_of(CORRELATED)
    ours = rf8.tree_encode(PARAMS, axis=axis, rounding=rounding, sensitivity=state)
    plain = rf8.tree_encode(PARAMS, axis=axis, rounding=rounding)
    costs = [sensitivity.predict(PARAMS, t, state).leaves["w"] for t in (ours, plain)]
    assert costs[0] < 0.5 * costs[1]
    for name in ("w", "half"):
        q = ours[name]
        again = rf8.encode(rf8.decode(q), axis=axis, rounding=rounding)
        np.testing.assert_array_equal(rf8.decode(again), rf8.decode(q))
        assert q.dtype == PARAMS[name].dtype and q.exponents.shape == plain[name].exponents.shape
        rf8.validate(q)
    np.testing.assert_array_equal(ours["bias"].codes, plain["bias"].codes)  # not covered


def test_a_sensitivity_of_nothing_gives_plain_rounding():
    state = state_of(np.eye(48, dtype=np.float32))
    flat = state._replace(
        factors={
            n: type(f)(
                *(
                    jnp.asarray(np.broadcast_to(np.eye(x.shape[-1]), x.shape), x.dtype)
                    for x in (f.rows, f.columns)
                ),
                f.view,
            )
            for n, f in state.factors.items()
        }
    )
    ours, plain = rf8.tree_encode(PARAMS, sensitivity=flat), rf8.tree_encode(PARAMS)
    for name in PARAMS:
        np.testing.assert_array_equal(ours[name].codes, plain[name].codes)


def test_what_does_not_fit_is_named():
    state = state_of(CORRELATED)
    with pytest.raises(ValueError, match=r"'w' has shape \(48, 63\) in params, expected \(48, 64\)"):
        rf8.tree_encode(PARAMS | {"w": jnp.ones((48, 63))}, sensitivity=state)
    with pytest.raises(ValueError, match="leaf 'half': a sensitivity needs the weights themselves"):
        jax.jit(lambda p: rf8.tree_encode(p, sensitivity=state))(PARAMS)
    with pytest.raises(ValueError, match="'w': expected finite weights"):
        rf8.tree_encode(PARAMS | {"w": PARAMS["w"].at[0, 0].set(jnp.inf)}, sensitivity=state)
