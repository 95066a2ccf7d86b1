"""Rounding with compensation: less divergence at the same bits, what is asked for, and what the files hold."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ggjax
from ggjax import codec, sensitivity

KEY = jax.random.key(1)
MODEL = nn.Sequential([nn.Dense(48), nn.relu, nn.Dense(48), nn.relu, nn.Dense(10)])
MIXING = jax.random.normal(jax.random.key(2), (32, 32)) * jnp.exp(jnp.linspace(-3, 1, 32))[:, None]
BATCHES = [jax.random.normal(jax.random.key(i), (128, 32)) @ MIXING for i in range(12)]
PARAMS = MODEL.init(KEY, BATCHES[0])
NAMES = [f"params/layers_{i}/kernel" for i in (0, 2, 4)]


@pytest.fixture(scope="module")
def known():
    return sensitivity.estimate(MODEL.apply, PARAMS, BATCHES[:10], key=KEY)


@pytest.fixture(scope="module")
def compensated(known):
    told = []
    groups = [[n] for n in NAMES]
    found = sensitivity.compensate(
        MODEL.apply, PARAMS, BATCHES[:10], known, bits=3, groups=groups, progress=lambda *a: told.append(a)
    )
    return found, told


def divergence(params):
    x = jnp.concatenate(BATCHES[10:])
    old, new = (jax.nn.log_softmax(MODEL.apply(p, x)) for p in (PARAMS, params))
    return float(jnp.sum(jnp.exp(old) * (old - new), -1).mean())


def test_less_divergence_in_as_many_bits(known, compensated):
    found, told = compensated
    plain = sensitivity.round_to(PARAMS, known, bits=3)
    assert found.bits == pytest.approx(plain.bits, abs=0.05)
    assert divergence(found.params) < 0.9 * divergence(plain.params)
    assert found.rise < plain.rise
    assert [name for name, _ in told] == NAMES and all(np.isfinite(d) for _, d in told)
    for (
        name,
        q,
    ) in found.levels.items():  # what comes out is levels times steps, and the first leaf is as it was
        layer = name.split("/")[1]
        np.testing.assert_array_equal(q.values, found.params["params"][layer]["kernel"])
        np.testing.assert_array_equal(found.params["params"][layer]["bias"], PARAMS["params"][layer]["bias"])
    np.testing.assert_array_equal(found.levels[NAMES[0]].levels, plain.levels[NAMES[0]].levels)


def test_a_rise_takes_fewer_bits(known):
    asked = 0.01
    plain = sensitivity.round_to(PARAMS, known, loss_rise=asked)
    found = sensitivity.compensate(MODEL.apply, PARAMS, BATCHES[:10], known, loss_rise=asked)
    assert found.bits < plain.bits
    assert 0.4 * asked < divergence(found.params) < 1.6 * asked


def test_without_steps_it_is_plain_calibrated_rounding(known):
    plain = sensitivity.round_to(PARAMS, known, bits=3)
    found = sensitivity.compensate(MODEL.apply, PARAMS, BATCHES[:1], known, bits=3, steps=0)
    assert found.rises == plain.rises
    jax.tree.map(np.testing.assert_array_equal, found.params, plain.params)


def test_what_cannot_be_done_is_said(known):
    def compensate(**options):
        options = {"batches": BATCHES[:1], "state": known, "bits": 3} | options
        sensitivity.compensate(MODEL.apply, PARAMS, **options)

    with pytest.raises(ValueError, match="batches is empty"):
        compensate(batches=[])
    with pytest.raises(ValueError, match="give one of bits and loss_rise"):
        compensate(loss_rise=0.1)
    with pytest.raises(ValueError, match="groups name 'x' 1 times"):
        compensate(groups=[["x"]])
    with pytest.raises(ValueError, match="groups name 'params/layers_0/kernel' 2 times"):
        compensate(groups=[NAMES[:1], NAMES[:2]])


@pytest.mark.parametrize("coder", ["rans", "zstd"])
def test_rounded_trees_are_compressed_as_they_are(compensated, coder, tmp_path):
    found, _ = compensated
    small = codec.compress(found, coder=coder)
    jax.tree.map(np.testing.assert_array_equal, codec.decompress(small), found.params)
    size = sum(PARAMS["params"][n.split("/")[1]]["kernel"].size for n in NAMES)
    kernels = 8 * sum(small.tree["params"][n.split("/")[1]]["kernel"].nbytes for n in NAMES)
    assert kernels / size == pytest.approx(found.bits, abs=0.4)
    ggjax.save_file(found, tmp_path / "x", coder=coder)
    told = {t.name: t for t in codec.inspect_file(tmp_path / "x").tensors}
    assert sum(dict(told[n].params)["rise"] for n in NAMES) == pytest.approx(found.rise, rel=0.01)
    jax.tree.map(np.testing.assert_array_equal, codec.load_file(tmp_path / "x", like=PARAMS), found.params)


def test_nothing_more_is_asked_of_a_rounded_tree(compensated, known):
    with pytest.raises(ValueError, match="rounded already: bits and sensitivity cannot"):
        codec.compress(compensated[0], bits=3, sensitivity=known)
    with pytest.raises(ValueError, match="rounded already: centroids and per and mask cannot"):
        codec.compress(compensated[0], centroids=True, per="leaf", mask=None)
