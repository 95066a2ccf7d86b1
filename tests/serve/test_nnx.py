"""Flax nnx modules with small weights compute what they compute with the decoded ones, and stay modules."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ggjax import codec, rf8, serve
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


class Decoder(nnx.Module):
    """What it changes lies in its arguments."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, scale, cache, *, rngs, mode="add"):
        cache["sum"][...] += x if mode == "add" else -x
        return self.dropout(x @ scale + self.layer(x), rngs=rngs)


def test_what_a_call_changes_in_its_arguments_is_changed(decoded, assert_same):
    model, x, scale = Decoder(nnx.Rngs(0)), jnp.ones((1, 8)), rf8.encode(jnp.eye(8))
    small = rf8.tree_encode(nnx.state(model, nnx.Param))
    served, want = (serve.nnx_module(model, w) for w in (small, rf8.tree_decode(small)))
    rngs, cache = [nnx.Rngs(5) for _ in "ab"], [{"sum": nnx.Variable(jnp.zeros((1, 8)))} for _ in "ab"]
    ys = []
    for call in (lambda m, *args: m(*args[:3], rngs=args[3]), nnx.jit(lambda m, *a: m(*a[:3], rngs=a[3]))):
        ys.append(call(served, x, scale, cache[0], rngs[0]))
        assert_same(ys[-1], want(x, jnp.eye(8), cache[1], rngs=rngs[1]))
    assert not decoded
    assert (ys[0] == 0).tolist() != (ys[1] == 0).tolist()
    assert rngs[0].default.count == 2 and cache[0]["sum"].get_value().tolist() == [[2.0] * 8]
    served(x, scale, cache[0], rngs=rngs[0], mode="subtract")
    assert cache[0]["sum"].get_value().tolist() == [[1.0] * 8]


def test_methods_of_a_module_that_is_not_called(decoded, assert_same):
    class Coder(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(32, 16, use_bias=False, rngs=rngs)

        def encode(self, x):
            return self.layer(x)

    model, x = Coder(nnx.Rngs(0)), jnp.ones((1, 32))
    with pytest.raises(TypeError, match="Coder has no __call__: .* serve.in_place"):
        serve.nnx_module(model)
    q = codec.resident({"w": model.layer.kernel.get_value()}, bits=8)["w"]
    nnx.update(model, {"layer": {"kernel": q}})
    found = jax.jit(serve.in_place(lambda model, x: model.encode(x)))(model, x)
    assert not decoded
    assert_same(found, x @ q.decode())


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
