"""Where the codec may be called: closed over by traced functions, with switches of JAX on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec, rf8
from tests.codec.helpers import bits_of, weights

WAYS = {
    "jit": lambda f: jax.jit(f)(),
    "scan": lambda f: jax.tree.map(lambda x: x[1], jax.lax.scan(lambda c, _: (c, f()), 0, None, length=2)[1]),
    "vmap": lambda f: jax.tree.map(lambda x: x[0], jax.vmap(lambda _: f())(jnp.arange(2.0))),
    "grad": lambda f: jax.grad(lambda x: (x * 2, f()), has_aux=True)(1.0)[1],
    "eval_shape": jax.eval_shape,
}


@functools.cache
def compressed():
    """Every kind of coded leaf, and what each decodes to."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    w = weights((48, 50))
    small = {
        "step": codec.compress(w, step=2**-8),
        "zstd": codec.compress(w, step=2**-8, coder="zstd"),
        "rf8": codec.compress(w, rf8=True),
        "lossless": codec.compress(w.astype(jnp.bfloat16), lossless=True),
        "shards": codec.compress(jax.device_put(w, NamedSharding(mesh, P("x"))), step=2**-8),
    }
    return small, {k: codec.decompress(v) for k, v in small.items()}


def test_every_kind_is_there():
    small, _ = compressed()
    assert isinstance(small["shards"].tree, codec.Blocks)
    assert [small[k].tree.meta.coder for k in ("step", "zstd")] == ["rans", "zstd"]


@pytest.mark.parametrize("way", WAYS)
def test_a_traced_function_may_close_over_compressed_weights(way):
    small, want = compressed()
    for k, x in {k: WAYS[way](lambda k=k: codec.decompress(small[k])) for k in small}.items():
        assert (x.dtype, x.shape) == (want[k].dtype, want[k].shape)
        if way != "eval_shape":
            np.testing.assert_array_equal(bits_of(x), bits_of(want[k]))


@pytest.mark.parametrize("way", WAYS)
def test_a_traced_function_may_close_over_weights_to_compress(way):
    w, sizes = weights((48, 50)), []

    def f():
        sizes.append([codec.compress(w, **options).nbytes for options in ({"bits": 4}, {"rf8": True})])
        return jnp.zeros(3)

    WAYS[way](f)
    assert sizes[0] == [codec.compress(w, bits=4).nbytes, codec.compress(w, rf8=True).nbytes]


@pytest.mark.parametrize("way", ["jit", "vmap"])
def test_a_traced_function_may_read_a_file(way, tmp_path):
    w = weights((48, 50))
    codec.save_file({"w": w, "b": jnp.ones(3)}, tmp_path / "x", rf8=True)
    got = WAYS[way](lambda: codec.load_file(tmp_path / "x"))
    np.testing.assert_array_equal(got["w"], rf8.round(w))
    np.testing.assert_array_equal(got["b"], np.ones(3))


def test_keep_rf8_of_closed_over_weights():
    small, _ = compressed()
    q = jax.jit(lambda: codec.decompress(small["rf8"], keep_rf8=True))()
    np.testing.assert_array_equal(q.codes, rf8.encode(weights((48, 50))).codes)
    np.testing.assert_array_equal(rf8.decode(q), rf8.round(weights((48, 50))))


def everything(w, tmp_path):
    """Bytes of files, and arrays, of all kinds."""
    out = []
    kinds = {"bits": 4, "centroids": True}, {"rf8": True}, {"lossless": True}, {"snr_db": 20}
    for i, options in enumerate(kinds):
        path = tmp_path / str(i)
        codec.save_file({"w": w, "b": np.ones(3, np.float32)}, path, **options)
        small = codec.compress({"w": w}, **options)
        out += [path.read_bytes(), codec.load_file(path), codec.decompress(small)]
        out.append(jax.jit(codec.decompress)(small))
        codec.decompress_file(path, tmp_path / f"plain{i}", overwrite=True)
        codec.compress_file(tmp_path / f"plain{i}", tmp_path / f"again{i}", overwrite=True, **options)
        out.append((tmp_path / f"again{i}").read_bytes())
    return out


SWITCHES = {
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "x64": lambda: jax.enable_x64(True),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_of_jax_change_nothing(switch, tmp_path):
    w = weights((48, 50))
    want = everything(w, tmp_path)
    with SWITCHES[switch]():
        got = everything(w, tmp_path)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if isinstance(b, bytes):
            assert a == b
        else:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(bits_of(a), bits_of(b))


def test_nan_weights_are_kept_while_jax_looks_for_nan():
    x = np.where(np.arange(3000) % 7, 1, np.nan).astype(np.float32)
    with jax.debug_nans(True):
        got = codec.decompress(codec.compress(x, lossless=True))
    np.testing.assert_array_equal(bits_of(got), bits_of(x))
