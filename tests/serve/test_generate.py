"""The demo's language model writes the same text with small weights as with what they decode to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggjax import codec, rf8, serve
from ggjax.app import _lm
from ggjax.app._generate import generate

MODEL = _lm.Model(width=48, depth=2, heads=4)
PROMPT = jnp.asarray(np.frombuffer(b"import numpy", np.uint8)[None])
FORMS = {
    "RF8": rf8.tree_encode,
    "levels": lambda p: codec.resident(codec.compress(p, step=2**-7)),
    "compressed": lambda p: codec.compress(p, step=2**-7),
}


@pytest.fixture(scope="module")
def params():
    params = _lm.init(MODEL, 1)
    return {**params, "head": {"kernel": 8 * params["head"]["kernel"]}}  # no two bytes are almost as likely


@pytest.mark.parametrize("form", FORMS)
def test_the_same_text(form, params):
    small = FORMS[form](params)
    found, want = (generate(MODEL, p, PROMPT, 24) for p in (small, serve.tree_decode(small)))
    assert found.shape == (1, 36) and bytes(found[0, :12].tolist()) == b"import numpy"
    assert len({*found[0, 12:].tolist()}) > 3
    np.testing.assert_array_equal(found, want)


def test_a_byte_a_weight(params):
    assert 3.99 < serve.nbytes(params) / serve.nbytes(rf8.tree_encode(params)) <= 4


def test_the_cache_changes_nothing(params):
    text = np.asarray(generate(MODEL, params, jnp.concatenate([PROMPT, PROMPT + 1]), 10))
    logits = MODEL.apply({"params": params}, jnp.asarray(text))
    assert isinstance(logits, jax.Array)
    np.testing.assert_array_equal(text[:, 12:], np.argmax(logits, -1)[:, 11:-1])
