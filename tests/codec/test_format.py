"""The format itself: golden files of both versions, and what a reader refuses or does not know."""

import base64
import contextlib
import hashlib
import json
import pathlib
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import codec
from ggjax.app import cli
from ggjax.codec import container
from ggjax.codec.container import _body
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.quantize._quantizers import QUANTIZERS
from tests.codec import forging, fuzz_codec, plain_decoder
from tests.codec.helpers import weights


def test_the_names_that_need_no_jax_are_those_that_are_known():
    assert set(_body.QUANTIZERS) == set(QUANTIZERS) and set(_body.CODERS) == set(CODERS)


LONG, DEEP = 10**4000, json.loads("[" * 900 + "]" * 900)
JUNK = (None, -1, 3, "x", [], {}, [None], {"x": [1]}, True, [[1, [2]]], LONG, [LONG] * 9, DEEP, {"rise": LONG})


@pytest.mark.parametrize("junk", JUNK, ids=[str(i) for i in range(len(JUNK))])
def test_info_of_what_cannot_be(tmp_path, junk):
    """What only the description is read of: nonsense is told or refused, nothing else."""
    path = tmp_path / "x"
    tree = {"w": weights((1100,)), "b": jnp.ones(3), "c": jnp.ones(4)}
    codec.save_file(tree, path, step=2**-6, centroids=True)
    header, meta, body = forging.taken_apart(path.read_bytes())
    for name, t in meta["tensors"].items():
        for key in [*t, "needs", "shape", "grid", "leaves", "params", "parts", "coder"]:
            forged = json.loads(json.dumps(meta))
            forged["tensors"][name][key] = junk
            path.write_bytes(forging.packed(header, forged, body))
            with contextlib.suppress(codec.FormatError):
                ((_, info),) = container.info_of_files(path)
                assert all(isinstance(x, str) for i in info.tensors for x in (i.name, i.dtype, i.kind, i.coder))
                assert all(i.step is None or float(i.step) < 4 for i in info.tensors)
                assert all(0 <= i.size < 1 << 64 for i in info.tensors)
                for how in ((), ("--json",)):
                    assert cli.main(["info", str(path), *how]) == 0


GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden_tree():
    i = np.arange(3000)
    w = (((i * 7919) % 4096 - 2048) ** 3 / 2.0**33).astype(np.float32)
    small = {f"norm/{k}": w[k * 700 : k * 700 + 600] for k in range(4)}
    return {"w": w, "h": w[:1500].astype(jnp.bfloat16), "b": i[:9], "t": i[:4].reshape(2, 2), **small}


def large_tree():
    """Rows of several scales, which make parts of their own."""
    i = np.arange(6000)
    w = (((i * 7919) % 4096 - 2048) ** 3 / 2.0**33).astype(np.float32)
    rows = w.reshape(60, 100) * 2.0 ** (np.arange(60) % 8)[:, None].astype(np.float32)
    return {"big": np.tile(rows, (20, 1))}


OPTIONS = {
    "step": {"step": 2.0**-6, "centroids": True},
    "lossless": {"lossless": True},
    "rf8": {"rf8": True},
}
LARGE = {"step": "ca163dbf4363434a", "lossless": "e6053836b2d7c9ec", "rf8": "14d766b663f93567"}
"""The hashes of the data and of what the metadata says."""


def digest(array):
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:16]


def golden(version):
    return json.loads((GOLDEN / f"version{version}.json").read_text())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("version", [1, 2])
def test_golden_files_are_read_for_ever(tmp_path, version, name):
    """golden/ holds one small file of each kind, and the hash of what is in it."""
    stored = golden(version)[name]
    (tmp_path / "x").write_bytes(base64.b64decode(stored["file"]))
    held = fuzz_codec.flat(codec.load_file(tmp_path / "x"))
    assert {k: hashlib.sha256(v).hexdigest()[:16] for k, (_, _, v) in held.items()} == stored["held"]
    plain = plain_decoder.decode_file(tmp_path / "x")
    narrow = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in plain.items()}  # as JAX has them
    assert {k: digest(v) for k, v in narrow.items()} == stored["held"]
    assert codec.inspect_file(tmp_path / "x").version == version


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_written_is_the_golden_file(tmp_path, name):
    """These bytes change with the version only; those of the zlib stream may differ, what it holds may not."""
    codec.save_file(golden_tree(), tmp_path / "x", **OPTIONS[name])
    header, meta, data = forging.taken_apart((tmp_path / "x").read_bytes())
    want_header, want_meta, want = forging.taken_apart(base64.b64decode(golden(2)[name]["file"]))
    assert meta == want_meta and data == want
    del header["__metadata__"], want_header["__metadata__"]
    assert header == want_header
    codec.save_file(large_tree(), tmp_path / "x", **OPTIONS[name])
    _, meta, data = forging.taken_apart((tmp_path / "x").read_bytes())
    said = json.dumps(meta, sort_keys=True).encode()
    assert hashlib.sha256(said + data).hexdigest()[:16] == LARGE[name]


def changed(path, change, tree=None):
    """Write a file of two coded leaves, its metadata changed and the checksums put right."""
    codec.save_file(tree or {"w": weights((60, 40)), "v": weights((50, 40))}, path, step=2**-6)
    header, meta, body = forging.taken_apart(path.read_bytes())
    change(meta["tensors"])
    forging.fix_pieces(header, meta, body)
    path.write_bytes(forging.packed(header, meta, body))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"needs": ["row_steps"]}, "needs 'row_steps', which this version"),
        ({"quantizer": "trellis", "states": 8}, "needs the quantizer 'trellis', which"),
        ({"coder": "brotli"}, "needs the coder 'brotli', which"),
    ],
    ids=["feature", "quantizer", "coder"],
)
def test_a_tensor_of_the_future_leaves_the_others_to_be_read(tmp_path, more, message):
    path = tmp_path / "x"
    changed(path, lambda tensors: tensors["w"].update(more))
    for read in (codec.load_file, codec.verify_file):
        with pytest.raises(codec.FormatError, match=f"tensor 'w': {message}"):
            read(path)
    assert codec.load_file(path, mask=lambda name: name != "w")["v"].shape == (50, 40)
    assert codec.load_file(path, like={"v": jnp.zeros((50, 40))})["v"].shape == (50, 40)
    info = {t.name: t for t in codec.inspect_file(path).tensors}
    assert info["w"].shape == (60, 40) and info["w"].problem and not info["v"].problem
    assert info["w"].needs == tuple(more.get("needs", ())) and info["w"].kind == more.get(
        "quantizer", "uniform"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["w"].update(colour="red"), "tensor 'w': unknown key 'colour'"),
        (lambda t: t["w"]["params"].update(scale=2), "tensor 'w': unknown parameter 'scale'"),
        (lambda t: t["w"].update(sections={"row_steps": [0, 0]}), "tensor 'w': unknown section 'row_steps'"),
        (lambda t: t["w"].update(sections={"side": [0, 0]}), "no section is named 'side'"),
        (lambda t: t["w"]["parts"].update(weight=[1]), "tensor 'w': parts must have lists of"),
        (lambda t: t["w"]["params"].update(centroids=[-0.6]), "centroids must be .* from -0.5 to 1"),
        (lambda t: t["w"]["params"].update(step=float("nan")), "NaN is no number of JSON"),
        (lambda t: t["w"]["params"].update(step=float("inf")), "Infinity is no number of JSON"),
        (lambda t: t["w"].pop("shape"), "tensor 'w': coded, so expected a shape"),
    ],
)
def test_what_a_description_must_not_say(tmp_path, change, message):
    changed(tmp_path / "x", change)
    with pytest.raises(codec.FormatError, match=message):
        codec.load_file(tmp_path / "x")


def forged(path, text):
    """A file whose metadata is this text, its checksum put right."""
    codec.save_file({"w": jnp.ones(3)}, path, step=1.0)
    header, _, body = forging.taken_apart(path.read_bytes())
    crc = f"{zlib.crc32(text.encode()):08x}"
    header["__metadata__"] = {"ggjax": text.replace("00000000", crc, 1)}
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + body)


BODY = '{"tables":[],"tensors":{"w":{"crc32":[1073741824]}}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (forging.enveloped(BODY.replace("}}}", '},"w":{}}}')), "a JSON object has a key twice"),
        (forging.enveloped(BODY.replace('"tables"', '"extra":1,"tables"')), "unknown key 'extra'"),
        (forging.enveloped(BODY, len(BODY) - 1), "does not inflate to"),
        (forging.enveloped(BODY, len(BODY) + 1), "does not inflate to"),
        (forging.enveloped(BODY + " " * 10_000_000), "bytes cannot be metadata of 10000052"),
        (forging.enveloped(BODY + " " * 10_000_000, 10_000), "does not inflate to 10000 bytes"),
        (forging.enveloped(BODY).replace('"version":2', '"version":3'), "version 3, this reads"),
        (forging.enveloped(BODY).replace('"version":2', '"version":true'), "version True, this reads"),
        (forging.enveloped(BODY).replace('"version"', '"more":1,"version"'), "expected the keys"),
        (forging.enveloped(BODY).replace('"size":', '"size":52,"size":'), "a JSON object has a key twice"),
        (forging.enveloped("[" * 50_000), "x: metadata"),
    ],
)
def test_metadata_that_must_not_be(tmp_path, text, message):
    forged(tmp_path / "x", text)
    with pytest.raises(codec.FormatError, match=message):
        codec.load_file(tmp_path / "x")


def test_keys_that_no_weight_has_are_refused(tmp_path):
    """RF8 codes end at key 254, those of a bfloat16 at 2^16; the window of a part may reach beyond."""
    for options, tree in (
        ({"rf8": True}, {"w": weights((1500,))}),
        ({"lossless": True}, {"w": weights((1500,), dtype=jnp.bfloat16)}),
    ):
        path = tmp_path / "x"
        codec.save_file(tree, path, **options)
        header, meta, body = forging.taken_apart(path.read_bytes())
        meta["tensors"]["w"]["parts"]["base"] = [1 << 20]
        path.write_bytes(forging.packed(header, meta, body))
        with pytest.raises(codec.FormatError, match="tensor 'w': part 0: has the key .* expected less than"):
            codec.load_file(path)
        with pytest.raises(ValueError, match="bits"):
            plain_decoder.decode_file(path)


def test_the_smallest_products_are_the_same_in_all_decoders(tmp_path):
    """The nearest to 0 that a level, a centroid and a step can give is no subnormal number."""
    x = np.repeat(np.arange(-4, 5), 500).astype(np.float32) * np.float32(2.0**-120)
    codec.save_file({"w": x}, tmp_path / "x", step=2.0**-120)
    header, meta, body = forging.taken_apart((tmp_path / "x").read_bytes())
    meta["tensors"]["w"]["params"]["centroids"] = [-0.5]
    (tmp_path / "x").write_bytes(forging.packed(header, meta, body))
    held = np.asarray(codec.load_file(tmp_path / "x")["w"])
    np.testing.assert_array_equal(held, plain_decoder.decode_file(tmp_path / "x")["w"])
    assert np.abs(held[held != 0]).min() == np.float32(2.0**-121)
