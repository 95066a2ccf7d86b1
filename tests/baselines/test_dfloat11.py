"""DFloat11's size: an optimal prefix code of the exponents, and the published overhead."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import baselines
from ggjax.baselines._dfloat11 import code_lengths

R = np.random.default_rng(0)


def huffman_bits(counts):
    """The bits of an optimal code: the sum of all merges."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def entropy(counts):
    p = counts[counts > 0] / counts.sum()
    return -np.sum(p * np.log2(p))


@pytest.mark.parametrize("seed", range(5))
def test_lengths_are_those_of_an_optimal_prefix_code(seed):
    counts = np.random.default_rng(seed).geometric(0.02, 200) * np.random.default_rng(seed).integers(0, 2, 200)
    lengths = code_lengths(counts)
    assert np.sum(counts * lengths) == huffman_bits(counts)
    assert np.sum(2.0 ** -lengths[counts > 0]) == 1 and not lengths[counts == 0].any()


def test_no_word_is_longer_than_the_limit():
    fibonacci = [1, 1]
    while len(fibonacci) < 45:
        fibonacci.append(sum(fibonacci[-2:]))
    counts = np.array(fibonacci)
    assert code_lengths(counts, longest=100).max() == 44
    lengths = code_lengths(counts)
    assert lengths.max() == 32 and np.sum(2.0**-lengths) == 1
    assert huffman_bits(counts) <= np.sum(counts * lengths) < 1.001 * huffman_bits(counts)


@pytest.mark.parametrize(("dtype", "raw"), [(jnp.bfloat16, 8), (jnp.float32, 24), (jnp.float16, 11)])
def test_the_size_is_made_of_its_parts(dtype, raw):
    w = jnp.asarray(R.normal(size=(100, 300)), dtype)
    size = baselines.dfloat11_bits({"w": w})
    exponents = np.frexp(np.abs(np.asarray(w, np.float64)))[1]
    if dtype == jnp.float16:
        exponents = np.maximum(exponents, -14)  # subnormals have one exponent field
    counts = np.unique(exponents, return_counts=True)[1]
    bits = huffman_bits(counts)
    assert size.sign_and_mantissa == raw and size.exponents == bits / w.size
    assert entropy(counts) <= size.exponents < entropy(counts) + 1
    chunks = -(-bits // 64)
    assert size.gaps == 5 * chunks / w.size and size.positions == 32 * -(-chunks // 512) / w.size
    np.testing.assert_allclose(size.gaps + size.positions, 5.0625 / 64 * size.exponents, rtol=0.03)
    assert size.tables == 2048 / w.size and size.total == pytest.approx(sum(size[1:]))


def test_a_code_for_each_group():
    params = {"a": jnp.full((64, 64), 1.0), "c": jnp.tile(jnp.array([1.0, 2.0]), (64, 32))}
    alone = baselines.dfloat11_bits(params, group=lambda name: name)
    assert alone.exponents == 1.0  # a single symbol takes one bit too
    assert alone.tables == 2 * baselines.dfloat11_bits(params).tables
    counts = np.array([3, 1])
    assert baselines.dfloat11_bits(params).exponents == huffman_bits(counts) / 4


def test_all_bit_patterns_and_empty_trees():
    w = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16).reshape(256, 256)
    assert baselines.dfloat11_bits({"w": w}).exponents == 8
    assert baselines.dfloat11_bits({"w": jnp.zeros((0, 3))}) == (0,) * 6
    assert baselines.dfloat11_bits({"w": jnp.zeros((64, 64))}).exponents == 1


def test_wrong_arguments():
    with pytest.raises(ValueError, match="leaf 'w': expected float32, bfloat16 or float16, got float8_e5m2"):
        baselines.dfloat11_bits({"w": jnp.ones((2, 2), jnp.float8_e5m2)})
    with pytest.raises(TypeError, match="leaf 'w' is traced"):
        jax.jit(baselines.dfloat11_bits)({"w": jnp.ones((2, 2))})
