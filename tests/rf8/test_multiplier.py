"""The multiplier of two shifters and an adder against products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import rf8

CODES = np.arange(256, dtype=np.uint8)


def every_code(exponent: int = 0) -> rf8.RF8Array:
    return rf8.RF8Array(jnp.asarray(CODES), jnp.full((1,), exponent, jnp.int8), jnp.dtype(jnp.float32))


@pytest.mark.parametrize("exponent", [-20, 0, 7])
def test_products_are_exact(exponent):
    x = np.array([-2048, -2047, -1, 0, 1, 3, 1000, 2048])[:, None]
    found = rf8.multiply_adds(jnp.asarray(x, jnp.int32), every_code(exponent))
    assert {a.dtype for a in found} == {jnp.dtype(jnp.int32)} and found.products.shape == (8, 256)
    got = np.asarray(found.products, np.float64) * 2.0 ** (exponent - 4)
    assert np.array_equal(got, x * rf8.values() * 2.0**exponent)


def test_operations_are_counted():
    """By the digits of the weights themselves: how many powers of two they are the sum or difference of."""
    found = rf8.multiply_adds(jnp.int32(5), every_code())
    digits = []
    for value in np.abs(rf8.values() * 16).astype(int):
        powers = {1 << i for i in range(24)}
        if value == 0:
            digits.append(0)
        elif value in powers:
            digits.append(1)
        else:
            assert any(abs(value - p) in powers for p in powers)
            digits.append(2)
    assert found.shifts.tolist() == digits
    assert found.additions.tolist() == [max(n - 1, 0) for n in digits]


def test_a_dot_product_in_whole_numbers():
    w = jax.random.normal(jax.random.key(0), (24, 8)) * 0.1
    x = jax.random.randint(jax.random.key(1), (24, 1), -128, 128)
    q = rf8.encode(w, axis=0)
    found = jax.jit(rf8.multiply_adds)(x, q)
    total = np.asarray(found.products, np.int64).sum(0) * 2.0 ** (np.asarray(q.exponents, np.float64)[0] - 4)
    want = (np.asarray(x, np.float64) * np.asarray(rf8.decode(q), np.float64)).sum(0)
    assert np.array_equal(total, want)
    held = jax.jit(lambda: rf8.multiply_adds(x, q))()  # both are known while it is traced
    assert all(np.array_equal(a, b) for a, b in zip(found, held, strict=True))
    mapped = jax.vmap(rf8.multiply_adds, (None, 1), 1)(x[:, 0], q)
    assert all(np.array_equal(a, b) for a, b in zip(found, mapped, strict=True))


def test_wrong_arguments():
    q = rf8.encode(jnp.ones(3))
    for x in (1.0, jnp.ones(3), True):
        with pytest.raises(TypeError, match="integer dtype, got"):
            rf8.multiply_adds(x, q)
    for x in (2049, -2049, np.array([0, 2**40]), np.array([0, -(2**31)])):
        with pytest.raises(ValueError, match=r"between -2048 and 2048, got -?\d+"):
            rf8.multiply_adds(x, q)
    with pytest.raises(TypeError, match="RF8Array"):
        rf8.multiply_adds(1, jnp.ones(3))
    broken = jax.jit(rf8.encode)(jnp.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="exponent 127"):
        rf8.multiply_adds(1, broken)
    with pytest.raises(ValueError):
        rf8.multiply_adds(np.ones(2, np.int32), q)
    assert rf8.multiply_adds(np.zeros((0, 3), np.int8), q).products.shape == (0, 3)
