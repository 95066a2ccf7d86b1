"""Compressed files: round trips, golden bytes, other readers, damage, kills."""

import base64
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec, gennorm
from ggjax.codec.container import _safetensors, _sources
from tests.codec import fuzz_codec, plain_decoder

KEY = jax.random.key(0)
REPO = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def weights(shape, nu=0.8, dtype=jnp.float32):
    return gennorm.sample(KEY, nu, shape, dtype, scale=0.05)


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


OPTIONS = [
    {"step": 2**-8},
    {"bits": 3, "centroids": True},
    {"bits": 3, "dead_zone": 0.2},
    {"rf8": True},
    {"lossless": True},
    {"step": 1e-6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_round_trip(tmp_path, options):
    path = tmp_path / "model.ggjax.safetensors"
    nbytes = codec.save_file(tree(), path, **options)
    assert nbytes == path.stat().st_size
    want = codec.decompress(codec.compress(tree(), **options))
    assert_same(codec.load_file(path, like=tree()), want)
    nested = codec.load_file(path)
    del want["none"]
    assert_same(nested, want)
    assert codec.verify_file(path) == codec.inspect_file(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_decoder_written_from_the_specification_reads_our_files(tmp_path, options):
    scale = np.exp(np.random.default_rng(0).normal(size=(300, 1)) * 2).astype(np.float32)
    more = {
        "rows": np.asarray(weights((300, 250))) * scale,
        "columns": (np.asarray(weights((300, 250))) * scale).T,
        "long": weights((300_000,)),
        "outlier": jnp.append(weights((5000,)), 100.0),
        **tree(),
    }
    path = tmp_path / "x.safetensors"
    codec.save_file(more, path, **options)
    got, want = plain_decoder.decode_file(path), fuzz_codec.flat(codec.load_file(path))
    assert {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in got.items()} == want


def test_any_safetensors_reader_lists_it(tmp_path):
    path = tmp_path / "x.safetensors"
    codec.save_file(tree(), path, step=2**-8)
    with safetensors.safe_open(path, "np") as f:
        assert set(f.keys()) == {"dense/kernel", "dense/bias", "half", "scalar", "empty", "ids"}
        assert list(f.metadata()) == ["ggjax"] and json.loads(f.metadata()["ggjax"])["version"] == 1
        kernel = f.get_tensor("dense/kernel")
        assert kernel.dtype == np.uint8 and kernel.ndim == 1
        np.testing.assert_array_equal(f.get_tensor("dense/bias"), np.arange(70.0))


def test_compressed_trees_save_the_same(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    codec.save_file(tree(), a, bits=4)
    codec.save_file(codec.compress(tree(), bits=4), b)
    assert a.read_bytes() == b.read_bytes()
    with pytest.raises(ValueError, match="compressed already; step cannot be changed"):
        codec.save_file(codec.compress(tree(), bits=4), b, step=1)


def golden_tree():
    i = np.arange(6000)
    w = (((i * 7919) % 4096 - 2048) ** 3 / 2.0**33).astype(np.float32)
    rows = w.reshape(60, 100) * 2.0 ** (np.arange(60) % 8)[:, None].astype(np.float32)
    return {"w": w, "big": np.tile(rows, (20, 1)), "b": i[:9], "h": w[:2000].astype(jnp.bfloat16)}


GOLDEN = {
    "step": ({"step": 2.0**-6}, "10bb60c9beca8185"),
    "lossless": ({"lossless": True}, "d1586160ed9ed9a3"),
    "rf8": ({"rf8": True}, "7bd4e9acbd66935e"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_of_version_1(tmp_path, name):
    """These change with the version of the format only."""
    options, want = GOLDEN[name]
    codec.save_file(golden_tree(), tmp_path / "x", **options)
    assert hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()[:16] == want


@pytest.mark.parametrize("name", GOLDEN)
def test_files_of_version_1_are_read_for_ever(tmp_path, name):
    """golden.json holds one small file of each kind, and the hash of what is in it."""
    with open(os.path.join(os.path.dirname(__file__), "golden.json")) as f:
        stored = json.load(f)[name]
    (tmp_path / "x").write_bytes(base64.b64decode(stored["file"]))
    held = codec.load_file(tmp_path / "x")
    assert {k: hashlib.sha256(np.asarray(v).tobytes()).hexdigest()[:16] for k, v in held.items()} == stored[
        "held"
    ]


def test_names_that_cannot_be(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ValueError, match="a tensor cannot have the name '__metadata__'"):
        codec.save_file({"__metadata__": jnp.ones(3), "w": jnp.ones(3)}, path, lossless=True)
    with pytest.raises(ValueError, match="a name that is not valid text"):
        codec.save_file({"\ud800": jnp.ones(3)}, path, lossless=True)
    with pytest.raises(ValueError, match="two tensors of the name 'a/b'"):
        codec.save_file({"a": {"b": jnp.ones(3)}, "a/b": jnp.ones(3)}, path, lossless=True)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_names_of_any_text(tmp_path):
    names = ["", "a@0", "\n", "\u00e9\u4e2d", '"', "a\\b", "[/x]"]
    codec.save_file({n: jnp.full(2000, i * 1.0) for i, n in enumerate(names)}, tmp_path / "x", step=0.5)
    held = codec.load_file(tmp_path / "x", like={n: jnp.zeros(2000) for n in names})
    assert [float(held[n][0]) for n in names] == [i * 1.0 for i in range(len(names))]


def test_names_and_places(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"a": {"b": jnp.ones(3)}, "list": [jnp.zeros(2), jnp.ones(2)]}, path, lossless=True)
    assert set(codec.load_file(path)["list"]) == {"0", "1"}
    assert set(codec.load_file(path, mask=lambda name: name.startswith("a"))) == {"a"}
    codec.save_file(jnp.ones(3), path, lossless=True)
    np.testing.assert_array_equal(codec.load_file(path), np.ones(3))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros((3, 4)), "v": jnp.zeros(1)}, "leaf 'v' of like is not in .*x, which has 1 leaves"),
        ({"w": jnp.zeros((4, 3))}, r"leaf 'w' has shape \(4, 3\) in like, \(3, 4\) in .*x"),
        ({"w": jnp.zeros((3, 4), jnp.bfloat16)}, "leaf 'w' has dtype bfloat16 in like, float32 in .*x"),
    ],
)
def test_like_must_fit(tmp_path, like, message):
    codec.save_file({"w": jnp.zeros((3, 4))}, tmp_path / "x", lossless=True)
    with pytest.raises(ValueError, match=message):
        codec.load_file(tmp_path / "x", like=like)


def test_like_may_hold_numbers(tmp_path):
    tree = {"w": jnp.ones(2000), "n": 7, "x": 0.5}
    codec.save_file(tree, tmp_path / "x", lossless=True)
    stored = codec.load_file(tmp_path / "x")
    assert int(stored["n"]) == 7 and float(stored["x"]) == 0.5


def test_sharded_leaves_in_and_out(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    x = weights((128, 96))
    both = NamedSharding(mesh, P("x", "y"))
    path = tmp_path / "x"
    codec.save_file({"w": jax.device_put(x, both), "b": jnp.ones(5)}, path, step=2**-8)
    assert [t.name for t in codec.inspect_file(path).tensors][:3] == ["b", "w@0,0", "w@0,48"]
    want = np.asarray(codec.decompress(codec.compress({"w": x}, step=2**-8))["w"])
    np.testing.assert_array_equal(codec.load_file(path)["w"], want)
    np.testing.assert_array_equal(plain_decoder.decode_file(path)["w"], want)
    like = {"w": jax.ShapeDtypeStruct((128, 96), jnp.float32, sharding=both), "b": jnp.ones(5)}
    back = codec.load_file(path, like=like)
    assert back["w"].sharding == both
    np.testing.assert_array_equal(np.asarray(back["w"]), want)
    one = codec.load_file(path, sharding=jax.devices()[3])
    assert one["w"].devices() == one["b"].devices() == {jax.devices()[3]}


# From checkpoint to checkpoint.


def checkpoint(path, metadata=None):
    arrays = {
        "layer.weight": np.asarray(weights((50, 60))),
        "layer.bias": np.ones(60, np.float32),
        "ids": np.arange(5, dtype=np.int64),
        "double": np.linspace(0, 1, 2000),
    }
    safetensors.numpy.save_file(arrays, path, metadata)
    return arrays


def test_checkpoints_of_others_come_back_byte_for_byte(tmp_path):
    source, small, back = (tmp_path / n for n in ("a.safetensors", "b.safetensors", "c.safetensors"))
    checkpoint(source, {"format": "pt"})
    codec.compress_file(source, small, lossless=True)
    assert codec.inspect_file(small).original == {"format": "pt"}
    codec.decompress_file(small, back)
    assert back.read_bytes() == source.read_bytes()
    with pytest.raises(ValueError, match="compressed already"):
        codec.compress_file(small, tmp_path / "d", lossless=True)
    with pytest.raises(codec.FormatError, match="not a compressed file"):
        codec.decompress_file(source, tmp_path / "d")
    for f, path, options in ((codec.compress_file, source, {"step": 1.0}), (codec.decompress_file, small, {})):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="is the source: choose another target"):
            f(path, path, overwrite=True, **options)
        assert path.read_bytes() == before


def test_float64_and_float8_keep_their_dtype(tmp_path):
    source, small, back = (tmp_path / n for n in ("a", "b", "c"))
    x = np.random.default_rng(0).normal(size=2000)
    arrays = {"d": x, "e": x.astype(jnp.float8_e4m3fn), "f": x.astype(jnp.float8_e5m2)}
    pieces = [
        _safetensors.Tensor(n, _safetensors.NAMES[a.dtype], a.shape, [_safetensors.as_bytes(a)])
        for n, a in arrays.items()
    ]
    _safetensors.write(source, pieces, dict)
    for options in ({"lossless": True}, {"step": 2**-6}, {"rf8": True}):
        codec.compress_file(source, small, overwrite=True, **options)
        codec.decompress_file(small, back, overwrite=True)
        with _safetensors.opened(back) as f:
            assert [e.dtype for e in f.header.entries.values()] == ["F64", "F8_E4M3", "F8_E5M2"]
        if "lossless" in options:
            assert back.read_bytes() == source.read_bytes()


def test_headers_are_those_of_the_library(tmp_path):
    path = tmp_path / "x"
    arrays = checkpoint(path, {"format": "np"})
    with _safetensors.opened(path) as f:
        assert f.header.metadata == {"format": "np"}
        for name, want in arrays.items():
            np.testing.assert_array_equal(_safetensors.read_array(f, name), want)


def test_nothing_is_overwritten_unless_asked(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    checkpoint(source)
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        codec.compress_file(source, target, lossless=True)
    assert target.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a folder or a device"):
        codec.save_file({"w": jnp.ones(3)}, tmp_path / "pipe", lossless=True)
    with pytest.raises(OSError, match="there is no folder"):
        codec.save_file({"w": jnp.ones(3)}, tmp_path / "nowhere" / "x", lossless=True)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint(tmp_path / "a")
    codec.compress_file(tmp_path / "a", tmp_path / "b", lossless=True)
    codec.verify_file(tmp_path / "b")
    with pytest.raises(FileExistsError):
        codec.compress_file(tmp_path / "a", tmp_path / "b", lossless=True)


def test_what_is_open_is_of_one_version(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": jnp.zeros(3000)}, path, step=1.0)
    with _sources.opened(path) as checkpoint:
        codec.save_file({"w": jnp.ones(5000)}, path, step=1.0)
        ((_, array),) = _sources.load(checkpoint.leaves, ["w"])
    assert array.shape == (3000,) and not array.any()


def test_threads_may_save_to_one_path(tmp_path):
    path = tmp_path / "x"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: codec.save_file({"w": jnp.full(3000, i * 1.0)}, path, step=1.0), range(12)))
    codec.verify_file(path)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        codec.save_file({"w": jnp.ones(3)}, tmp_path / "x", lossless=True)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_failing_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": jnp.ones(3)}, path, lossless=True)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        codec.save_file({"w": jnp.full(2000, jnp.nan)}, path, step=1.0)
    with pytest.raises(TypeError, match="safetensors has no dtype for complex128"):
        codec.save_file({"a": jnp.ones(3), "w": np.ones(3, complex)}, path, step=1.0)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


KILLED = """
import sys, numpy as np
from ggjax import codec
rng = np.random.default_rng(int(sys.argv[2]))
codec.save_file({"w": rng.normal(size=30000).astype("f")}, sys.argv[1] + "warm", step=0.1)
print("ready", flush=True)
while True:
    codec.save_file({"w": rng.normal(size=30000).astype("f")}, sys.argv[1], step=0.1)
"""


def test_a_save_killed_at_any_point_leaves_a_whole_file(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": jnp.ones(30000)}, path, step=0.1)
    command = [sys.executable, "-c", KILLED, str(path), "0"]
    rng = np.random.default_rng(0)
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO) as child:
            assert child.stdout.readline() == b"ready\n"
            for _ in range(3):
                time.sleep(rng.uniform(0.01, 0.1))
                codec.verify_file(path)
            child.send_signal(signal.SIGKILL)
        codec.verify_file(path)
        assert codec.load_file(path)["w"].shape == (30000,)


# Damage.


def test_damaged_files_are_refused_or_whole(tmp_path):
    """A short run of the fuzzer; ``python -m tests.codec.fuzz_codec`` is the long one."""
    outcomes = fuzz_codec.run(1500, folder=tmp_path)
    assert outcomes["refused"] > 500 and outcomes["forged, refused"] > 300


def test_every_byte_counts(tmp_path):
    path = tmp_path / "x"
    codec.save_file({"w": weights((1100,))}, path, bits=2)
    data = path.read_bytes()
    for i in range(0, len(data), 3):
        bad = bytearray(data)
        bad[i] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(codec.FormatError, match=str(path)):
            codec.load_file(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, too short"),
        (b"\xff" * 8, "bytes 0 to 7 state a header of 18446744073709551615 bytes"),
        (b"\x02\0\0\0\0\0\0\0[]", "the header is not a JSON object"),
        (b"\x04\0\0\0\0\0\0\0{{{{", "the header is not JSON"),
        (b"\x02\0\0\0\0\0\0\0{}", "not a compressed file"),
        (b"\x02\0\0\0\0\0\0\0{}x", "11 bytes, but its tensors end at byte 10"),
    ],
)
def test_files_of_something_else(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(codec.FormatError, match=message):
        codec.load_file(tmp_path / "x")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1 << 40], "tensor 'w': 1 chunks, expected 4194304"),
        ([1 << 62] * 60, "no array has the shape"),
        ([1 << 62] * 100_000, "no array has the shape"),
        ([1 << 62, 1 << 62, 0], "no array has the shape"),
    ],
    ids=["large", "deep", "long", "empty"],
)
def test_a_huge_shape_takes_neither_memory_nor_time(tmp_path, shape, message):
    """A header that is wrong about a size is refused before anything is set aside."""
    path = tmp_path / "x"
    codec.save_file({"w": jnp.zeros(2000)}, path, step=1.0)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["ggjax"])
    meta["tensors"]["w"]["shape"] = shape
    meta["tensors"]["w"]["parts"][0][0] = 1 << 40
    fuzz_codec.fix_pieces(header, meta, data[8 + length :])
    path.write_bytes(fuzz_codec.packed(header, meta, data[8 + length :]))
    with pytest.raises(codec.FormatError, match=message):
        codec.load_file(path)
    header["w"]["shape"] = shape
    path.write_bytes(fuzz_codec.packed(header, meta, data[8 + length :]))
    with pytest.raises(codec.FormatError, match="expected a shape|takes"):
        codec.load_file(path)
