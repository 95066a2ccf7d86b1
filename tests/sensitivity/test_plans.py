"""Steps and damping of leaves: the noise that two halves tell of, the water level, and equal shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax.sensitivity import _plans
from ggjax.sensitivity._state import Factors, init

M, N = 12, 9
BOTH = np.ones(2, np.float32)
SPREAD = jnp.ones(1)


def factors(samples, seed=0):
    """Of gradients whose rows and columns scatter differently: G = A Z B, Z normal."""
    rng = np.random.default_rng(seed)
    a, b = np.diag(np.geomspace(0.1, 2, M)), np.diag(np.geomspace(3, 0.3, N))
    g = a @ rng.normal(size=(2, samples, M, N)) @ b
    rows, columns = np.einsum("hsij,hskj->hik", g, g), np.einsum("hsij,hsik->hjk", g, g)
    view = init({"w": jnp.zeros((M, N))}).factors["w"].view
    return Factors(*(jnp.asarray(x[:, None], jnp.float32) for x in (rows, columns)), view)


def noise_of(x, used=BOTH):
    return float(_plans._of_halves(x, jnp.asarray(used))[1][0])


def test_the_share_of_noise_is_that_of_ledoit_and_wolf():
    f = factors(40)
    x = np.asarray(f.rows, np.float64)[:, 0]
    halves = [h / np.trace(h) * M for h in x]
    both = x.sum(0) / np.trace(x.sum(0)) * M
    share = np.array([np.trace(h) for h in x]) / np.trace(x.sum(0))
    want = (share**2).sum() * ((halves[0] - halves[1]) ** 2).sum() / 2 / ((both - np.eye(M)) ** 2).sum()
    assert noise_of(f.rows) == pytest.approx(want, rel=1e-4)
    first = ((halves[0] - halves[1]) ** 2).sum() / 2 / ((halves[0] - np.eye(M)) ** 2).sum()
    assert noise_of(f.rows, np.array([1.0, 0.0])) == pytest.approx(first, rel=1e-4)


def test_more_samples_leave_less_noise():
    found = [noise_of(factors(n).columns) for n in (4, 40, 400)]
    assert found[0] > 5 * found[1] > 25 * found[2] > 0


def test_every_weight_contributes_the_same():
    plan = _plans.plan(factors(40), BOTH * 40, 1e-3, SPREAD, 1.0)
    c = float(jnp.trace(factors(40).rows.sum(0)[0])) / (M * N) / 80
    steps = float(plan.step) * 2.0 ** (
        (np.asarray(plan.row_steps, float)[0][:, None] + np.asarray(plan.column_steps, float)[0]) / 8
    )
    diagonals = [np.diag(np.asarray(t)[0]) for t in (plan.rows, plan.columns)]
    shares = np.sqrt(c) * steps * np.outer(*diagonals)
    np.testing.assert_allclose(shares, 1e-3, rtol=0.1)  # steps are whole eighths of an octave


@pytest.mark.parametrize("sides", ["both", "rows", "columns"])
def test_steps_grow_with_the_constant_up_to_about_the_spread(sides):
    f, last = factors(40), 0.0
    c = float(jnp.trace(f.rows.sum(0)[0])) / (M * N) / 80
    most = np.sqrt(12 / _plans.WATER * _plans.MOST_THETA * c * 0.5**2)
    for constant in np.geomspace(1e-4, most, 17):
        plan = _plans.plan(f, BOTH * 40, constant, 0.5 * SPREAD, 1.0, sides=sides)
        logs = np.asarray(plan.row_steps, float)[0][:, None] + np.asarray(plan.column_steps, float)[0]
        steps = np.minimum(float(plan.step) * 2.0 ** (logs / 8), 2)  # four standard deviations
        middle = np.exp(np.log(steps).mean())
        assert middle > 0.95 * last  # where all are about the spread, only the finest still grow
        last = middle
    np.testing.assert_allclose(steps, 0.5 * np.sqrt(12 / _plans.WATER), rtol=0.3)


def test_one_axis_and_none():
    f = factors(40)
    for sides, shapes in {"rows": (M, 1), "columns": (1, N), "both": (M, N), "none": (1, 1)}.items():
        plan = _plans.plan(f, BOTH * 40, 0.01, SPREAD, 1.0, sides=sides)
        assert (plan.rows.shape[-1], plan.columns.shape[-1]) == shapes
    assert float(plan.step) == pytest.approx(0.01)
    assert not plan.row_steps.any()
    assert not plan.column_steps.any()


def test_nothing_known_is_the_largest_step_and_stacked_layers_stand_alone():
    f = factors(40)
    none = jax.tree.map(jnp.zeros_like, f)
    assert np.isinf(_plans.plan(none, BOTH, 0.01, SPREAD, 1.0).step)
    view = init({"w": jnp.zeros((2, M, N))}, batch_axis=0).factors["w"].view
    two = Factors(*(jnp.concatenate([x, 0 * x], 1) for x in (f.rows, f.columns)), view)
    plan = _plans.plan(two, BOTH * 40, 0.01, jnp.ones(2), 1.0)
    alone = _plans.plan(f, BOTH * 40, 0.01, SPREAD, 1.0)
    np.testing.assert_allclose(plan.rows[0], alone.rows[0], rtol=1e-5, atol=1e-6)
    assert (np.asarray(plan.row_steps)[1] == 127).all()
