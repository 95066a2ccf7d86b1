"""What the tests of the codec share."""

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ggjax import codec, gennorm

KEY = jax.random.key(0)


def weights(size=(300, 400), nu=0.8, scale=0.05, dtype=jnp.float32):
    return gennorm.sample(KEY, nu, size, dtype, scale=scale)


def bits_of(x):
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def entropy(q):
    p = np.unique(q, return_counts=True)[1] / np.size(q)
    return float(-(p * np.log2(p)).sum())


def round_trip(x, **options):
    """The decoded array, once on the host and once under jit, which must agree."""
    small = codec.compress({"x": x}, **options)
    host = codec.decompress(small)["x"]
    traced = jax.jit(codec.decompress)(small)["x"]
    assert host.dtype == traced.dtype == x.dtype and host.shape == traced.shape == x.shape
    np.testing.assert_array_equal(bits_of(host), bits_of(traced))
    return np.asarray(host), small


def tree():
    return {
        "dense": {"kernel": weights((60, 70)), "bias": jnp.arange(70.0)},
        "half": weights((40, 30), dtype=jnp.bfloat16),
        "scalar": jnp.float32(2.5),
        "empty": jnp.zeros((0, 3)),
        "ids": jnp.arange(7),
        "none": None,
    }


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def checkpoint(path, metadata=None):
    arrays = {
        "layer.weight": np.asarray(weights((50, 60))),
        "layer.bias": np.ones(60, np.float32),
        "ids": np.arange(5, dtype=np.int64),
        "double": np.linspace(0, 1, 2000),
    }
    safetensors.numpy.save_file(arrays, path, metadata)
    return arrays
