"""Files made to take far more time or memory than their size lets expect."""

import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from ggjax import codec
from ggjax._internal import step_grid
from ggjax.codec import _decode, container
from ggjax.codec.container import _body, _cover, _limits, _metadata, _parse, _sources
from ggjax.codec.entropy import _chunks, _models
from tests.codec import attacks, forging
from tests.codec.helpers import weights

MIB = 1 << 20


def written(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    return tmp_path / "x"


def counted(monkeypatch, module, name, result=lambda *args: 1):
    """What ``result`` says of every call of a function."""
    calls, f = [], getattr(module, name)

    def counting(*args, **kwargs):
        calls.append(result(*args))
        return f(*args, **kwargs)

    monkeypatch.setattr(module, name, counting)
    return calls


# How large the result may be.


@pytest.mark.parametrize("coder", ["rans", "zstd"])
def test_a_small_file_of_a_large_array_is_refused_and_can_be_let_through(tmp_path, coder):
    path = written(tmp_path, attacks.huge(700, coder))
    nbytes = 700 * MIB
    message = (
        rf"x: its arrays take {nbytes:,} bytes, more than the [0-9,]+ that [0-9,]+ bytes of file may stand for"
    )
    for read in (codec.load_file, codec.verify_file, lambda p: codec.decompress_file(p, tmp_path / "plain")):
        with pytest.raises(codec.FormatError, match=f"{message}.*max_bytes={nbytes} .*--max-bytes {nbytes}"):
            read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert codec.inspect_file(path).tensors[0].size * 4 == nbytes  # nothing is decoded
    small = written(tmp_path, attacks.huge(1, coder))
    with pytest.raises(codec.FormatError, match=f"take {MIB:,} bytes, more than the {MIB - 1:,}: if"):
        codec.load_file(small, max_bytes=MIB - 1)
    plain = tmp_path / "plain"
    for most in (MIB, math.inf):
        assert codec.load_file(small, max_bytes=most)["w"].shape == (1 << 18,)
        assert len(codec.verify_file(small, max_bytes=most).tensors) == 1
        assert codec.decompress_file(small, plain, max_bytes=most, overwrite=True) > MIB


@pytest.mark.parametrize("most", [-1, math.nan, "1", True])
def test_max_bytes_is_a_number(tmp_path, most):
    with pytest.raises(ValueError, match="max_bytes must be a number of bytes, math.inf for any, got"):
        codec.load_file(written(tmp_path, attacks.huge(1)), max_bytes=most)


def test_only_what_is_read_counts(tmp_path):
    codec.save_file({"a": weights((2000,)), "b": weights((3000,)), "c": np.ones(9)}, tmp_path / "x", step=1.0)
    assert codec.load_file(tmp_path / "x", mask=lambda n: n == "a", max_bytes=8000)["a"].shape == (2000,)
    assert codec.load_file(tmp_path / "x", like={"a": weights((2000,))}, max_bytes=8000)
    with pytest.raises(codec.FormatError, match="take 20,072 bytes, more than the 20,071:"):
        codec.load_file(tmp_path / "x", max_bytes=20_071)


def test_the_files_of_a_checkpoint_count_together(tmp_path):
    for name, size in (("a", 2000), ("b", 3000)):
        codec.save_file({name: weights((size,))}, tmp_path / f"{name}.ggjax.safetensors", step=1.0)
    index = tmp_path / "model.ggjax.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "a.ggjax.safetensors", "b": "b.ggjax.safetensors"}}')

    def decompress(path, **options):
        container.decompress_checkpoint(path, None, **options)

    for read in (codec.load_file, codec.verify_file, decompress):
        with pytest.raises(codec.FormatError, match="index.json: its arrays take 20,000 bytes"):
            read(index, max_bytes=19_999)
        read(index, max_bytes=20_000)


@pytest.mark.parametrize("coder", ["rans", "zstd"])
@pytest.mark.parametrize("options", [{"step": 2**-6}, {"lossless": True}, {"rf8": True}], ids=str)
def test_honest_sparse_weights_are_let_through(tmp_path, options, coder):
    """Any number of them where one in a thousand is not 0; 64 M where all are."""
    rng = np.random.default_rng(0)
    x = np.zeros(1 << 22, np.float32)
    x[rng.integers(0, x.size, x.size // 1000)] = rng.normal(size=x.size // 1000)
    nbytes = codec.save_file({"w": x}, tmp_path / "x", coder=coder, **options)
    assert x.nbytes < 0.8 * _limits.RATIO * nbytes
    with container.opened(written(tmp_path, attacks.huge(256, coder))) as checkpoint:
        assert container.plain_bytes(checkpoint) == 4 << 26
        _sources.check_size(checkpoint, checkpoint.leaves, None)


# Time and memory that grow with the bytes of the file alone.

ATTACKS = {
    "huge": 1000,
    "one_token_parts": 60,
    "many_atoms": 3,
    "blocks": 2000,
    "unused_tables": 80_000,
    "empty_lists": 3_000_000,
    "many_matrices": 200_000,
    "pack_between": 5,
    "named": 3,
}

PROGRAM = """
import pathlib, resource, sys, tempfile
from ggjax import codec
from tests.codec import attacks

path = pathlib.Path(tempfile.mkdtemp()) / "x"
for name, number in [("one_token_parts", 1), *eval(sys.argv[1]).items()]:
    path.write_bytes(getattr(attacks, name)(number))
    try:
        outcome = str(len(codec.load_file(path)))
    except codec.FormatError:
        outcome = "refused"
    print(name, outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_memory_of_a_process_that_reads_all_of_them():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(ATTACKS)], capture_output=True, text=True, check=True
    )
    (*_, before), *rest = (line.split() for line in run.stdout.splitlines())
    assert [name for name, _, _ in rest] == list(ATTACKS)
    assert [name for name, outcome, _ in rest if outcome == "refused"] == [
        "huge",
        "unused_tables",
        "empty_lists",
        "named",
    ]
    for name, _, peak in rest:
        assert int(peak) - int(before) < 350 << 10, f"{name}: {peak} KiB, at first {before}"


def test_a_token_keeps_no_more_than_itself():
    table = np.eye(256, dtype=np.uint16)[1] << 14
    code = _chunks.Code(np.zeros(0, np.uint16), np.full(1, 1 << 16, np.uint32), np.zeros(1, np.uint16))
    for tokens in _chunks.decode([_chunks.Chunk("here", 1, table, code)] * 3):
        assert tokens.tolist() == [1] and tokens.base is None


def test_tensors_of_many_parts_are_decoded_a_few_at_a_time(tmp_path, monkeypatch):
    path = written(tmp_path, attacks.one_token_parts(40))
    calls = counted(monkeypatch, _decode, "arrays", lambda coded, wheres: sum(len(c.states) for c in coded))
    assert len(codec.load_file(path)) == 40
    assert sum(calls) == 40 * 256 and max(calls) <= _sources.GROUP // _sources.PER_CHUNK


def test_unused_tables_are_refused_and_none_is_read(tmp_path, monkeypatch):
    calls = counted(monkeypatch, _models, "unpack")
    path = written(tmp_path, attacks.unused_tables(80_000))
    assert codec.load_file(path, mask=lambda name: name == "v")["v"].tolist() == [1]  # w might use them
    codec.save_file({"w": weights((2000,))}, path, step=0.01)
    header, meta, body = forging.taken_apart(path.read_bytes())
    meta["tables"] += [attacks.table()] * 80_000
    path.write_bytes(forging.packed(header, meta, body))
    with pytest.raises(codec.FormatError, match="80001 tables, of which 1 are used"):
        codec.load_file(path)
    assert not calls
    meta["tables"] = [attacks.table()]
    meta["tensors"]["w"]["coder"] = "zstd"
    assert "tables, of which 0 are used" in refused(path, forging.packed(header, meta, body))


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(codec.FormatError) as e:
        codec.load_file(path)
    return str(e.value)


def test_small_leaves_are_decoded_once_however_they_lie(tmp_path, monkeypatch):
    path = written(tmp_path, attacks.pack_between(6))
    calls = counted(monkeypatch, _sources, "read_coded", lambda s: s.name)
    groups = counted(monkeypatch, _sources, "_arrays")
    assert len(codec.load_file(path)) == 12
    assert sorted(calls) == sorted(["small", *(f"l{i}" for i in range(6))]) and len(groups) > 6


def test_many_matrices_are_decoded_many_at_a_time(tmp_path, monkeypatch):
    path = written(tmp_path, attacks.many_matrices(20_000))
    calls = counted(monkeypatch, step_grid, "place_of")
    assert (np.asarray(codec.load_file(path)["w"]).astype(np.float32) == np.float32(0.5)).all()
    assert len(calls) == 1


def test_metadata_of_very_many_values_is_refused_before_they_are_made(tmp_path, monkeypatch):
    calls = counted(monkeypatch, _parse, "_metadata")
    message = refused(tmp_path / "x", attacks.empty_lists(3_000_000))
    assert "bytes cannot be metadata of 6000005 values" in message and not calls
    text = _metadata.dump({}, [], {"note": "[" * 400_000})  # which says much less than it takes
    assert _body.may_be(b"[" * 400_000, len(text))


def test_a_number_of_parts_is_no_size(tmp_path):
    path = written(tmp_path, attacks.many_matrices(16))
    header, meta, body = forging.taken_apart(path.read_bytes())
    for number in (1, 1 << 40):
        meta["tensors"]["w"]["grid"]["parts"] = [number]
        assert "a part of a grid without weights" in refused(path, forging.packed(header, meta, body))


def test_blocks_without_number(tmp_path):
    """So many that to compare them two by two would take hours."""
    number = 200_000
    assert _cover.fill((number,), (((i,), (1,)) for i in range(number)))
    assert not _cover.fill((number,), (((i - (i == 7),), (1,)) for i in range(number)))
    path = written(tmp_path, attacks.blocks(2000))
    assert (np.asarray(codec.load_file(path)["w"]) == 1).all()


def test_blocks_fill_a_leaf_as_marks_on_its_elements_say():
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(300):
        full = tuple(rng.integers(1, 5, rng.integers(1, 4)).tolist())
        blocks = pieces_of((0,) * len(full), full, rng)
        if rng.random() < 0.7:  # one of them elsewhere
            i = int(rng.integers(len(blocks)))
            start, shape = blocks[i]
            blocks[i] = tuple(int(rng.integers(f - n + 1)) for f, n in zip(full, shape, strict=True)), shape
        marks = np.zeros(full, int)
        for start, shape in blocks:
            marks[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))] += 1
        seen.append(bool((marks == 1).all()))
        assert _cover.fill(full, blocks) == seen[-1]
    assert 50 < sum(seen) < 250


def pieces_of(start, shape, rng):
    """A box cut into some boxes."""
    axis = int(rng.integers(len(shape)))
    if shape[axis] < 2 or rng.random() < 0.2:
        return [(start, shape)]
    cut = int(rng.integers(1, shape[axis]))
    first, second = (
        tuple(n if i == axis else x for i, x in enumerate(shape)) for n in (cut, shape[axis] - cut)
    )
    after = tuple(x + cut * (i == axis) for i, x in enumerate(start))
    return pieces_of(start, first, rng) + pieces_of(after, second, rng)


# Names.


@pytest.mark.parametrize(
    "tree",
    [{"": 1}, {"": {"": 1}}, {"a": {"": 1}}, {"(root)": 1, "b": 2}, {"": {"(root)": 1}}, 1],
    ids=str,
)
@pytest.mark.parametrize("size", [3, 1100])
def test_awkward_names_come_back(tmp_path, tree, size):
    tree = jax.tree.map(lambda x: np.full(size, x, np.float32), tree)
    codec.save_file(tree, tmp_path / "x", lossless=True)
    for got in (codec.load_file(tmp_path / "x"), codec.load_file(tmp_path / "x", like=tree)):
        assert jax.tree.structure(got) == jax.tree.structure(tree)
        assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(tree)))


def test_names_that_no_dicts_have(tmp_path):
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"the key '\(root\)' names a tree that is a single array"):
        codec.save_file({"(root)": x}, tmp_path / "x", step=1.0)
    for tree in ({"a": x, "a/b": x}, {"a/b": x, "a": x}):
        codec.save_file(tree, tmp_path / "x", step=1.0)
        with pytest.raises(codec.FormatError, match="another leaf: take like or flat=True"):
            codec.load_file(tmp_path / "x")
        assert codec.load_file(tmp_path / "x", flat=True).keys() == tree.keys()
    with pytest.raises(ValueError, match="two tensors of the name 'a/b'|stored twice"):
        codec.save_file({"a": {"b": weights((2000,))}, "a/b": weights((2000,))}, tmp_path / "x", step=1.0)
    message = refused(tmp_path / "x", attacks.named(3))
    assert "lies 100000 dicts deep: take flat=True" in message
    assert len(codec.load_file(tmp_path / "x", flat=True)) == 1
