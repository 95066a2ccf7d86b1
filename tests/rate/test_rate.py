"""The rates against codes that are really written out, and against float64 NumPy and SciPy."""

import functools
import heapq
import itertools
from collections import Counter

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special as sp
import scipy.stats as st
from hypothesis import given, settings
from hypothesis import strategies as hs
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggjax import gennorm, rate
from ggjax.rate import _rates

DEVICE_CODES = [c for c in rate.CODES if c != "huffman"]
TRACED = {c: jax.jit(functools.partial(rate.bits, code=c)) for c in DEVICE_CODES}
GG_LENGTHS = jax.jit(_rates._gg_lengths)


def levels64(tree, step):
    """All levels of a tree in one array; the division is float32, as documented."""
    leaves = [np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate([np.rint(x / np.float32(step)) for x in leaves]).astype(np.int64)


def exp_golomb_word(k):
    """The code word of k itself: the binary digits of k + 1 after as many zeros, less one."""
    digits = format(int(k) + 1, "b")
    return "0" * (len(digits) - 1) + digits


def signed_number(q):
    return 2 * q - 1 if q > 0 else -2 * q


def huffman_words(counts):
    """An optimal prefix code as strings, built from the tree (one symbol: the empty word)."""
    order = itertools.count()
    heap = [(c, next(order), {q: ""}) for q, c in counts.items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        a, _, zero = heapq.heappop(heap)
        b, _, one = heapq.heappop(heap)
        words = {q: "0" + w for q, w in zero.items()} | {q: "1" + w for q, w in one.items()}
        heapq.heappush(heap, (a + b, next(order), words))
    return heap[0][2]


def expected(tree, step):
    """Every rate of a tree in float64, from its definition."""
    q = levels64(tree, step)
    n, counts = len(q), Counter(q.tolist())
    p = np.array(list(counts.values())) / n
    ranked = [level for level, _ in counts.most_common()]
    golomb = {level: len(exp_golomb_word(signed_number(level))) for level in ranked}
    side = len(exp_golomb_word(len(ranked))) + sum(golomb.values())
    words = huffman_words(counts)
    out = {
        "entropy": -np.sum(p * np.log2(p)),
        "fixed": len(format(q.max() - q.min(), "b")) if q.max() > q.min() else 0,
        "exp_golomb": sum(golomb[level] * c for level, c in counts.items()) / n,
        "exp_golomb_rank": (sum(len(exp_golomb_word(r)) * counts[v] for r, v in enumerate(ranked)) + side) / n,
        "huffman": sum(len(words[v]) * c for v, c in counts.items()) / n,
    }
    x = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    nus, ratios = gennorm.table()
    if x.any():
        nu = nus[np.argmin(np.abs(ratios - np.mean(x**2) / np.mean(np.abs(x)) ** 2))]
        law = st.gennorm(nu, scale=np.sqrt(np.mean(x**2) * sp.gamma(1 / nu) / sp.gamma(3 / nu)))
        v = np.abs(
            np.array(list(counts))
        )  # by symmetry; tails are differenced on the left, where they are small
        mass = law.cdf((0.5 - v) * step) - law.cdf((-0.5 - v) * step)
        out["gg"] = -np.sum(p * np.log2(mass))
        out["gg_closed_form"] = law.entropy() / np.log(2) - np.log2(step)
    return out


def tree_of(nu=0.8, scale=0.02, n=6000, seed=0):
    r = np.random.default_rng(seed)
    x = scale * r.gamma(1 / nu, size=n) ** (1 / nu) * r.choice([-1.0, 1.0], n)
    a, b = np.split(x.astype(np.float32), [n // 3])
    return {"a": jnp.asarray(a.reshape(-1, 8)), "b": {"w": jnp.asarray(b) + 0.01}}


@pytest.mark.parametrize("step", [2.0**-13, 0.003, 0.05, 1.0])
@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
def test_every_code_matches_the_code_written_out(nu, step):
    tree = tree_of(nu)
    want = expected(tree, step)
    got = rate.report(tree, step).total.bits
    for code in rate.CODES:
        np.testing.assert_allclose(got[code], want[code], rtol=2e-6, atol=2e-6, err_msg=code)


@pytest.mark.parametrize("step", [2.0**-13, 0.003])
def test_under_jit_as_outside(step):
    tree = tree_of(0.7)
    for code, f in TRACED.items():
        traced, eager = f(tree, step), rate.bits(tree, step, code=code)
        np.testing.assert_allclose(traced, eager, rtol=2e-6, err_msg=code)
        assert traced.dtype == eager.dtype == jnp.float32 and traced.shape == eager.shape == ()


def test_a_second_call_does_not_compile():
    tree = tree_of()
    traces = []

    @jax.jit
    def entropy(tree, step):
        traces.append(step)
        return rate.bits(tree, step)

    programs = (_rates._leaf_stats, _rates._histogram, _rates._measure, _rates._law_of, _rates._traced_bits)

    def run(step):
        rate.bits(tree, step)
        rate.report(tree, step)
        entropy(tree, step)
        return [f._cache_size() for f in programs]

    assert run(0.01) == run(0.011) and len(traces) == 1


weights = hs.lists(hs.floats(-4, 4, width=16), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(weights, hs.sampled_from([0.125, 0.3, 1.0, 20.0]))
def test_order_of_the_codes(values, step):
    x = jnp.asarray(np.resize(np.float32(values), 64))  # one shape, one compile
    r = rate.report(x, step).total.bits
    slack = 1e-5
    assert 0 <= r["entropy"] <= r["huffman"] + slack and r["huffman"] < r["entropy"] + 1
    for code in ("fixed", "gg", "exp_golomb", "exp_golomb_rank"):
        assert r["entropy"] <= r[code] + slack, code
    want = expected(x, step)
    for code in set(want) & {"entropy", "fixed", "exp_golomb", "exp_golomb_rank", "huffman"}:
        np.testing.assert_allclose(r[code], want[code], rtol=2e-6, atol=2e-6, err_msg=code)


@settings(max_examples=30, deadline=None)
@given(hs.lists(hs.integers(1, 10**12), min_size=1, max_size=40))
def test_huffman_is_optimal_for_any_counts(counts):
    total = _rates._huffman(list(counts))
    words = huffman_words(dict(enumerate(counts)))
    assert total == sum(len(words[i]) * c for i, c in enumerate(counts))


def test_exp_golomb_lengths_up_to_the_largest_level():
    big = 2**31 - 1
    q = [0, 1, -1, 2, -2, 3, -3, 127, -128, 2**24 + 1, -(2**30), 2**30, big, -big]
    number = np.asarray(_rates._number(jnp.asarray(q, jnp.int32)))
    np.testing.assert_array_equal(number, [signed_number(v) for v in q])
    lengths = _rates._golomb(jnp.asarray(number))
    np.testing.assert_array_equal(lengths, [len(exp_golomb_word(k)) for k in number])


@pytest.mark.parametrize("nu", [0.1, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("step", [1e-4, 0.1, 3.0])
def test_bin_masses_of_the_law_far_into_the_tail(nu, step):
    q = np.unique(np.concatenate([np.arange(30), np.logspace(1.5, 5.5, 40).astype(int)]))
    a, z = 1 / nu, np.abs(q - 0.5)
    t0, t1 = (z * step) ** nu, ((z + 1) * step) ** nu
    upper = sp.gammaincc(a, t0) - sp.gammaincc(a, t1)  # each difference where its terms are small
    mass = np.where(t0 > a, upper, sp.gammainc(a, t1) - sp.gammainc(a, t0)) / 2
    mass[0] = sp.gammainc(a, (step / 2) ** nu)
    args = [jnp.float32(v) for v in (nu, 1.0, step)]
    got = np.asarray(GG_LENGTHS(jnp.asarray(q, jnp.int32), *args))
    keep = mass > 1e-280
    np.testing.assert_allclose(got[keep], -np.log2(mass[keep]), rtol=3e-6, atol=3e-6)
    assert np.all(np.isfinite(got)) and np.all(np.diff(got[1:]) > -1e-3)  # and far beyond float64's range


def test_one_outlier_in_the_tail_costs_finitely_many_bits():
    x = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    x[0] = 60.0
    got = rate.bits(jnp.asarray(x), 0.01, code="gg")
    want = expected(jnp.asarray(x), 0.01)["gg"]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("low, high", [(-3e5, 3e5), (5e5, 5.5e5), (-2e7, 2e7), (-2e9, 2e9)])
def test_any_range_of_levels_outside_jit(low, high):
    """Small ranges far from zero, ranges beyond the traced table, and ranges too wide for any table."""
    q = np.linspace(low, high, 300, dtype=np.float32).round()
    x = jnp.asarray(np.concatenate([q, q[::7]]).astype(np.float32))
    want = expected({"x": x}, 1.0)
    got = rate.report(x, 1.0).total.bits
    for code in want:
        np.testing.assert_allclose(got[code], want[code], rtol=2e-6, err_msg=code)
    traced = {c: float(TRACED[c](x, 1.0)) for c in ("entropy", "fixed")}
    assert traced["fixed"] == want["fixed"]
    if high - low < rate.TRACED_LEVELS:
        np.testing.assert_allclose(traced["entropy"], want["entropy"], rtol=2e-6)
    else:
        assert np.isnan(traced["entropy"])


def test_large_leaves_are_counted_in_parts():
    x = jax.random.normal(jax.random.key(0), (8, 3, 1 << 16))
    for y in (x, x.reshape(-1), x.reshape(3, -1)):
        words = _rates._histogram(y, 0.01, -600, _rates._empty(1024))
        q = np.rint(np.asarray(y) / np.float32(0.01)).astype(int).ravel() + 600
        want = np.bincount(q[(q >= 0) & (q < 1024)], minlength=1024)
        np.testing.assert_array_equal(_rates._whole(np.asarray(words)), want)
    program = _rates._histogram.lower(x, 0.01, -600, _rates._empty(1024)).compile()
    assert program.memory_analysis().temp_size_in_bytes < x.nbytes / 4
    odd = jnp.full((1 << 20) + 1, 0.5)  # no way to cut it
    assert float(rate.bits(odd, 0.25)) == 0 and rate.report(odd, 0.25, codes=()).total.levels == 1


def test_counts_beyond_32_bits_carry():
    total = jnp.array([[2**32 - 3, 5, 0], [0, 7, 0]], jnp.uint32)
    total = _rates._histogram(jnp.array([0.0] * 4 + [1.0] * 6), 1.0, 0, total)
    np.testing.assert_array_equal(_rates._whole(np.asarray(total)), [2**32 + 1, 7 * 2**32 + 11, 0])
    np.testing.assert_allclose(_rates._float(total), [2.0**32 + 1, 7 * 2.0**32 + 11, 0], rtol=1e-7)


def test_halves_round_to_even_and_half_precision_is_widened():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])  # levels 0 2 2 0 -2 -2
    np.testing.assert_allclose(rate.bits(x, 1.0), np.log2(3), rtol=1e-6)
    tree = tree_of()
    for dtype in (jnp.bfloat16, jnp.float16):
        half = jax.tree.map(lambda v, dtype=dtype: v.astype(dtype), tree)
        wide = jax.tree.map(lambda v: v.astype(jnp.float32), half)
        assert rate.report(half, 0.003) == rate.report(wide, 0.003)


def test_float64_weights_keep_their_levels():
    with jax.enable_x64(True):
        x = jnp.asarray([1.0, 1.0 + 2.0**-29, 3.0, 3.0], jnp.float64)  # two levels only float64 tells apart
        assert float(rate.bits(x, 2.0**-29)) == 1.5
        assert float(rate.bits({"x": x, "y": jnp.ones(4, jnp.float32)}, 0.5, code="huffman")) == 1
        assert rate.penalty(x).dtype == jnp.float64


def test_degenerate_trees():
    nothing = ({}, {"w": None}, {"w": jnp.zeros((0, 3))}, {"m": optax.MaskedNode()})
    for tree in nothing:
        for code in rate.CODES:
            assert float(rate.bits(tree, 0.1, code=code)) == 0
        for code in DEVICE_CODES:
            assert float(TRACED[code](tree, 0.1)) == 0
        assert float(rate.penalty(tree)) == 0
    for tree in (jnp.zeros(7), jnp.zeros(())):
        rates = {c: float(rate.bits(tree, 0.1, code=c)) for c in rate.CODES}
        n = 7 if np.ndim(tree) else 1
        one = {"exp_golomb": 1.0, "exp_golomb_rank": 1 + (3 + 1) / n, "gg_closed_form": -np.inf}
        assert rates == pytest.approx(dict.fromkeys(rate.CODES, 0.0) | one)
    assert float(rate.bits(jnp.full((4, 4), 0.7), 0.1)) == 0
    assert float(rate.bits(jnp.full((4, 4), 0.7), 0.1, code="huffman")) == 0
    assert float(rate.bits(jnp.full((4, 4), 0.7), 0.1, code="exp_golomb")) == 7  # 7 is number 13, three zeros
    mixed = {"a": jnp.zeros((0, 3)), "b": jnp.array([0.0, 1.0])}
    assert float(rate.bits(mixed, 1.0)) == float(jax.jit(rate.bits)(mixed, 1.0)) == 1


def test_masks_integers_and_containers():
    tree = tree_of()
    want = rate.bits({"a": tree["a"]}, 0.003)
    assert rate.bits(tree, 0.003, mask={"a": True, "b": False}) == want
    assert rate.bits(tree | {"ids": jnp.arange(9)}, 0.003, mask=lambda t: {k: k != "b" for k in t}) == want
    assert rate.bits(nnx.State({"a": nnx.Param(tree["a"])}), 0.003) == want
    r = rate.report(tree, 0.003, mask={"a": False, "b": True})
    assert [row.name for row in r.rows] == ["b/w"]
    assert float(rate.bits(tree, 0.003, mask=False)) == 0
    np.testing.assert_allclose(
        rate.penalty(tree, mask={"a": True, "b": False}), rate.penalty({"a": tree["a"]}), rtol=1e-6
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("x", "y")])
def test_sharded_as_unsharded(kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    w = np.asarray(jax.random.normal(jax.random.key(0), (512, 64))) * 0.02
    tree = {"w": jax.device_put(w, NamedSharding(mesh, spec)), "b": jnp.ones(8)}
    plain = {"w": jnp.asarray(w), "b": jnp.ones(8)}
    want, got = rate.report(plain, 0.003), rate.report(tree, 0.003)
    for a, b in zip((*want.rows, want.total), (*got.rows, got.total), strict=True):
        assert a[:2] == b[:2] and a.levels == b.levels
        np.testing.assert_allclose(list(a.bits.values()), list(b.bits.values()), rtol=2e-6)
    for code in ("fixed", "exp_golomb_rank", "gg"):
        traced = TRACED[code]({"w": tree["w"]}, 0.003)
        np.testing.assert_allclose(traced, rate.bits({"w": plain["w"]}, 0.003, code=code), rtol=2e-6)
    value, grad = jax.jit(jax.value_and_grad(rate.penalty))({"w": tree["w"]})
    np.testing.assert_allclose(value, rate.penalty({"w": plain["w"]}), rtol=1e-6)
    assert grad["w"].sharding.is_equivalent_to(tree["w"].sharding, 2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x")])
def test_no_parameters_travel(kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    w = jax.ShapeDtypeStruct((4096, 1024), jnp.float32, sharding=NamedSharding(mesh, spec))
    for code in ("exp_golomb_rank", "gg"):
        program = TRACED[code].lower(w, 0.003).compile()
        text = program.as_text()
        assert "all-reduce" in text
        assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))
        table = 4 * rate.TRACED_LEVELS
        assert program.memory_analysis().temp_size_in_bytes < 4096 * 1024 * 4 / 8 / 4 + 20 * table


def test_errors_name_what_is_wrong():
    x = jnp.ones(3)
    for step in (0.0, -1.0, np.nan, np.inf):
        for f in (rate.bits, rate.report):
            with pytest.raises(ValueError, match=f"step must be positive and finite, got {step}"):
                f(x, step)
    with pytest.raises(ValueError, match=r"step must be one number, got an array of shape \(2,\)"):
        rate.bits(x, jnp.ones(2))
    for f in (lambda c: rate.bits(x, 1.0, code=c), lambda c: rate.report(x, 1.0, codes=["gg", c])):
        with pytest.raises(ValueError, match="code must be one of entropy, fixed, .*; got 'zip'"):
            f("zip")
    with pytest.raises(ValueError, match=r"leaf 'a/w': expected finite weights, got nan at index \(1,\)"):
        rate.bits({"a": {"w": jnp.array([1.0, np.nan])}}, 0.1)
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got -inf"):
        rate.report({"w": jnp.array([1.0, -np.inf])}, 0.1)
    with pytest.raises(
        ValueError, match="leaf 'w': levels run from -1e.10 to 2e.10 at step 1e-10, expected levels"
    ):
        rate.bits({"w": jnp.array([-1.0, 2.0])}, 1e-10)
    with pytest.raises(ValueError, match="leaf 'w': levels run from inf to inf at step 1e-60"):
        rate.bits({"w": x}, 1e-60)
    with pytest.raises(ValueError, match="no floating-point array to work on.*'ids', is int32"):
        rate.bits({"ids": jnp.arange(3)}, 0.1)
    with pytest.raises(ValueError, match='"huffman" is built on the host and cannot run under jit'):
        jax.jit(functools.partial(rate.bits, code="huffman"))(x, 0.1)
    with pytest.raises(ValueError, match="rate.report needs concrete weights"):
        jax.jit(lambda t: rate.report(t, 0.1))(x)


def test_bad_numbers_under_jit_give_nan():
    for code, f in TRACED.items():
        for x, step in (([1.0, np.nan], 0.1), ([1.0, np.inf], 0.1), ([1.0, 2.0], 0.0), ([1.0, 2.0], -0.1)):
            assert jnp.isnan(f(jnp.array(x), step)), (code, x, step)
        assert jnp.isnan(f(jnp.array([1.0, 2.0]), 1e-10))


def test_report_rows_and_total():
    tree = tree_of()
    r = rate.report(tree, 0.003)
    assert [(row.name, row.size) for row in r.rows] == [("a", 2000), ("b/w", 4000)]
    assert r.total.name == "total" and r.total.size == 6000 and r.step == 0.003
    for row, part in zip((*r.rows, r.total), ({"a": tree["a"]}, {"b": tree["b"]}, tree), strict=True):
        want = expected(part, 0.003)
        assert list(row.bits) == list(rate.CODES)
        for code in rate.CODES:
            np.testing.assert_allclose(row.bits[code], want[code], rtol=2e-6, err_msg=code)
            np.testing.assert_allclose(row.bits[code], rate.bits(part, 0.003, code=code), rtol=1e-6)
        x = np.concatenate([np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(part)])
        np.testing.assert_allclose(row.std, x.std(), rtol=1e-5)
        assert row.levels == len(np.unique(levels64(part, 0.003)))
        np.testing.assert_allclose(row.nu, gennorm.fit(part).nu, rtol=1e-6)
    assert r.nbytes("huffman") == 6000 * r.total.bits["huffman"] / 8


def test_report_prints_as_an_aligned_table():
    r = rate.report(
        {"long/name": jnp.array([0.0, 0.0, 0.5, -0.5]), "z": jnp.zeros(4)}, 0.5, codes=["fixed", "entropy"]
    )
    assert str(r).splitlines() == [
        "bits per parameter at step 0.5",
        "leaf                   size    nu    std  levels   fixed  entropy",
        "-----------------------------------------------------------------",
        "long/name                 4  1.00  0.354       3   2.000    1.500",
        "z                         4  2.00      0       1   0.000    0.000",
        "-----------------------------------------------------------------",
        "total                     8  0.43   0.25       3   2.000    1.061",
        "bytes of the total                                     2        1",
        "smaller than float32                              16.00x   30.15x",
        "smaller than bfloat16                              8.00x   15.08x",
    ]
    empty = rate.report({}, 0.5)
    assert empty.rows == () and empty.total.size == 0 and str(empty).endswith("-")


@pytest.mark.parametrize("eps", [1.0, 1e-3])
@pytest.mark.parametrize("nu", [None, 0.6, 1.0, 2.0])
def test_penalty_and_its_gradient(nu, eps):
    tree = tree_of(0.7, scale=0.05, n=960)
    tree["a"] = tree["a"].at[0].set(0.0)
    x = np.concatenate([np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(tree)])
    shape = float(gennorm.fit(tree).nu) if nu is None else nu
    value, grad = jax.jit(jax.value_and_grad(lambda t: rate.penalty(t, eps=eps, gg_shape=nu)))(tree)
    np.testing.assert_allclose(value, np.mean((np.abs(x) + eps) ** shape), rtol=2e-6)
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grad)])
    want = shape * np.sign(x) * (np.abs(x) + eps) ** (shape - 1) / len(x)
    np.testing.assert_allclose(flat, want, rtol=2e-6, atol=1e-12)
    h, i = 1e-6, 700  # and the same slope by differences, in float64
    moved = [np.mean((np.abs(np.where(np.arange(len(x)) == i, x + d, x)) + eps) ** shape) for d in (h, -h)]
    np.testing.assert_allclose(flat[i], (moved[0] - moved[1]) / (2 * h), rtol=1e-4)


def test_penalty_dtypes_and_errors():
    half = {"w": jnp.array([0.5, -0.25, 0.0], jnp.bfloat16)}
    value, grad = jax.value_and_grad(lambda t: rate.penalty(t, gg_shape=2.0))(half)
    assert value.dtype == jnp.float32 and grad["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(value, (1.5**2 + 1.25**2 + 1) / 3, rtol=1e-6)
    np.testing.assert_array_equal(
        grad["w"].astype(jnp.float32), jnp.bfloat16([1.0, -2.5 / 3, 0.0]).astype(jnp.float32)
    )
    for name in ("eps", "gg_shape"):
        for bad in (0.0, -1.0, np.nan):
            with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {bad}"):
                rate.penalty(half, **{name: bad})
    with pytest.raises(ValueError, match="leaf 'w': expected finite weights, got inf"):
        rate.penalty({"w": jnp.array([jnp.inf])})
    assert jnp.isnan(jax.jit(rate.penalty)({"w": jnp.array([jnp.nan])}))
