"""Gecko: whatever the exponents, they come back, and the size is that of the code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import baselines

R = np.random.default_rng(0)
MODES = ["delta", "bias", "block_max"]
CASES = {
    "every exponent": np.arange(256),
    "shuffled": R.permutation(256),
    "ends side by side": np.tile([0, 255], 40),
    "as of weights": np.clip(R.geometric(0.5, 1000), 0, 40) * -1 + 125,
    "widths": np.array([100 + (i % 8 == 3) * (2 ** (i // 8) - 1) for i in range(64)]),
    "one": np.array([7]),
    "block and one": np.full(65, 9),
    "none": np.zeros(0),
}


def plain_bits(exponents, mode):
    """The published size in bits, block by block."""
    x = (
        np.concatenate([exponents, np.repeat(exponents[-1:], -len(exponents) % 64)])
        .astype(int)
        .reshape(-1, 8, 8)
    )
    total = 0
    for block in x:
        if mode == "block_max":
            total, rows, sign = total + 8, block.max() - block, 0
        elif mode == "bias":
            rows, sign = block - 127, 1
        else:
            total, rows, sign = total + 64, block[1:] - block[0], 1
        for row in rows:
            width = int(np.abs(row).max()).bit_length()
            total += 3 + 8 * ((8 if width >= 7 else width) + sign)
    return total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_exponents_come_back_and_the_size_is_the_published_one(mode, case):
    exponents = CASES[case].astype(np.uint8)
    code = baselines.gecko_encode(jnp.asarray(exponents), mode)
    size = 8 * code.bases.size + 3 * code.widths.size + int(code.bits)
    assert size == plain_bits(exponents, mode)
    cut = code._replace(payload=code.payload[: -(-int(code.bits) // 8)])
    np.testing.assert_array_equal(baselines.gecko_decode(cut, exponents.shape, mode), exponents)


@pytest.mark.parametrize("mode", MODES)
def test_the_measure_is_the_size_of_the_code(mode):
    w = R.normal(size=(20, 50)).astype(np.float32)
    w[0, :4] = 0, np.inf, np.nan, 1e-40
    exponents = (w.view(np.uint32) >> 23 & 255).ravel()
    want = 24 + plain_bits(exponents, mode) / w.size
    params = {"w": jnp.asarray(w), "bias": jnp.ones(3)}
    for measure in (baselines.gecko_bits, jax.jit(baselines.gecko_bits, static_argnames="mode")):
        np.testing.assert_allclose(measure(params, mode=mode), want, rtol=1e-6)


def test_dtypes_and_trees_of_every_kind():
    w = R.normal(size=(16, 64))
    bits = {
        d: float(baselines.gecko_bits({"w": jnp.asarray(w, d)}))
        for d in (jnp.float32, jnp.bfloat16, jnp.float16)
    }
    np.testing.assert_allclose(bits[jnp.float32] - bits[jnp.bfloat16], 16, atol=0.05)
    assert 13 < bits[jnp.float16] < 17
    assert baselines.gecko_bits({"w": jnp.zeros((0, 3))}) == 0
    assert baselines.gecko_bits({"w": jnp.asarray(1.0)}, mask=None) == 24 + 64 + 7 * 3 + 56
    assert baselines.gecko_bits({"w": jnp.zeros((8, 8))}) == 24 + (64 + 21 + 56) / 64


def test_block_max_takes_less_than_differences_on_independent_weights():
    params = {"w": jnp.asarray(R.normal(size=(100, 640)).astype(np.float32))}
    delta, block = (float(baselines.gecko_bits(params, m)) - 24 for m in ("delta", "block_max"))
    assert block < delta - 1 < 4


def test_wrong_arguments():
    with pytest.raises(ValueError, match="mode must be .*got 'row'"):
        baselines.gecko_encode(jnp.zeros(3, jnp.uint8), "row")
    with pytest.raises(ValueError, match="exponents must be uint8, got int32"):
        baselines.gecko_encode(jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"expected 2 blocks for the shape \(65,\), got 1"):
        baselines.gecko_decode(baselines.gecko_encode(jnp.zeros(3, jnp.uint8)), (65,))
    with pytest.raises(ValueError, match="leaf 'w': expected float32, bfloat16 or float16, got float8_e4m3fn"):
        baselines.gecko_bits({"w": jnp.ones((2, 2), jnp.float8_e4m3fn)})


@pytest.mark.parametrize("mode", ["delta", "bias", "block_max"])
def test_shards_on_an_explicit_mesh_are_coded_as_the_whole(mode):
    w = jax.random.normal(jax.random.key(0), (16, 24))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    spread = jax.device_put(w, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert float(baselines.gecko_bits({"w": spread}, mode)) == float(baselines.gecko_bits({"w": w}, mode))
    exponents = jnp.arange(160, dtype=jnp.uint8).reshape(16, 10)
    spread = jax.device_put(exponents, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    code, whole = (baselines.gecko_encode(x, mode) for x in (spread, exponents))
    jax.tree.map(np.testing.assert_array_equal, code, whole)


def test_the_bias_is_that_of_the_dtype():
    w = jnp.float16(0.1) * jax.random.normal(jax.random.key(0), (64, 64), jnp.float16)
    w = jnp.where(jnp.abs(w) < 1e-4, jnp.float16(0.1), w)  # no subnormal ones, which float32 does not have here
    found, wide = (baselines.gecko_bits({"w": x}, "bias") for x in (w, w.astype(jnp.float32)))
    assert float(found) == pytest.approx(float(wide) - 13)  # bits of the mantissa
