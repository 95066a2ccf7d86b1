"""From checkpoint to checkpoint: files that others made, and back."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec
from ggjax.codec import container
from ggjax.codec.container import _safetensors
from tests.codec import plain_decoder
from tests.codec.helpers import checkpoint


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
        with pytest.raises(ValueError, match="is the input: choose another output"):
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


# Checkpoints in several files.


def several(folder, files, weight_map, **rest):
    """A checkpoint of {file: {name: value}}, each tensor full of its value, with an index."""
    for file, tensors in files.items():
        arrays = {n: np.full((64, 64), v, np.float32) for n, v in tensors.items()}
        safetensors.numpy.save_file(arrays, folder / file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map, **rest}))
    return index


def values(path):
    """{name: the first value} of a checkpoint."""
    return {n: float(x.flat[0]) for n, x in plain_decoder.decode_file(path).items()}


def test_a_checkpoint_in_several_files_there_and_back(tmp_path):
    files = {"a.safetensors": {"u": 1.0, "v": 2.0}, "b.safetensors": {"w": 3.0}}
    weight_map = {"u": "a.safetensors", "v": "a.safetensors", "w": "b.safetensors"}
    index = several(tmp_path, files, weight_map, metadata={"total_size": 49152})
    would = codec.compress_file(index, None, lossless=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", index.name]
    assert codec.compress_file(index, tmp_path / "small", lossless=True) == would
    small = tmp_path / "small" / "model.ggjax.safetensors.index.json"
    assert values(small) == {"u": 1.0, "v": 2.0, "w": 3.0}
    assert set(codec.load_file(small)) == {"u", "v", "w"}
    one = tmp_path / "one.safetensors"
    codec.decompress_file(small, one)
    assert {n: x[0, 0] for n, x in safetensors.numpy.load_file(one).items()} == {"u": 1.0, "v": 2.0, "w": 3.0}


def test_the_index_says_which_of_two_tensors_counts(tmp_path):
    """A tensor of one name in two files: one of them is out of date."""
    files = {"a.safetensors": {"w": 1.0, "u": 4.0}, "b.safetensors": {"w": -1.0, "v": 2.0}}
    for right in files:
        weight_map = {"u": "a.safetensors", "v": "b.safetensors", "w": right}
        want = {"u": 4.0, "v": 2.0, "w": files[right]["w"]}
        index = several(tmp_path, files, weight_map)
        out = tmp_path / right[0]
        codec.compress_file(index, out, rf8=True)
        small = out / "model.ggjax.safetensors.index.json"
        assert json.loads(small.read_text())["weight_map"]["w"] == right.replace(".", ".ggjax.", 1)
        assert values(small) == want
        assert {n: float(x[0, 0]) for n, x in codec.load_file(small).items()} == want
        assert len(codec.verify_file(small).tensors) == 3
        container.decompress_checkpoint(small, out / "back")
        back = out / "back" / "model.safetensors.index.json"
        for name, file in json.loads(back.read_text())["weight_map"].items():
            assert safetensors.numpy.load_file(back.parent / file)[name][0, 0] == want[name]


def test_a_compressed_file_with_a_tensor_that_is_out_of_date(tmp_path):
    """The same of files that are compressed already."""
    for file, value in (("a", 1.0), ("b", -1.0)):
        codec.save_file({"w": jnp.full((64, 64), value), file: jnp.ones(3)}, tmp_path / file, rf8=True)
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "b", "a": "a", "b": "b"}}))
    assert float(codec.load_file(index)["w"][0, 0]) == values(index)["w"] == -1.0
    codec.decompress_file(index, tmp_path / "plain")
    assert safetensors.numpy.load_file(tmp_path / "plain")["w"][0, 0] == -1.0
    container.decompress_checkpoint(index, tmp_path / "back")
    assert set(safetensors.numpy.load_file(tmp_path / "back" / "a.plain.safetensors")) == {"a"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_map": {}}, "an index that names no tensor"),
        ({"weight_map": {"gone": "a.safetensors"}}, "has no tensor 'gone', which the index says is in it"),
        ({"metadata": [1]}, "its metadata is no object"),
        ({"weight_map": {"w": 7}}, "names the file 7"),
        ({"weight_map": [1]}, "not the index of a checkpoint"),
    ],
    ids=str,
)
def test_an_index_that_is_wrong_is_refused_before_anything_is_written(tmp_path, change, message):
    index = several(tmp_path, {"a.safetensors": {"w": 1.0}}, **{"weight_map": {"w": "a.safetensors"}, **change})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(codec.FormatError, match=message):
        codec.compress_file(index, tmp_path / "small", rf8=True)
    assert sorted(tmp_path.iterdir()) == before


def test_an_index_of_another_name(tmp_path):
    files = {"model.fp16-00001-of-00001.safetensors": {"w": 1.0}}
    index = several(tmp_path, files, {"w": "model.fp16-00001-of-00001.safetensors"})
    index = index.rename(tmp_path / "model.safetensors.index.fp16.json")
    result = container.compress_checkpoint(index, tmp_path / "small", rf8=True)
    assert result.index == tmp_path / "small" / "model.ggjax.safetensors.index.fp16.json"
    back = container.decompress_checkpoint(result.index, tmp_path / "back")
    assert back.index == tmp_path / "back" / index.name and set(files) <= {
        p.name for p in back.index.parent.iterdir()
    }


def test_nothing_that_is_read_is_written(tmp_path):
    """Neither the source, nor one of the files that it names, not even where overwriting is allowed."""
    index = several(tmp_path, {"a.safetensors": {"w": 1.0}}, {"w": "a.safetensors"})
    codec.compress_file(index, tmp_path / "small", rf8=True)
    small = tmp_path / "small" / "model.ggjax.safetensors.index.json"
    shard = tmp_path / "small" / "a.ggjax.safetensors"
    for path in (small, shard):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="is the input: choose another output"):
            codec.decompress_file(small, path, overwrite=True)
        assert path.read_bytes() == before
    clash = several(tmp_path, {"c": {"w": 1.0}, "c.safetensors": {"v": 1.0}}, {"w": "c", "v": "c.safetensors"})
    with pytest.raises(ValueError, match="two of its files would both become .*c.ggjax.safetensors"):
        codec.compress_file(clash, tmp_path / "clash", rf8=True)
