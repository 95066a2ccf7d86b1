"""The demo at a small size: its table, frontier, files and picture, and the parts it is made of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ggjax
from ggjax._internal.atomic import new_file
from ggjax.app import _lm, _measuring, _training, demo, plots

SMALL = demo.Settings(
    steps=600,
    post_steps=20,
    batch=8,
    context=32,
    test_windows=64,
    width=64,
    depth=1,
    heads=2,
    learning_rate=4e-3,
    strength=0.08,
)
NAMES = ["adam", "backslash", "deepshape", "post_trained"]
CALIBRATED = ["adam_calibrated", "backslash_calibrated"]
ENTRIES = [f"{code}_{step}" for step in ("2^-13", "2^-8", "1%") for code in ("entropy", "exp_golomb")]


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """optax.adam is not made for strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def silent(stage, done, /, **numbers):
    assert np.all(np.isfinite(list(numbers.values()))), (stage, done, numbers)


@pytest.fixture(scope="module")
def text():
    return _lm.load_text()


@pytest.fixture(scope="module")
def models(text):
    return _training.train_all(text, SMALL, silent)


@pytest.fixture(scope="module")
def results(text, models, tmp_path_factory):
    return _measuring.measure_all(models, text, SMALL, silent, tmp_path_factory.mktemp("files"))


def levels(params, step):
    return np.concatenate([np.round(np.asarray(x, np.float64) / step).ravel() for x in jax.tree.leaves(params)])


def entropy(params, step):
    counts = np.unique(levels(params, step), return_counts=True)[1]
    return -(counts / counts.sum() @ np.log2(counts / counts.sum()))


def loss64(params, windows):
    """Bits per byte from the model's logits, by float64 NumPy."""
    model = _lm.Model(width=SMALL.width, depth=SMALL.depth, heads=SMALL.heads)
    logits = np.asarray(model.apply({"params": params}, windows[:, :-1]), np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, np.asarray(windows[:, 1:], np.int64)[..., None], -1)[..., 0]
    return np.mean(np.log2(np.exp(logits).sum(-1)) - chosen / np.log(2))


def test_table_has_a_row_of_finite_numbers_per_model(results):
    table = results["table"]
    assert [row["model"] for row in table] == NAMES + CALIBRATED
    files = {"file_bytes", "file_bits", "file_loss", "safetensors_bytes", "zstd_bytes"}
    keys = {"model", "loss", "nu", "step_1%", "loss_1%", "rf8_loss", *ENTRIES, *files}
    for row in table[4:]:
        assert set(row) == {"model", "loss", "nu", "asked_loss", *files}
        assert all(np.isfinite(v) for k, v in row.items() if k != "model")
    for row in table[:4]:
        assert set(row) == keys
        assert all(np.isfinite(row[k]) for k in keys - {"model"})
        assert row["entropy_2^-13"] > row["entropy_2^-8"] > row["entropy_1%"] > 0
        assert row["loss_1%"] <= 1.01 * row["loss"] and 2**-8 < row["step_1%"] <= 2**-2
        assert abs(row["rf8_loss"] / row["loss"] - 1) < 0.05
        assert row["loss"] < 5  # an untrained model has 8


@pytest.mark.parametrize("name", ["adam", "post_trained"])
def test_table_is_right(name, results, models, text):
    row, params = results["table"][NAMES.index(name)], models[name]
    windows = _lm.windows_of(text.test, SMALL.test_windows, SMALL.context)
    np.testing.assert_allclose(row["loss"], loss64(params, windows), rtol=1e-4)
    for key, step in (("2^-13", 2**-13), ("2^-8", 2**-8), ("1%", row["step_1%"])):
        np.testing.assert_allclose(row[f"entropy_{key}"], entropy(params, step), rtol=1e-4)
        q = levels(params, step)
        mapped = np.where(q > 0, 2 * q - 1, -2 * q) + 1  # the code word of m takes 2 floor(log2 m) + 1 bits
        np.testing.assert_allclose(
            row[f"exp_golomb_{key}"], np.mean(2 * np.floor(np.log2(mapped)) + 1), rtol=1e-4
        )


def test_frontier_is_right(results, models, text):
    frontier = results["frontier"]
    steps = [2.0 ** (k / 2) for k in range(-20, -5)]
    expected = [(m, s) for m in ("adam", "backslash") for s in steps]
    assert [(p["model"], p["step"]) for p in frontier[: len(expected)]] == expected
    frontier = frontier[: len(expected)]
    windows = _lm.windows_of(text.test, SMALL.test_windows, SMALL.context)
    for point in frontier[::5]:
        params, step = models[point["model"]], point["step"]
        np.testing.assert_allclose(point["bits"], entropy(params, step), rtol=1e-3)
        rounded = jax.tree.map(lambda x, s=step: jnp.round(x / s) * s, params)
        np.testing.assert_allclose(point["loss"], loss64(rounded, windows), rtol=1e-3)


def test_backslash_takes_fewer_bits_at_about_the_same_loss(models, results, text):
    adam, ours = results["table"][:2]
    assert ours["loss"] < 1.02 * adam["loss"] and ours["nu"] < adam["nu"]
    assert ours["entropy_2^-8"] < adam["entropy_2^-8"] - 0.1
    # At equal loss, well above that of the weights before rounding: below, so small a model's loss differs too
    # much from one training to the next.
    model, windows = _training.model_of(SMALL), _lm.windows_of(text.test, 4 * SMALL.test_windows, SMALL.context)

    def loss_of(params):
        return float(_lm.evaluate(model, params, windows, batch=8))

    bits = []
    for name in ("adam", "backslash"):
        points = _measuring.frontier(models[name], [2.0 ** (k / 2) for k in range(-12, 0)], loss_of)
        bits.append(_measuring.bits_at(points, 1.05 * loss_of(models["adam"])))
    assert bits[1] < bits[0], bits


def test_the_files_hold_the_quantized_models(text, models, results):
    model, windows = _training.model_of(SMALL), _lm.windows_of(text.test, SMALL.test_windows, SMALL.context)
    for row in results["table"][:4]:
        rounded = _measuring.quantize(models[row["model"]], row["step_1%"])
        loss = float(_lm.evaluate(model, rounded, windows, batch=SMALL.batch))
        assert abs(row["file_loss"] - loss) < 1e-5
        # Classes of rows may take a few percent less than the entropy of all levels together.
        assert row["entropy_1%"] * 0.95 < row["file_bits"] < row["entropy_1%"] * 1.1
        assert row["file_bytes"] < row["zstd_bytes"] < row["safetensors_bytes"] / 4


def test_calibrated_files_are_smaller_at_the_same_loss(results):
    table = {row["model"]: row for row in results["table"]}
    for name in ("adam", "backslash"):
        plain, ours = table[name], table[f"{name}_calibrated"]
        assert ours["file_bits"] < 0.8 * plain["file_bits"]
        assert ours["file_loss"] / ours["loss"] - 1 < 0.04  # so few windows tell little
        assert ours["file_bytes"] < ours["zstd_bytes"]
        points = [p for p in results["frontier"] if p["model"] == f"{name}_calibrated"]
        assert all(0.95 * p["asked"] < p["bits"] <= p["asked"] for p in points)
    for name in ("adam", "backslash"):
        reached = [row for row in results["saved"] if f"{name}_calibrated" in row]
        assert reached and all(row[f"{name}_calibrated"] < 0.8 * row[name] for row in reached)


def test_files_are_complete_and_replace_older_ones(text, models, results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_training, "train_all", lambda *_: models)
    monkeypatch.setattr(_measuring, "measure_all", lambda *_: dict(results))
    monkeypatch.setattr(_lm, "load_text", lambda: text)
    out = tmp_path / "a" / "b"
    out.mkdir(parents=True)
    (out / "results.json").write_text("old")
    got = demo.run(out, SMALL, quiet=True)
    assert sorted(p.name for p in out.iterdir()) == ["life.png", "results.json"]
    written = json.loads((out / "results.json").read_text())
    assert written == got
    assert set(written) == {"table", "frontier", "saved", "settings"}
    assert written["settings"]["steps"] == 600 and written["settings"]["ggjax"] == ggjax.__version__
    picture = (out / "life.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n") and picture.endswith(b"IEND\xaeB`\x82") and len(picture) > 50_000

    demo.show(got, out)
    shown = capsys.readouterr().out
    words = [*demo.LABELS.values(), "RF8", f"{results['table'][0]['loss']:.3f}"]
    assert all(word in shown for word in words)
    lines = [line for line in shown.splitlines() if str(out) not in line]
    assert max(map(len, lines)) <= 90, max(lines, key=len)
    assert "…" not in shown


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(path) as f:
        f.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_pictures_draw_on_given_axes(models, results):
    ax = plots.histogram(models["adam"])
    assert plots.histogram(models["backslash"], ax, color=plots.ORANGE) is ax
    assert ax.get_yscale() == "log" and len(ax.get_lines()) == 2
    law = ggjax.gennorm.fit(models["adam"])
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(y, np.exp(ggjax.gennorm.logpdf(np.float32(x), *law)), rtol=1e-4)
    ax = plots.frontier(results["frontier"])
    assert [len(line.get_xdata()) for line in ax.get_lines()] == [15, 15, 4, 4]
    assert len(plots.life(models, results).axes) == 4
