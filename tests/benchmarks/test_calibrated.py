"""The benchmark of calibrated compression at a tiny size: it runs, it resumes, and its arithmetic is right."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ggjax
from ggjax import sensitivity
from tests.benchmarks import bench_calibrated
from tests.benchmarks.calibrated import arms, cells, digits, measure, subject


def small_digits() -> subject.Subject:
    """A dense network for the digits, hardly trained."""
    pytest.importorskip("sklearn")
    model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(32), nn.relu, nn.Dense(10)])
    data = digits.data()
    params = jax.jit(model.init)(jax.random.key(0), data.train.inputs[:1])

    @jax.jit
    def step(params):
        def loss(params):
            chosen = jnp.take_along_axis(jax.nn.log_softmax(model.apply(params, data.train.inputs)), labels, -1)
            return -chosen.mean()

        labels = data.train.labels[:, None]
        return jax.tree.map(lambda w, g: w - 0.5 * g, params, jax.grad(loss)(params))

    for _ in range(60):
        params = step(params)

    def quality(changed, split):
        return subject.judged(model.apply, params, changed, [getattr(data, split)])

    parts = np.split(data.train.inputs[:896], 14)
    mask = {"params": {"layers_1": {"kernel": True, "bias": False}, "layers_3": False}}  # one compiled rounding

    def batches(number):
        return iter(parts[:number])

    return subject.Subject("small", params, model.apply, "logits", batches, quality, mask)


def test_quick_runs_and_resumes(tmp_path, capsys, monkeypatch):
    loaded = small_digits()
    command = ["small", "--quick", "--out", str(tmp_path), "--json", str(tmp_path / "found.json")]
    bench_calibrated.main(command, {"small": lambda: loaded})
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["small"]
    assert {row["arm"] for row in found["frontiers"]} == {"uniform", "rows_columns", "compress"}
    for row in found["frontiers"][:2]:
        bits, costs = ([p[k] for p in row["points"]] for k in ("bits", "kl"))
        assert len(bits) >= 4 and bits[0] > bits[-1] and costs[0] < costs[-1]
    assert "| one step for all |" in printed and "| feedback, steps of rows and columns | 2 |" in printed

    # A cell that is missing, or was cut off, is made again; the others are read.
    path = tmp_path / cells.FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"key": ')
    made = []
    compress = ggjax.compress
    monkeypatch.setattr(ggjax, "compress", lambda *a, **k: made.append(k) or compress(*a, **k))
    bench_calibrated.main(command, {"small": lambda: loaded})
    assert len(made) == 1 and capsys.readouterr().out == printed


def test_what_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench_calibrated.main(["nothing"])
    assert "no subject 'nothing'" in capsys.readouterr().err


def test_levels_are_what_the_codec_gives_back():
    """The arms judge weights without decoding them: they are those that the coded bytes stand for."""
    loaded = small_digits()
    state = sensitivity.estimate(
        loaded.apply, loaded.params, loaded.batches(2), key=jax.random.key(0), mask=loaded.mask, trials=False
    )
    rounded = arms.calibrated(loaded, "feedback", state)(arms.start_of(loaded, 0.02))
    name = "params/layers_1/kernel"
    coded = rounded.coded[name]
    kernels = [tree["params"]["layers_1"]["kernel"] for tree in (loaded.params, rounded.params)]
    assert np.array_equal(ggjax.decompress(ggjax.Compressed({name: coded}))[name], kernels[1])
    assert not np.array_equal(*kernels)
    assert list(rounded.coded) == [name] and rounded.bits == 8 * coded.nbytes / coded.size


def test_bits_at_a_cost():
    points = [{"bits": b, "cost": c} for b, c in ((4, 0.001), (3, 0.01), (2, 0.1), (1.5, 0.05))]

    def bits_at(target):
        return measure.bits_at(points, lambda p: p["cost"], target)

    assert bits_at(0.01) == 3
    assert bits_at(math.sqrt(0.001)) == pytest.approx(2.5)  # half way in the logarithm
    assert bits_at(0.0999) == pytest.approx(2, abs=1e-3)
    assert math.isnan(bits_at(0.2)) and math.isnan(bits_at(0.0001))
    # The point of 2 bits costs more than that of 1.5 bits, which can be had for it: it counts for both.
    assert math.isnan(bits_at(0.1))


def test_walk_covers_the_range_of_costs():
    judge = measure.Judge(lambda q: q["cost"], (0.011, 0.1), 1.0)
    found = measure.walk(lambda c: {"bits": -math.log2(c), "cost": c * c}, judge, 0.2, 2.0)
    assert [p["cost"] for p in found] == pytest.approx([0.01, 0.04, 0.16])


def test_judged_against_numpy():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(5, 4)).astype(np.float32), rng.integers(0, 3, 5)
    counted = np.array([True, True, False, True, True])
    old, new = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    data = subject.Examples(jnp.asarray(x), jnp.asarray(labels), jnp.asarray(counted))
    found = subject.judged(lambda w, x: x @ w, jnp.asarray(old), jnp.asarray(new), [data])

    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (x @ old, x @ new))
    i = np.flatnonzero(counted)
    losses = [-np.log(z[i, labels[i]]).mean() for z in (p, q)]
    assert found["loss"] == pytest.approx(losses[1], rel=1e-5)
    assert found["rise"] == pytest.approx(losses[1] / losses[0] - 1, rel=1e-4)
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(1)[i].mean(), rel=1e-4)
    assert found["ear"] == pytest.approx(1 - np.abs(p - q).sum(1)[i].mean() / 2, rel=1e-5)
    assert found["accuracy"] == np.mean(q.argmax(1)[i] == labels[i])
