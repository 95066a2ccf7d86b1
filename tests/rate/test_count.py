"""Counting outside jit: any range, on the host and on the device, few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import rate
from ggjax.rate import _codes, _count, _histogram
from tests.rate.reference import TRACED, expected, tree_of


@pytest.fixture
def on_the_device(monkeypatch):
    """Small leaves are counted on the device too, as large ones are."""
    monkeypatch.setattr(_count, "_SMALL", 0)


def test_the_device_counts_as_the_host_does(monkeypatch):
    tree = tree_of(0.7) | {"s": jnp.float32(0.3), "z": jnp.zeros((2, 3)), "h": jnp.ones(5, jnp.bfloat16)}
    host = rate.report(tree, 0.003)
    monkeypatch.setattr(_count, "_SMALL", 0)
    device = rate.report(tree, 0.003)
    for a, b in zip((*host.rows, host.total), (*device.rows, device.total), strict=True):
        assert (a.name, a.size, a.levels) == (b.name, b.size, b.levels)
        np.testing.assert_allclose([a.nu, a.std], [b.nu, b.std], rtol=2e-6, atol=1e-7)  # sums are float32 there
        np.testing.assert_allclose(list(a.bits.values()), list(b.bits.values()), rtol=2e-6)


@pytest.mark.parametrize("low, high", [(-3e5, 3e5), (5e5, 5.5e5), (-2e7, 2e7), (-2e9, 2e9)])
def test_any_range_of_levels_outside_jit(low, high):
    """Small ranges far from zero, ranges beyond the traced table, and ranges too wide for any table."""
    q = np.linspace(low, high, 300, dtype=np.float32).round()
    x = jnp.asarray(np.concatenate([q, q[::7]]).astype(np.float32))
    want = expected({"x": x}, 1.0)
    got = rate.report(x, 1.0).total.bits
    for code in want:
        np.testing.assert_allclose(got[code], want[code], rtol=2e-6, err_msg=code)
    traced = {c: float(TRACED[c](x, 1.0)) for c in ("entropy", "fixed")}
    assert traced["fixed"] == want["fixed"]
    if high - low < rate.TRACED_LEVELS:
        np.testing.assert_allclose(traced["entropy"], want["entropy"], rtol=2e-6)
    else:
        assert np.isnan(traced["entropy"])


def test_ranges_too_wide_for_a_table_on_the_device(on_the_device):
    x = jnp.asarray(np.linspace(-2e7, 2e7, 300, dtype=np.float32).round())
    want, got = expected(x, 1.0), rate.report(x, 1.0).total.bits
    np.testing.assert_allclose([got[c] for c in want], list(want.values()), rtol=2e-6)


def test_new_values_and_new_shapes_of_small_leaves_compile_nothing():
    programs = (_histogram.summarize, _histogram.count, _codes.measure)

    def run(step, sizes):
        tree = {f"w{i}": np.linspace(-1, 1, n, dtype=np.float32) for i, n in enumerate(sizes)}
        rate.bits(tree, step)
        rate.report(tree, step)
        return [f._cache_size() for f in programs]

    assert run(0.01, range(1, 20)) == run(0.011, range(50, 90))


def test_a_second_call_on_a_large_leaf_compiles_nothing(on_the_device):
    tree = tree_of()
    programs = (_histogram.summarize, _histogram.count, _codes.measure)

    def run(step):
        rate.bits(tree, step)
        rate.report(tree, step)
        return [f._cache_size() for f in programs]

    assert run(0.01) == run(0.011)


def test_large_leaves_are_counted_in_parts():
    x = jax.random.normal(jax.random.key(0), (8, 3, 1 << 16))
    for y in (x, x.reshape(-1), x.reshape(3, -1)):
        words = _histogram.count(y, 0.01, -600, _histogram.empty(1024))
        q = np.rint(np.asarray(y) / np.float32(0.01)).astype(int).ravel() + 600
        want = np.bincount(q[(q >= 0) & (q < 1024)], minlength=1024)
        np.testing.assert_array_equal(_histogram.whole(np.asarray(words)), want)
    program = _histogram.count.lower(x, 0.01, -600, _histogram.empty(1024)).compile()
    assert program.memory_analysis().temp_size_in_bytes < x.nbytes / 4
    odd = jnp.full((1 << 20) + 1, 0.5)  # no way to cut it
    assert float(rate.bits(odd, 0.25)) == 0 and rate.report(odd, 0.25, codes=()).total.levels == 1


def test_counts_beyond_32_bits_carry():
    total = jnp.array([[2**32 - 3, 5, 0], [0, 7, 0]], jnp.uint32)
    total = _histogram.count(jnp.array([0.0] * 4 + [1.0] * 6), 1.0, 0, total)
    np.testing.assert_array_equal(_histogram.whole(np.asarray(total)), [2**32 + 1, 7 * 2**32 + 11, 0])
    np.testing.assert_allclose(_histogram.as_float(total), [2.0**32 + 1, 7 * 2.0**32 + 11, 0], rtol=1e-7)


def test_halves_round_to_even_and_half_precision_is_widened():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])  # levels 0 2 2 0 -2 -2
    np.testing.assert_allclose(rate.bits(x, 1.0), np.log2(3), rtol=1e-6)
    tree = tree_of()
    for dtype in (jnp.bfloat16, jnp.float16):
        half = jax.tree.map(lambda v, dtype=dtype: v.astype(dtype), tree)
        wide = jax.tree.map(lambda v: v.astype(jnp.float32), half)
        assert rate.report(half, 0.003) == rate.report(wide, 0.003)


def test_float64_weights_keep_their_levels():
    with jax.enable_x64(True):
        x = jnp.asarray([1.0, 1.0 + 2.0**-29, 3.0, 3.0], jnp.float64)  # two levels only float64 tells apart
        assert float(rate.bits(x, 2.0**-29)) == 1.5
        assert float(rate.bits({"x": x, "y": jnp.ones(4, jnp.float32)}, 0.5, code="huffman")) == 1
        assert rate.penalty(x).dtype == jnp.float64
