"""Flax nnx modules, which hold their weights themselves."""

import functools
from typing import Any

import jax
from flax import nnx

from ggjax.codec import Compressed
from ggjax.serve import _kinds
from ggjax.serve._in_place import in_place


def nnx_module(model: Any, weights: Any = None) -> Any:
    """The module with small weights in its variables, which it multiplies by where they lie.

    It is a module like the one given: its class is a subclass that only calls it ``in_place``, so it goes
    through ``nnx.jit``, ``nnx.split`` and ``nnx.merge``. Variables that a call changes (caches, counts of
    random keys), in the module or in its arguments (``rngs=``), are changed; plain attributes that it sets are
    not. The module given stays as it was; variables that are not replaced are shared with it as arrays.

    Only calling the module itself multiplies in place. Its other methods and its parts, called from outside,
    decode an ``RF8Array`` where they use it, and refuse other small arrays: for those,
    ``serve.in_place(lambda m, x: m.encode(x))(small, x)``.

    Args:
      model: an nnx module.
      weights: an ``nnx.State`` or nested dict of what to put in place of variables, such as
        ``rf8.tree_encode(nnx.state(model, nnx.Param))``; others keep what they have. None if the module has
        small arrays already.

    Raises:
      TypeError: the model is not an nnx module, or has no ``__call__``.
      ValueError: weights that the module lacks, or has in another shape; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> from ggjax import rf8
    >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    >>> small = nnx_module(model, rf8.tree_encode(nnx.state(model, nnx.Param)))
    >>> small.kernel.get_value()
    RF8Array(codes=uint8(3, 2), exponents=int8(1, 1), dtype=float32)
    >>> nnx.jit(lambda model, x: model(x))(small, jnp.ones((1, 3))).shape
    (1, 2)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be an nnx module, got {type(model).__name__}")
    if not callable(model):
        raise TypeError(
            f"{type(model).__name__} has no __call__: put small weights in its variables with "
            "nnx.update(model, weights), and use "
            "serve.in_place(lambda model, x: model.encode(x))(model, x) for its methods"
        )
    graph, state = nnx.split(model)
    served = nnx.merge(graph, state if weights is None else _replaced(state, weights), copy=True)
    served.__class__ = _served(type(model))
    return served


def _replaced(state: nnx.State, weights: Any) -> nnx.State:
    """The state with these weights in place of its own."""
    own = dict(nnx.to_flat_state(state))
    for path, new in _flat(weights):
        name = "/".join(map(str, path))
        if path not in own:
            raise ValueError(f"leaf {name!r}: the module has no such variable; its own are {_names(own)}")
        had = own[path].get_value()
        if getattr(new, "shape", None) != had.shape:
            raise ValueError(
                f"leaf {name!r}: the module has shape {had.shape}, got {getattr(new, 'shape', new)}"
            )
        own[path] = own[path].replace(new)
    return nnx.from_flat_state(own)


def _flat(weights: Any) -> list[tuple[tuple[Any, ...], Any]]:
    flat = jax.tree_util.tree_leaves_with_path(
        weights, is_leaf=lambda x: _kinds.is_small(x) or isinstance(x, nnx.Variable)
    )
    return [(tuple(map(_key, path)), x.get_value() if isinstance(x, nnx.Variable) else x) for path, x in flat]


def _key(entry: Any) -> Any:
    return getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))


def _is_node(x: Any) -> bool:
    """Whether a call can change what x holds."""
    return isinstance(x, (nnx.Pytree, nnx.Variable))


def _is_leaf(x: Any) -> bool:
    return _is_node(x) or _kinds.is_small(x) or isinstance(x, Compressed)


def _names(own: Any) -> str:
    names = ["/".join(map(str, path)) for path in own]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


@functools.cache
def _served(cls: type) -> type:
    """The class of a module that is called in place."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=_is_leaf)
        at = [i for i, x in enumerate(leaves) if _is_node(x)]
        nodes = (self, *(leaves[i] for i in at))
        others = [None if _is_node(x) else x for x in leaves]
        graph, state = nnx.split(nodes)
        small = {path for path, x in nnx.to_flat_state(state) if _kinds.is_small(x.get_value())}

        def pure(leaves: Any, *states: Any) -> Any:
            now = nnx.merge(graph, nnx.State(dict(zip(state, states, strict=True))))
            module, *given = now
            filled = dict(zip(at, given, strict=True))
            args, kwargs = treedef.unflatten(filled.get(i, x) for i, x in enumerate(leaves))
            y = cls.__call__(module, *args, **kwargs)
            return y, nnx.state(now, lambda path, x: path not in small)

        y, changed = in_place(pure)(others, *(state[i] for i in state))  # each by its own names
        nnx.update(nodes, changed)
        return y

    names = {
        "__call__": functools.wraps(cls.__call__)(call),
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    return type(f"Served{cls.__name__}", (cls,), names)
