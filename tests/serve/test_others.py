"""Models of other libraries, which hold small weights as they hold arrays."""

import equinox as eqx
import haiku as hk
import jax

from ggjax import rf8, serve

X = jax.random.normal(jax.random.key(1), (3, 8))


def test_haiku(assert_same, decoded):
    model = hk.transform(lambda x: hk.nets.MLP([16, 4])(x))
    params = model.init(jax.random.key(0), X)
    small = rf8.tree_encode(params)
    found = jax.jit(lambda params, x: serve.apply(model, params, None, x))(small, X)
    assert {len(s) for s in decoded} == {1}
    assert_same(found, model.apply(rf8.tree_decode(small), None, X))


def test_equinox(assert_same, decoded):
    model = eqx.nn.MLP(8, 4, 16, depth=2, key=jax.random.key(0))
    small = rf8.tree_encode(model)
    found = eqx.filter_jit(serve.in_place(lambda model, x: jax.vmap(model)(x)))(small, X)
    assert {len(s) for s in decoded} == {1}
    assert_same(found, jax.vmap(rf8.tree_decode(small))(X))
