"""The parts that the demo is made of: steps, interpolation, schedules, text, and the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ggjax
from ggjax.app import _lm, _measuring, _training, demo
from tests.app.test_demo import SMALL, silent


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """optax.adam is not made for strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def text():
    return _lm.load_text()


def test_coarsest_step_is_the_last_within_the_limit():
    params = {"w": jnp.array([0.3])}
    asked = []

    def loss_of(p):  # rises with the step it was rounded to
        step = max(
            s for s in (2.0 ** (k / 4) for k in range(-52, -7)) if np.isclose(p["w"][0] % s, 0) or s < 1e-3
        )
        asked.append(step)
        return step

    assert _measuring.coarsest_step(params, 0.0, loss_of)[0] == 2.0**-13
    assert _measuring.coarsest_step(params, np.inf, loss_of)[0] == 2.0**-2
    assert len(asked) <= 16


def test_bits_at_equal_loss_are_interpolated():
    def curve(model, bits, losses):
        return [
            {"model": model, "step": 2.0**-k, "bits": b, "loss": x}
            for k, b, x in zip((10, 9, 8), bits, losses, strict=True)
        ]

    frontier = curve("adam", (6.0, 4.0, 2.0), (1.0, 1.02, 1.2)) + curve(
        "backslash", (4.0, 2.0, 1.0), (0.99, 1.02, 1.1)
    )
    rows = {row["rise"]: row for row in _measuring.saved_bits(frontier, 1.0)}
    assert set(rows) == {0.005, 0.01, 0.02, 0.05, 0.1}
    assert rows[0.01]["adam"] == pytest.approx(5.0)
    assert rows[0.01]["backslash"] == pytest.approx(4 - 2 * 2 / 3)
    assert rows[0.02]["saved"] == pytest.approx(0.5)
    # A level below the finest point or beyond the coarsest one has no answer.
    assert [r["rise"] for r in _measuring.saved_bits(frontier, 1.08)] == [0.005, 0.01]


def test_both_trainings_begin_with_the_same_weights(text, monkeypatch):
    starts = []

    def train(model, tx, params, *rest, **options):
        starts.append(params)
        return params

    monkeypatch.setattr(_training, "train", train)
    _training.train_all(text, SMALL, silent)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), starts[0], starts[1])))
    kernel = np.asarray(starts[0]["up_0"]["kernel"])  # 64 to 256
    np.testing.assert_allclose(kernel.std() ** 2, SMALL.xi / 160, rtol=0.05)
    assert ggjax.gennorm.fit(kernel).nu > 1.9


def test_backslash_follows_the_learning_rate_and_ends_in_fine_tuning():
    s = SMALL._replace(steps=1000, fine_tune=0.2, learning_rate=2e-3)
    seen, lr = _training.until_fine_tuning(_training.schedule(s), s), _training.schedule(s)
    for count in (0, 100, 500, 799):
        np.testing.assert_allclose(seen(count), lr(count), rtol=1e-5)
    np.testing.assert_allclose(seen(100), 2e-3, rtol=1e-6)
    assert float(seen(800)) == 0 and float(lr(800)) > 0
    assert demo.FULL.steps > demo.QUICK.steps


def test_text_is_split_by_file_and_skips_tests(tmp_path):
    for i in range(20):
        (tmp_path / f"m{i:02}.py").write_text(f"# {i:02}\n" * 2000)
    for folder in ("test", "site-packages", "lib/tests"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("# never\n" * 100)
    text = _lm.load_text(tmp_path)
    train, validation, test = (bytes(np.asarray(t)) for t in text)
    assert b"never" not in train + validation + test
    assert set(validation.split(b"\n")) == {b"# 09", b""} and set(test.split(b"\n")) == {b"# 19", b""}
    assert set(train.split(b"\n")) == {b"# %02d" % i for i in range(20) if i not in (9, 19)} | {b""}
    with pytest.raises(
        FileNotFoundError, match=r"too little Python source under .*lib to train on \(0 files, 0 bytes\)"
    ):
        _lm.load_text(tmp_path / "lib")


def test_model_has_half_a_million_parameters_or_more_and_is_causal():
    full = jax.eval_shape(lambda: _lm.init(_lm.Model(), 0))
    assert 500_000 <= sum(x.size for x in jax.tree.leaves(full)) <= 1_500_000
    assert all(x.ndim == 2 for x in jax.tree.leaves(full))
    model = _lm.Model(width=16, depth=2, heads=2)
    params = _lm.init(model, 0)
    a = jnp.arange(12, dtype=jnp.uint8)[None]
    b = a.at[0, 8].set(200)
    x, y = (np.asarray(model.apply({"params": params}, t)) for t in (a, b))
    np.testing.assert_array_equal(x[:, :8], y[:, :8])
    assert np.all(np.abs(x[:, 8:] - y[:, 8:]).max(-1) > 1e-6)


def test_training_depends_on_the_step_numbers_only(text):
    import optax

    model, tx = _lm.Model(width=16, depth=1, heads=2), optax.adam(1e-2)

    def train(ends, seed=0):
        params = _lm.init(model, 0)
        state, key = tx.init(params), jax.random.key(seed)
        for first, last in zip(ends, ends[1:], strict=False):
            params, state, loss = _lm.train_steps(
                model, tx, params, state, text.train, key, first, last, batch=2, context=16
            )
        return params, float(loss)

    whole, loss = train([0, 8])
    parts, _ = train([0, 3, 8])
    other, _ = train([0, 8], seed=1)
    assert 0 < loss < 9
    same = jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts)
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(whole["head"]["kernel"], other["head"]["kernel"])
