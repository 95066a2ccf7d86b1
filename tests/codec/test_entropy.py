"""The pieces between keys and words: tables, planes, tokens, lanes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ggjax.codec.entropy import _chunks, _lanes, _models, _planes, _tokens


@given(hnp.arrays(np.int64, 256, elements=st.integers(0, 10**12)))
@example(np.zeros(256, np.int64))
@example(np.eye(256, dtype=np.int64)[7])
@example(np.where(np.arange(256) == 3, 10**12, 1))
@settings(max_examples=100, deadline=None)
def test_frequencies_sum_to_the_total_and_pack(counts):
    table = _models.frequencies(counts)
    assert table.sum() == 2**14 and (table[counts > 0] > 0).all()
    if counts.any():
        assert not table[counts == 0].any()
    np.testing.assert_array_equal(_models.unpack(_models.pack(table)), table)


def test_frequencies_cost_little():
    law = np.exp(-np.abs(np.arange(256) - 128) / 14)
    counts = np.random.default_rng(0).multinomial(10**6, law / law.sum())
    p = counts / counts.sum()
    ideal = -(p[p > 0] * np.log2(p[p > 0])).sum()
    assert _models.cost_bits(counts, _models.frequencies(counts)) / 10**6 < ideal * 1.001


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00",
        b"\x05\x04\x00\xff",
        b"\x00\x00\x0f\xff",
        b"\x00\xff\x00" + b"\x00" * 40,
        b"a" * 5000,
    ],
)
def test_bad_tables_are_refused(data):
    with pytest.raises(ValueError, match="table"):
        _models.unpack(data)


def every_window(keys, size, signed):
    """``choose_bins`` by a look at every window of every width."""
    numbers = np.sort(keys.view(np.int32).astype(np.int64) if signed else keys.astype(np.int64))
    found = []
    for shift in range(32):
        bins = numbers >> shift
        inside = {int(b): int(((bins >= b) & (bins < b + _tokens.BINS)).sum()) for b in np.unique(bins)}
        start = max(inside, key=lambda b: (inside[b], -b))
        counts = np.unique(
            np.where((bins >= start) & (bins < start + 255), bins - start + 1, 0), return_counts=True
        )[1]
        used = len(counts)
        escapes = len(keys) - inside[start]
        bits = -(counts * np.log2(counts / len(keys))).sum() + len(keys) * shift + _tokens.ESCAPE_BITS * escapes
        bits = (bits + (used - 1) / (2 * np.log(2))) / len(keys) + _tokens.TABLE_ENTRY_BITS * used / size
        found.append((bits, (start << shift) % (1 << 32), shift))
    return found


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("spread", [1, 40, 300, 5000, 1 << 20, 1 << 29])
def test_the_window_is_the_best_of_all(spread, signed):
    rng = np.random.default_rng(spread)
    levels = np.rint(rng.laplace(size=500) * spread).clip(-(1 << 31), (1 << 31) - 1).astype(np.int64)
    keys = (levels if signed else levels + (1 << 31)).astype(np.uint32)
    bins, bits = _tokens.choose_bins(keys, 100_000, signed)
    least, base, shift = min(every_window(keys, 100_000, signed))
    assert (bins.base, bins.shift) == (base, shift) and bits == pytest.approx(least)


@given(st.integers(1, 31), st.sampled_from([0, 1, 33]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_planes_round_trip_in_numpy_and_jax(width, n, seed):
    n = _planes.padded(n)
    numbers = np.random.default_rng(seed).integers(0, 1 << width, n, dtype=np.uint32)
    data = _planes.pack(numbers, width)
    assert data.nbytes == _planes.nbytes(n, width)
    np.testing.assert_array_equal(_planes.unpack(data, n, width), numbers)
    np.testing.assert_array_equal(np.asarray(_planes.pack(jnp.asarray(numbers), width)), data)
    np.testing.assert_array_equal(np.asarray(_planes.unpack(jnp.asarray(data), n, width)), numbers)


@given(
    hnp.arrays(np.uint32, 300, elements=st.integers(0, 2**32 - 1)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 31),
)
@settings(max_examples=60, deadline=None)
def test_tokens_and_keys(keys, base, shift):
    token, raw = (np.asarray(a) for a in _tokens.split(jnp.asarray(keys), jnp.uint32(base), jnp.uint32(shift)))
    back = np.asarray(_tokens.join(jnp.asarray(token), jnp.asarray(raw), jnp.uint32(base), jnp.uint32(shift)))
    inside = ((keys.astype(np.int64) - base) % 2**32) >> shift < 255
    np.testing.assert_array_equal(token > 0, inside)
    np.testing.assert_array_equal(back[inside], keys[inside])
    assert (raw < max(1 << shift, 1)).all()


def scalar_rans(tokens, table):
    """One lane in plain Python integers: (state, words)."""
    start = np.cumsum(table.astype(int)) - table
    x, words = 1 << 16, []
    for t in tokens[::-1].tolist():
        f, s = int(table[t]), int(start[t])
        if x >= f << 18:
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // f << 14) + s + x % f
    return x, words[::-1]


@pytest.mark.parametrize("kind", ["one", "two", "rare", "flat", "peaked"])
def test_lanes_are_those_of_integer_rans(kind):
    rng = np.random.default_rng(3)
    tokens = {
        "one": np.full(5000, 9),
        "two": rng.integers(0, 2, 5000) * 255,
        "rare": np.where(np.arange(5000) % 4999 == 7, 3, 200),
        "flat": rng.integers(0, 256, 5000),
        "peaked": np.clip(rng.laplace(size=5000) * 3 + 128, 0, 255),
    }[kind].astype(np.uint8)
    table = _models.frequencies(np.bincount(tokens, minlength=256))
    ((words, states, counts),) = _chunks.encode([(tokens, table)])
    (state, want) = scalar_rans(tokens, table)
    assert states.tolist() == [state] and counts.tolist() == [len(want)] and words.tolist() == want


def test_chunks_code_alone_as_they_do_among_others():
    """Chunks share batches by their lengths and tables, up to a number of lanes and of tables."""
    rng = np.random.default_rng(5)
    sizes = [1, 8192, 8193, 20_000, *rng.integers(1, 3000, 150).tolist(), _lanes.CHUNK]
    tokens = [rng.integers(0, 2 + i % 140, n).astype(np.uint8) for i, n in enumerate(sizes)]
    chunks = [(t, _models.frequencies(np.bincount(t, minlength=256))) for t in tokens]
    batches = _chunks.in_batches(sizes, [table for _, table in chunks])
    assert sorted(i for b in batches for i in b) == list(range(len(sizes))) and len(batches) > 1
    together = _chunks.encode(chunks)
    for i in (0, 1, 2, 3, 40, 153, 154):
        (alone,) = _chunks.encode([chunks[i]])
        for a, b in zip(alone, together[i], strict=True):
            np.testing.assert_array_equal(a, b)
    jobs = [
        _chunks.Chunk(str(i), n, c[1], code)
        for i, (n, c, code) in enumerate(zip(sizes, chunks, together, strict=True))
    ]
    for got, want in zip(_chunks.decode(jobs), tokens, strict=True):
        np.testing.assert_array_equal(got, want)
    bad = jobs[70].code._replace(states=jobs[70].code.states ^ 1)
    with pytest.raises(_chunks.Damaged, match="^70: its lanes do not end"):
        _chunks.decode([*jobs[:70], jobs[70]._replace(code=bad), *jobs[71:]])
