"""Reading a part of a file: the chunks that are needed, and no others."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import codec
from ggjax.codec import _boxes
from ggjax.codec.container import _partial, _placed, _safetensors, _sources
from ggjax.codec.entropy import _lanes
from tests.codec import forging, scaled
from tests.codec.helpers import bits_of

MESH = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
SHAPE = (1024, 1024)
CHUNKS = math.prod(SHAPE) // _lanes.CHUNK


@functools.cache
def drawn(rows_differ=False, columns_differ=False):
    rng = np.random.default_rng(0)
    x = 0.05 * rng.standard_t(4, SHAPE)
    x *= 2.0 ** rng.integers(0, 4 * rows_differ + 1, SHAPE[0])[:, None]
    return (x * 2.0 ** rng.integers(0, 4 * columns_differ + 1, SHAPE[1])).astype(np.float32)


def pruned(**options):
    x = drawn(**options)
    return x * (np.random.default_rng(4).random(SHAPE) < 0.3)


def integers():
    return np.arange(math.prod(SHAPE), dtype=np.int32).reshape(SHAPE) % 4093 * 7


def scaled_tree():
    levels = np.rint(drawn() * 40).astype(np.int32)[None, :256]
    return codec.Compressed({"w": scaled.leaf(levels, (256, 1024))[0]})


KINDS = {
    "uniform": lambda: ({"w": drawn()}, {"step": 2**-7}),
    "rows": lambda: ({"w": drawn(rows_differ=True)}, {"step": 2**-7}),
    "columns": lambda: ({"w": drawn(columns_differ=True).astype(jnp.bfloat16)}, {"lossless": True}),
    "stack": lambda: ({"w": drawn().reshape(4, 256, 1024)}, {"step": 2**-7}),
    "rf8": lambda: ({"w": drawn()}, {"rf8": True}),
    "dictionary": lambda: ({"w": np.rint(drawn() * 40).clip(-60, 60) * np.float32(0.3)}, {"lossless": True}),
    "zstd": lambda: ({"w": drawn()}, {"step": 2**-7, "coder": "zstd"}),
    "pruned": lambda: ({"w": pruned()}, {"lossless": True}),
    "pruned rows": lambda: ({"w": pruned(rows_differ=True)}, {"step": 2**-16}),
    "plain": lambda: ({"w": integers()}, {"step": 1.0}),
    "scaled": lambda: (scaled_tree(), {}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(the path of a file of a kind, the array in it), each made once."""
    folder = tmp_path_factory.mktemp("partial")

    @functools.cache
    def of(kind):
        path = folder / kind
        tree, options = KINDS[kind]()
        codec.save_file(tree, path, **options)
        return path, np.asarray(codec.load_file(path)["w"])

    return of


@pytest.fixture
def read(monkeypatch):
    """The bytes that are read of the data of files, in a list of one number."""
    total, real = [0], _safetensors.read_bytes

    def counted(file, begin, end):
        total[0] += end - begin
        return real(file, begin, end)

    monkeypatch.setattr(_safetensors, "read_bytes", counted)
    return total


def boxes_of(path, *boxes):
    with _sources.opened(path) as checkpoint:
        return {_boxes.start_of(b): x for b, x in _placed.read(checkpoint.leaves["w"], boxes)}


@pytest.mark.parametrize("spec", [P("x"), P(None, "y"), P("x", "y"), P(None, ("x", "y"))], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_leaves_are_those_of_the_whole_file(monkeypatch, saved, kind, spec):
    """Read shard by shard, as large leaves are."""
    path, want = saved(kind)
    monkeypatch.setattr(_placed, "GROUP", 0)
    sharding = NamedSharding(MESH, spec)
    got = codec.load_file(path, sharding=sharding)["w"]
    assert got.sharding.is_equivalent_to(sharding, got.ndim) and got.dtype == want.dtype
    np.testing.assert_array_equal(bits_of(got), bits_of(want))
    like = {"w": jax.ShapeDtypeStruct(want.shape, want.dtype, sharding=sharding)}
    again = codec.load_file(path, like=like)["w"]
    assert again.sharding.is_equivalent_to(sharding, got.ndim)
    np.testing.assert_array_equal(bits_of(again), bits_of(want))


@pytest.mark.parametrize("kind", KINDS)
def test_any_box_is_that_of_the_whole_array(saved, kind):
    path, want = saved(kind)
    rng = np.random.default_rng(1)
    for _ in range(3):
        ends = [sorted(rng.choice(n + 1, 2, replace=False).tolist()) for n in want.shape]
        box = tuple(slice(*e) for e in ends)
        ((_, got),) = boxes_of(path, box).items()
        np.testing.assert_array_equal(bits_of(got), bits_of(want[box]))


def test_the_kinds_are_what_they_are_called(saved):
    def meta(kind):
        with _sources.opened(saved(kind)[0]) as checkpoint:
            return checkpoint.leaves["w"][0].stored.meta

    axes = {kind: meta(kind).axis for kind in KINDS if meta(kind)}
    assert axes["rows"] == 0 and axes["columns"] == -1 and axes["uniform"] is None is axes["stack"]
    assert axes["pruned rows"] == 0 and all(p.atoms for k in ("pruned", "pruned rows") for p in meta(k).parts)
    assert meta("plain") is None and meta("scaled").grid and meta("zstd").coder == "zstd"
    assert {meta(k).kind for k in ("rf8", "dictionary")} == {"rf8", "dictionary"}
    assert all(sum(p.exceptions for p in meta(k).parts) > 20 for k in ("uniform", "rows", "stack"))


@pytest.mark.parametrize("kind", ["uniform", "stack", "zstd", "pruned"])
def test_a_process_reads_the_chunks_that_it_needs(saved, read, kind):
    path, want = saved(kind)
    total = 0
    for i in range(CHUNKS):
        read[0] = 0
        edge = want.shape[0] // CHUNKS
        boxes_of(path, (slice(i * edge, (i + 1) * edge), *(slice(0, n) for n in want.shape[1:])))
        assert read[0] < 1.2 / CHUNKS * path.stat().st_size
        total += read[0]
    assert total < 1.1 * path.stat().st_size  # the exceptions every time
    if kind == "stack":  # one quarter of each layer's rows: a chunk is a layer
        read[0] = 0
        boxes_of(path, (slice(0, 1), slice(0, 64), slice(0, 1024)), (slice(2, 3), slice(0, 64), slice(0, 1024)))
        assert read[0] < 1.2 / 2 * path.stat().st_size


def test_shards_by_rows_are_read_once_and_none_of_the_arrays_is_whole(monkeypatch, saved, read):
    path, want = saved("uniform")
    monkeypatch.setattr(_placed, "GROUP", 0)
    sizes, real = [], _partial.read
    monkeypatch.setattr(_partial, "read", lambda r, box: (sizes.append((x := real(r, box)).size), x)[1])
    for spec in (P("x"), P("x", "y"), P(("y", "x"))):
        sizes.clear()
        read[0] = 0
        got = codec.load_file(path, sharding=NamedSharding(MESH, spec))["w"]
        np.testing.assert_array_equal(np.asarray(got), want)
        assert read[0] <= path.stat().st_size and sizes == [want.size // CHUNKS] * CHUNKS


def test_leaves_in_blocks_are_read_by_other_shards(monkeypatch, tmp_path, read):
    x = drawn()
    codec.save_file({"w": jax.device_put(x, NamedSharding(MESH, P("x", "y")))}, tmp_path / "x", lossless=True)
    monkeypatch.setattr(_placed, "GROUP", 0)
    for spec in (P("x", "y"), P("y"), P(None, "x")):
        read[0] = 0
        got = codec.load_file(tmp_path / "x", sharding=NamedSharding(MESH, spec))["w"]
        np.testing.assert_array_equal(np.asarray(got), x)
    read[0] = 0
    ((_, got),) = boxes_of(tmp_path / "x", (slice(200, 300), slice(0, 100))).items()  # of 2 of 8 blocks
    np.testing.assert_array_equal(got, x[200:300, :100])
    assert read[0] < 0.3 * (tmp_path / "x").stat().st_size


# Files that do not tell how many exceptions the chunks have, and damage.


def forged(path, target, change):
    header, meta, body = forging.taken_apart(path.read_bytes())
    change(meta["tensors"]["w"])
    target.write_bytes(forging.packed(header, meta, body))
    return target


def band(i):
    edge = SHAPE[0] // CHUNKS
    return slice(i * edge, (i + 1) * edge), slice(0, SHAPE[1])


@pytest.mark.parametrize("place, chunks", [(0, 1), (1, 2), (2, 2), (3, 1)])
def test_files_that_do_not_tell_where_exceptions_are(tmp_path, saved, read, place, chunks):
    """The chunks before are decoded too, or those after; of several boxes in order, each chunk once."""
    path, want = saved("uniform")
    path = forged(path, tmp_path / "x", lambda t: t.pop("exceptions"))
    read[0] = 0
    ((_, got),) = boxes_of(path, band(place)).items()
    np.testing.assert_array_equal(got, want[band(place)])
    assert (chunks - 0.2) / CHUNKS < read[0] / path.stat().st_size < (chunks + 0.2) / CHUNKS
    read[0] = 0
    for start, got in boxes_of(path, *map(band, range(CHUNKS))).items():
        np.testing.assert_array_equal(got, want[start[0] : start[0] + len(got)])
    assert read[0] <= path.stat().st_size


@pytest.mark.parametrize("change, message", [
    (lambda t: t["exceptions"].append(0), "exceptions of 5 chunks, expected 4"),
    (lambda t: t["exceptions"].__setitem__(0, -1), "exceptions must be a list of numbers"),
    (lambda t: t["exceptions"].__setitem__(0, 10**6), "the chunks of part 0 have"),
    (lambda t: t.update(exceptions=sorted(t["exceptions"], reverse=True)), "exceptions"),
])  # fmt: skip
def test_wrong_numbers_of_exceptions_are_found(tmp_path, saved, change, message):
    path = forged(saved("uniform")[0], tmp_path / "x", change)
    with pytest.raises(codec.FormatError, match=message):
        boxes_of(path, band(0))
    with pytest.raises(codec.FormatError, match=message):
        codec.verify_file(path)


def test_damage_is_found_where_it_is_read(tmp_path, saved):
    path, want = saved("uniform")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # in the last chunk
    (tmp_path / "x").write_bytes(data)
    ((_, got),) = boxes_of(tmp_path / "x", band(0)).items()
    np.testing.assert_array_equal(got, want[band(0)])
    with pytest.raises(codec.FormatError, match="tensor 'w': the CRC-32 of chunk 3 does not fit"):
        boxes_of(tmp_path / "x", band(3))
