"""Compressed trees on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec
from tests.codec.helpers import bits_of, weights


def test_eight_devices_decode_the_same_as_one():
    small = codec.compress({"x": weights((100, 120))}, lossless=True)
    want = np.asarray(codec.decompress(small)["x"])
    for device in jax.devices()[::3]:
        placed = jax.device_put(small, device)
        np.testing.assert_array_equal(np.asarray(jax.jit(codec.decompress)(placed)["x"]), want)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_sharded_leaves_are_coded_by_shard_and_come_back_sharded(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    specs = {"both": P("x", "y"), "rows": P("x"), "columns": P(None, "y"), "whole": P()}
    x = weights((128, 96))
    tree = {k: jax.device_put(x, NamedSharding(mesh, s)) for k, s in specs.items()}
    for options in ({"step": 2**-8}, {"lossless": True}, {"step_per_std": 0.25}):
        want = codec.decompress(codec.compress({"x": x}, **options))["x"]
        small = codec.compress(tree, **options)
        back = codec.decompress(small)
        for k in tree:
            np.testing.assert_array_equal(np.asarray(back[k]), np.asarray(want))
            if k != "whole":
                assert back[k].sharding.is_equivalent_to(tree[k].sharding, 2)
                assert isinstance(small.tree[k], codec.Blocks)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shards_keep_every_bit_under_jit(dtype):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    width = 8 * jnp.dtype(dtype).itemsize
    exponent = (1 << (width - 1)) - (1 << jnp.finfo(dtype).nmant)
    bits = np.random.default_rng(0).integers(0, 1 << width, (64, 96), dtype=np.uint64)
    bits = np.where(
        bits & np.uint64(1 << jnp.finfo(dtype).nmant), bits | np.uint64(exponent), bits & ~np.uint64(exponent)
    )  # NaN, subnormal
    x = bits.astype(f"u{width // 8}").view(dtype)
    placed = jax.device_put(x, NamedSharding(mesh, P("x", "y")))
    small = codec.compress({"x": placed}, lossless=True)
    assert all(isinstance(b, codec.Coded) for b in small.tree["x"].blocks)  # of 768 weights each
    for got in (codec.decompress(small)["x"], jax.jit(codec.decompress)(small)["x"]):
        np.testing.assert_array_equal(bits_of(got), bits_of(x))
    part = codec.Blocks(
        **{**vars(small.tree["x"]), "blocks": small.tree["x"].blocks[:3], "starts": small.tree["x"].starts[:3]}
    )
    with pytest.raises(ValueError, match=r"shape \(64, 96\) has 2304 of its 6144 elements in this process"):
        jax.jit(codec.decompress)(part)
