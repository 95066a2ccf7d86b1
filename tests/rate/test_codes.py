"""The codes against codes that are really written out, and against float64 NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
from hypothesis import given, settings
from hypothesis import strategies as hs

from ggjax import rate
from ggjax.rate import _codes, _law
from tests.rate.reference import (
    bin_masses,
    exp_golomb_word,
    expected,
    huffman_words,
    law_of,
    signed_number,
    tree_of,
)

LEVEL_BITS = jax.jit(_law.level_bits)


@pytest.mark.parametrize("step", [2.0**-13, 0.003, 0.05, 1.0])
@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
def test_every_code_matches_the_code_written_out(nu, step):
    tree = tree_of(nu)
    want = expected(tree, step)
    got = rate.report(tree, step).total.bits
    for code in rate.CODES:
        np.testing.assert_allclose(got[code], want[code], rtol=2e-6, atol=2e-6, err_msg=code)


weights = hs.lists(hs.floats(-4, 4, width=16), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(weights, hs.sampled_from([0.125, 0.3, 1.0, 20.0]))
def test_order_of_the_codes(values, step):
    x = jnp.asarray(np.resize(np.float32(values), 64))
    r = rate.report(x, step).total.bits
    slack = 1e-5
    assert 0 <= r["entropy"] <= r["huffman"] + slack and r["huffman"] < r["entropy"] + 1
    for code in ("fixed", "gg", "exp_golomb", "exp_golomb_rank"):
        assert r["entropy"] <= r[code] + slack, code
    want = expected(x, step)
    for code in set(want) & {"entropy", "fixed", "exp_golomb", "exp_golomb_rank", "huffman"}:
        np.testing.assert_allclose(r[code], want[code], rtol=2e-6, atol=2e-6, err_msg=code)


int32_levels = hs.integers(-(2**31) + 1, 2**31 - 1) | hs.integers(-40, 40)


@settings(max_examples=60, deadline=None)
@given(hs.dictionaries(int32_levels, hs.integers(1, 2**22), min_size=1, max_size=50))
def test_any_histogram_of_levels(counts):
    """Levels anywhere in int32, as no array of weights could hold them all."""
    n = sum(counts.values())
    q, c = np.array(sorted(counts)), np.array([counts[k] for k in sorted(counts)])
    x = q.astype(np.float64)
    moments = np.sum(np.abs(x) * c), np.sum(x * x * c)
    pad = (0, 64 - len(q))
    codes = ("entropy", "fixed", "exp_golomb", "exp_golomb_rank")
    levels, padded = np.pad(q, pad).astype(np.int32), np.pad(c, pad).astype(np.float32)
    _, got = _codes.measure(levels, padded, (int(q[0]), int(q[-1])), moments, float(n), codes=codes)
    p = c / n
    golomb = {k: len(exp_golomb_word(signed_number(k))) for k in counts}
    ranked = sum(len(exp_golomb_word(r)) * v for r, v in enumerate(sorted(c, reverse=True)))
    want = {
        "entropy": -np.sum(p * np.log2(p)),
        "fixed": (int(q[-1]) - int(q[0])).bit_length(),
        "exp_golomb": sum(golomb[k] * v for k, v in counts.items()) / n,
        "exp_golomb_rank": (ranked + len(exp_golomb_word(len(q))) + sum(golomb.values())) / n,
    }
    for code in codes:
        np.testing.assert_allclose(got[code], want[code], rtol=2e-6, atol=2e-6, err_msg=code)
    huffman = _codes.huffman_bits(c.tolist()) / n
    assert want["entropy"] - 1e-9 <= huffman < want["entropy"] + 1


@settings(max_examples=30, deadline=None)
@given(hs.lists(hs.integers(1, 10**12), min_size=1, max_size=40))
def test_huffman_is_optimal_for_any_counts(counts):
    total = _codes.huffman_bits(list(counts))
    words = huffman_words(dict(enumerate(counts)))
    assert total == sum(len(words[i]) * c for i, c in enumerate(counts))


@settings(max_examples=200, deadline=None)
@given(hs.lists(int32_levels, min_size=16, max_size=16))
def test_exp_golomb_lengths_are_exact(levels):
    number = np.asarray(_codes.signed_number(jnp.asarray(levels, jnp.int32)))
    np.testing.assert_array_equal(number, [signed_number(v) for v in levels])
    lengths = _codes.golomb_bits(jnp.asarray(number))
    np.testing.assert_array_equal(lengths, [len(exp_golomb_word(k)) for k in number])


def test_exp_golomb_lengths_up_to_the_largest_level():
    big = 2**31 - 1
    q = [0, 1, -1, 2, -2, 3, -3, 127, -128, 2**24 + 1, -(2**30), 2**30, big, -big]
    number = np.asarray(_codes.signed_number(jnp.asarray(q, jnp.int32)))
    np.testing.assert_array_equal(number, [signed_number(v) for v in q])
    lengths = _codes.golomb_bits(jnp.asarray(number))
    np.testing.assert_array_equal(lengths, [len(exp_golomb_word(k)) for k in number])


@settings(max_examples=40, deadline=None)
@given(hs.lists(hs.integers(-30, 30), min_size=2, max_size=40), hs.sampled_from([2.0**-10, 0.3, 7.0]))
def test_gg_is_the_cross_entropy_of_the_fitted_bins(levels, step):
    q = np.resize(levels, 64)
    x = (q * step).astype(np.float32)
    if not x.any():
        assert float(rate.bits(x, step, code="gg")) == 0
        return
    want = -np.mean(np.log2(bin_masses(law_of(x.astype(np.float64)), q, step)))
    np.testing.assert_allclose(rate.bits(x, step, code="gg"), want, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("nu", [0.1, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("step", [1e-4, 0.1, 3.0])
def test_bin_masses_of_the_law_far_into_the_tail(nu, step):
    q = np.unique(np.concatenate([np.arange(30), np.logspace(1.5, 5.5, 40).astype(int)]))
    a, z = 1 / nu, np.abs(q - 0.5)
    t0, t1 = (z * step) ** nu, ((z + 1) * step) ** nu
    upper = sp.gammaincc(a, t0) - sp.gammaincc(a, t1)  # each difference where its terms are small
    mass = np.where(t0 > a, upper, sp.gammainc(a, t1) - sp.gammainc(a, t0)) / 2
    mass[0] = sp.gammainc(a, (step / 2) ** nu)
    law = _law.Law(jnp.float32(nu), jnp.float32(1 / step))
    got = np.asarray(LEVEL_BITS(jnp.asarray(q, jnp.int32), law))
    keep = mass > 1e-280
    np.testing.assert_allclose(got[keep], -np.log2(mass[keep]), rtol=3e-6, atol=3e-6)
    assert np.all(np.isfinite(got)) and np.all(np.diff(got[1:]) > -1e-3)  # and far beyond float64's range


def test_one_outlier_in_the_tail_costs_finitely_many_bits():
    x = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    x[0] = 60.0
    got = rate.bits(jnp.asarray(x), 0.01, code="gg")
    want = expected(jnp.asarray(x), 0.01)["gg"]
    np.testing.assert_allclose(got, want, rtol=1e-5)
