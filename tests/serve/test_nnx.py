"""Flax nnx modules with small weights compute what they compute with the decoded ones, and stay modules."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ggjax import rf8, serve
from ggjax.rf8 import RF8Array

TOKENS = jnp.arange(10).reshape(2, 5)


class Model(nnx.Module):
    """Every kind of layer that holds a matrix, a cache, random numbers, and a count of calls."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(10, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.general = nnx.LinearGeneral((8,), (2, 4), rngs=rngs)
        self.einsum = nnx.Einsum("btha,hac->bthc", (2, 4, 3), (2, 3), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, tokens, *, scale=1.0):
        self.calls[...] += 1
        x = self.attention(self.embed(tokens))
        x = self.einsum(self.general(x)).reshape(*tokens.shape, 6)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.embed.attend(self.norm(self.dropout(x))) * scale


@pytest.fixture
def pair():
    """A module with small weights, and the same with what they decode to."""
    model = Model(nnx.Rngs(0))
    small = rf8.tree_encode(nnx.state(model, nnx.Param), mask=lambda s: jax.tree.map(lambda x: x.ndim > 1, s))
    return serve.nnx_module(model, small), serve.nnx_module(model, rf8.tree_decode(small)), model


def test_layers_multiply_in_place_and_state_is_kept(pair, decoded, assert_same):
    served, want, model = pair
    call = nnx.jit(lambda model, tokens: model(tokens, scale=2.0))
    for _ in range(2):  # dropout draws anew
        assert_same(call(served, TOKENS), call(want, TOKENS))
    assert {s for s in decoded if len(s) < 3} <= {(2, 4), (2, 3)}  # biases at most
    assert (2, 5, 8) in decoded and (10, 8) not in decoded
    assert_same(*(nnx.state(m, (nnx.BatchStat, nnx.RngCount)) for m in (served, want)))
    assert served.calls == 2 and model.calls == 0
    assert isinstance(served, Model) and isinstance(served.embed.embedding.get_value(), RF8Array)


def test_it_is_a_module(pair, assert_same):
    served, want, _ = pair
    graph, state = nnx.split(served)
    again = nnx.merge(graph, state)
    again.eval()
    want.eval()
    assert type(again) is type(served) and type(again).__name__ == "ServedModel"
    assert_same(again(TOKENS), want(TOKENS))
    held = serve.nnx_module(again)  # has small weights already
    assert_same(held(TOKENS), want(TOKENS))
    grads = jax.grad(lambda x: jnp.sum(held.layers[0](x)))(jnp.ones((1, 6)))
    assert grads.shape == (1, 6)
    assert serve.nbytes(nnx.state(served, nnx.Param)) < 0.5 * serve.nbytes(nnx.state(want, nnx.Param))


def test_messages(pair):
    *_, model = pair
    with pytest.raises(TypeError, match="model must be an nnx module, got function"):
        serve.nnx_module(lambda x: x)
    with pytest.raises(TypeError, match="Model is an nnx module, which has no apply: serve.nnx_module"):
        serve.apply(model, {}, TOKENS)
    with pytest.raises(
        ValueError, match="leaf 'q/kernel': the module has no such variable; its own are attention/"
    ):
        serve.nnx_module(model, {"q": {"kernel": jnp.ones(2)}})
    with pytest.raises(ValueError, match=r"leaf 'layers/1/kernel': the module has shape \(6, 8\), got \(2,\)"):
        serve.nnx_module(model, {"layers": {1: {"kernel": jnp.ones(2)}}})
