"""Models with an ``apply``: Flax linen, Haiku, and plain functions of parameters."""

import sys
from typing import Any

from ggjax.serve._in_place import in_place


def apply(model: Any, variables: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``model.apply(variables, ...)`` with small weights among the variables, multiplied by where they lie.

    Args:
      model: a Flax linen module, a Haiku transformed function, or a function of the variables.
      variables: what the model takes, any of its float arrays replaced by a small one.
      *args, **kwargs: what else the model takes (``rngs``, ``mutable``, ``method`` and so on).

    Returns:
      What the model returns.

    Raises:
      TypeError: the model has no ``apply`` and cannot be called, or is an nnx module; or as ``in_place``.

    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from ggjax import rf8
    >>> model, x = nn.Dense(2, use_bias=False), jnp.ones((1, 3))
    >>> params = {"kernel": jnp.array([[1.0, 2.0], [0.5, 0.25], [0.0, 4.0]])}
    >>> serving = jax.jit(lambda params, x: apply(model, {"params": params}, x))
    >>> serving(rf8.tree_encode(params), x).tolist()
    [[1.5, 6.25]]
    """
    if "flax.nnx" in sys.modules and isinstance(model, sys.modules["flax.nnx"].Module):
        raise TypeError(
            f"{type(model).__name__} is an nnx module, which has no apply: serve.nnx_module(model, weights) "
            "gives a module to call"
        )
    f = getattr(model, "apply", model)
    if not callable(f):
        raise TypeError(f"model must have an apply or be a function, got {type(model).__name__}")
    return in_place(f)(variables, *args, **kwargs)
