"""Flax linen models with small weights compute what they compute with the decoded ones."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from ggjax import rf8, serve

X = jax.random.normal(jax.random.key(1), (2, 6, 8))
TOKENS = jnp.array([[0, 3, 9], [-1, 10, 5]])


class Tied(nn.Module):
    """An embedding that is used at both ends."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(10, 8, dtype=self.dtype)
        return embed.attend(nn.Dense(8, dtype=self.dtype)(embed(tokens)))


class Own(nn.Module):
    """A module that makes its kernels itself, with a LoRA beside one."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        w = self.param("kernel", init, (8, 12))
        a, b = self.param("a", init, (8, 2)), self.param("b", init, (2, 12))
        scale = self.param("scale", nn.initializers.ones, (12,))
        return (x @ w + x @ a @ b) * scale[None, None]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.remat(nn.Dense)(16)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(y)), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes, rngs = {"params": 0}, {"params": True}
        return nn.scan(Layer, variable_axes=axes, split_rngs=rngs, length=3)()(x, None)[0]


MODELS = {
    "Dense": nn.Dense(12),
    "DenseGeneral": nn.DenseGeneral((3, 4), axis=(-2, -1)),
    "DenseGeneral of a batch": nn.DenseGeneral(4, axis=-1, batch_dims=(0,)),
    "Einsum": nn.Einsum((8, 3, 4), "btd,dhk->bthk"),
    "attention": nn.MultiHeadDotProductAttention(num_heads=2),
    "Own": Own(),
    "scan and remat": Stacked(),
}
CONVOLUTIONS = {"Conv": nn.Conv(5, (3,)), "ConvTranspose": nn.ConvTranspose(5, (3,))}


def made(model, *args):
    """Variables of which biases are not zero."""
    variables = jax.jit(model.init)(jax.random.key(0), *args)
    return jax.tree.map(lambda x: x if x.ndim > 1 else x + 0.5, variables)


@pytest.mark.parametrize("name", MODELS)
def test_layers_multiply_in_place(name, small, decoded, assert_same):
    model = MODELS[name]
    variables = small(made(model, X))
    found = jax.jit(functools.partial(serve.apply, model))(variables, X)
    assert max(map(math.prod, decoded), default=0) <= 16  # biases at most
    assert_same(found, model.apply(rf8.tree_decode(variables), X))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_decode_their_own_kernel(name, small, decoded, assert_same):
    model = nn.Sequential([CONVOLUTIONS[name], nn.Dense(3)])
    variables = small(made(model, X))
    found = jax.jit(functools.partial(serve.apply, model))(variables, X)
    assert len(decoded) == 1
    assert_same(found, model.apply(rf8.tree_decode(variables), X))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_embeddings(dtype, small, decoded, assert_same):
    model = Tied(dtype)
    variables = small(made(model, TOKENS), axis=1)
    found = jax.jit(functools.partial(serve.apply, model))(variables, TOKENS)
    assert decoded == [(2, 3, 8)]  # the rows of the tokens
    assert np.isnan(found[1, 1]).all() and np.isnan(found).sum() == 10  # 10 is no token
    assert_same(found, model.apply(rf8.tree_decode(variables), TOKENS), 1e-6 if dtype is None else 0.02)


@pytest.mark.parametrize(
    "options",
    [{"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}, {"dtype": jnp.float16}],
    ids=["computes in bfloat16", "has bfloat16", "computes in float16"],
)
def test_dtypes_are_those_of_the_model(options, small, assert_same):
    model = nn.Dense(12, **options)
    with jax.numpy_dtype_promotion("standard"):
        variables = small(made(model, X))
        for x in (X, X.astype(jnp.bfloat16)):
            found = serve.apply(model, variables, x)
            assert_same(found, model.apply(rf8.tree_decode(variables), x), 0.01)


def test_what_apply_takes(small, assert_same):
    model = nn.Sequential(
        [nn.Dense(8), nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=False)]
    )
    variables = small(made(model, X))
    options = {"rngs": {"dropout": jax.random.key(5)}, "mutable": ["batch_stats"]}
    found = serve.apply(model, variables, X, **options)
    assert_same(found, model.apply(rf8.tree_decode(variables), X, **options))
    embed = nn.Embed(10, 8)
    variables = small(made(embed, TOKENS))
    assert serve.apply(embed, variables, X, method="attend").shape == (2, 6, 10)


def test_partitioned_weights_and_gradients(assert_same):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Dense(12, kernel_init=init)
    variables = rf8.tree_encode(made(model, X))
    assert isinstance(variables["params"]["kernel"], nn.Partitioned)

    def total(apply, variables, x):
        return jnp.sum(apply(variables, x) ** 2)

    found = jax.jit(jax.grad(functools.partial(total, functools.partial(serve.apply, model)), argnums=1))(
        variables, X
    )
    assert_same(
        found, jax.grad(functools.partial(total, model.apply), argnums=1)(rf8.tree_decode(variables), X)
    )


def test_messages(small):
    variables = small(made(MODELS["Dense"], X))
    with pytest.raises(ScopeParamShapeError, match=r'"kernel" in "/", .* \(8, 7\), but .* \(8, 12\)'):
        serve.apply(nn.Dense(7), variables, X)
    with pytest.raises(TypeError, match="must have an apply or be a function, got dict"):
        serve.apply({}, variables, X)
