"""Files of pruned weights: golden bytes, readers without atoms, and what a description must not say."""

import base64
import functools
import hashlib
import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import codec
from ggjax.codec.container import _body
from tests.codec import forging, plain_decoder
from tests.codec.test_atoms import pruned
from tests.codec.test_format import GOLDEN, digest, golden


def golden_tree():
    """Weights that are pruned by a product with a mask, so that zeros are of either sign, and by a choice."""
    i = np.arange(3000)
    w = (((i * 7919) % 4096 - 2048) ** 3 / 2.0**33).astype(np.float32)
    kept = (i * 7919) % 1013 % 10 < 3
    return {"w": (w * kept).reshape(50, 60), "h": np.where(kept, w, 0).astype(jnp.bfloat16)}


def large_tree():
    """Several chunks, and rows of several scales."""
    w = golden_tree()["w"].reshape(-1)
    rows = w.reshape(30, 100) * 2.0 ** (np.arange(30) % 4 * 5)[:, None].astype(np.float32)
    return {"long": np.tile(w, 100), "rows": np.tile(rows, (40, 3))}


OPTIONS = {"atoms": {"lossless": True}, "atoms step": {"step": 2.0**-16}}
LARGE = {"atoms": "cad1c4403de8204a", "atoms step": "394a0e1e21753d33"}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_golden_file_is_read_and_written(tmp_path, name):
    stored = golden(2)[name]
    (tmp_path / "x").write_bytes(base64.b64decode(stored["file"]))
    for held in (codec.load_file(tmp_path / "x"), plain_decoder.decode_file(tmp_path / "x")):
        assert {k: digest(v) for k, v in held.items()} == stored["held"]
    codec.save_file(golden_tree(), tmp_path / "y", **OPTIONS[name])
    old, new = (forging.taken_apart((tmp_path / n).read_bytes()) for n in "xy")
    assert old[1:] == new[1:]
    assert all(t["needs"] == ["atoms"] for n, t in new[1]["tensors"].items() if n == "w" or name == "atoms")
    assert hash_of_large(tmp_path / "z", name) == LARGE[name]


def hash_of_large(path, name):
    codec.save_file(large_tree(), path, **OPTIONS[name])
    _, meta, data = forging.taken_apart(path.read_bytes())
    assert len(meta["tensors"]["long"]["binned"]) == 2 and len(meta["tensors"]["rows"]["parts"]["atoms"]) > 1
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode() + data).hexdigest()[:16]


@functools.cache
def one_file(folder, coder="rans"):
    """The bytes of a file of a pruned leaf, in which every part has raw bits, and of another leaf."""
    tree = {"w": pruned((280_000,), "bfloat16", 0.9), "v": np.linspace(0, 1, 2000, dtype=np.float32)}
    codec.save_file(tree, folder / "x", lossless=True, coder=coder)
    return (folder / "x").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("atoms")


def test_a_reader_that_does_not_know_atoms_names_the_tensor(tmp_path, folder, monkeypatch):
    (tmp_path / "x").write_bytes(one_file(folder))
    monkeypatch.setattr(_body, "FEATURES", frozenset())
    with pytest.raises(
        codec.FormatError, match="tensor 'w': needs 'atoms', which this version of ggjax does not"
    ):
        codec.load_file(tmp_path / "x")
    assert codec.load_file(tmp_path / "x", mask=lambda n: n == "v")["v"].shape == (2000,)


def resized(t, number):
    """Says of every chunk that it has so many tokens of bins more, in bytes that lie within the chunk."""
    t["binned"] = [n + number for n in t["binned"]]


@pytest.mark.parametrize("coder", ["rans", "zstd"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["binned"].append(0), "binned tokens of 3 chunks, expected 2"),
        (lambda t: t["binned"].pop(), "binned tokens of 1 chunks, expected 2"),
        (lambda t: t["binned"].__setitem__(0, -1), "binned must be a list of numbers"),
        (lambda t: t.update(binned=7), "binned must be a list of numbers"),
        (lambda t: t["binned"].__setitem__(0, (1 << 18) + 1), "262145 binned tokens, expected up to 262144"),
        (lambda t: t["binned"].__setitem__(0, 1 << 18), "cannot hold 262144 tokens"),
        (lambda t: t["binned"].__setitem__(1, t["binned"][1] ^ 1), "tokens of bins, expected"),
        (lambda t: t["binned"].__setitem__(0, t["binned"][0] - 999), "words, its lanes|of bins|frame|Z|unused"),
        (lambda t: resized(t, 16), "words, its lanes|of bins, expected|Z|frame|unused data"),
        (lambda t: t.pop("binned"), "atoms need a list of them, a list of binned tokens, and to be needed"),
        (lambda t: t.pop("needs"), "atoms need a list of them"),
        (lambda t: t["parts"].pop("atoms"), "atoms need a list of them"),
        (lambda t: t["parts"].update(atoms=[]), "parts must be lists"),
        (lambda t: t["parts"].update(atoms=[[0], [1]]), "lists of parts of different lengths|do not fill"),
        (lambda t: t["parts"].update(atoms=[0]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[0, 0]]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[0.5]]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[1 << 31]]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[list(range(255))]), "atoms must be up to 254 different keys"),
        (lambda t: t["parts"].update(atoms=[[0, 1 << 16]]), "an atom is no key that a weight has"),
        (lambda t: t["parts"].update(atoms=[[0, -1]]), "an atom is no key that a weight has"),
        (lambda t: t["parts"].update(atoms=[[0]]), "of bins, expected"),
        (lambda t: t["parts"].update(atoms=[[0, 1, 2]]), "of bins, expected"),
    ],
)  # fmt: skip
def test_what_a_description_must_not_say(tmp_path, folder, coder, change, message):
    header, meta, body = forging.taken_apart(one_file(folder, coder))
    change(meta["tensors"]["w"])
    forging.fix_pieces(header, meta, body)
    (tmp_path / "x").write_bytes(forging.packed(header, meta, body))
    for read in (codec.load_file, codec.verify_file):
        with pytest.raises(codec.FormatError, match=f"tensor 'w'.*({message})"):
            read(tmp_path / "x")


if __name__ == "__main__":  # writes the golden files anew: a new form of them
    path = pathlib.Path(tempfile.mktemp())
    stored = json.loads((GOLDEN / "version2.json").read_text())
    for name, options in OPTIONS.items():
        codec.save_file(golden_tree(), path, **options)
        held = {k: digest(v) for k, v in codec.load_file(path).items()}
        stored[name] = {"file": base64.b64encode(path.read_bytes()).decode(), "held": held}
        print(name, hash_of_large(path, name))
    (GOLDEN / "version2.json").write_text(json.dumps(stored, indent=1))
