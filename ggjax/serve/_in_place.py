"""The transformation: trace a function as for floats, then run what was traced with the small arrays."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from ggjax._internal import trees
from ggjax.serve import _kinds
from ggjax.serve._held import all_floats, hold, is_held, out
from ggjax.serve._operations import OPERATIONS
from ggjax.serve._programs import PROGRAMS

F = TypeVar("F", bound=Callable[..., Any])


def in_place(f: F) -> F:
    """f for arguments with small arrays in place of float ones, which it multiplies by as they lie.

    A ``Compressed`` tree stands for what was compressed: each of its arrays is decoded where it is used.
    The result is jittable where f is, and has gradients (``jax.grad``) with respect to the float arrays, in
    reverse mode only. Call it under ``jax.jit``: otherwise every call traces f anew. Without a small array
    among the arguments it is f.

    An nnx object among the arguments reaches f as a copy: what f changes in it is lost unless f returns it
    (``nnx_module`` takes care of that).

    Args:
      f: any function of trees of arrays that JAX can trace. It sees float arrays of the shapes and dtypes that
        the small ones stand for.

    Returns:
      A function of the same arguments and results. A small array that f returns as it is, comes back small.

    Raises:
      TypeError or ValueError: a small array whose fields do not fit together; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> from ggjax import rf8
    >>> params = {"w": rf8.encode(jnp.array([[0.5], [0.25]])), "b": jnp.array([1.0])}
    >>> f = in_place(lambda params, x: jnp.tanh(x @ params["w"] + params["b"]))
    >>> jax.jit(f)(params, jnp.array([2.0, -8.0])).tolist()
    [0.0]
    """

    @functools.wraps(f)
    def served(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _kinds.opened((args, kwargs))
        flat, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=_kinds.is_small)
        leaves = [x for _, x in flat]
        at = [i for i, x in enumerate(leaves) if _kinds.is_small(x)]
        if not at:
            return f(*args, **kwargs)

        def of_small(*floats: jax.Array) -> Any:
            filled = dict(zip(at, floats, strict=True))
            args, kwargs = treedef.unflatten(filled.get(i, x) for i, x in enumerate(leaves))
            return f(*args, **kwargs)

        shapes = [_kinds.checked(flat[i][1], f"leaf {_name(flat[i][0])!r}") for i in at]
        closed, results = jax.make_jaxpr(of_small, return_shape=True)(*shapes)
        found = run(closed.jaxpr, closed.consts, [hold(leaves[i]) for i in at])
        return jax.tree.unflatten(jax.tree.structure(results), map(out, found))

    return served  # type: ignore[return-value]  # pyrefly: ignore


def run(jaxpr: Any, consts: Any, values: list[Any]) -> list[Any]:
    """The results of a traced program whose operands, constants and results may be held."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, values, strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else known[v]

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        found = _by_rule(eqn, operands) if any(map(is_held, operands)) else None
        if found is None or any(x is None for x in found):
            found = _as_traced(jaxpr, eqn, all_floats(operands))
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _by_rule(eqn: Any, operands: list[Any]) -> list[Any] | None:
    name = eqn.primitive.name
    with jax.named_scope(str(eqn.source_info.name_stack)):
        if name in PROGRAMS:
            return PROGRAMS[name](eqn, operands, run)
        return OPERATIONS[name](eqn, operands) if name in OPERATIONS else None


def _as_traced(jaxpr: Any, eqn: Any, operands: list[Any]) -> Any:
    """The results of one equation of the program."""
    named = {v: x for v, x in zip(eqn.invars, operands, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(constvars=[], invars=[*named], outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*named.values())


def _name(path: Any) -> str:
    """The name of a leaf of (args, kwargs), without the argument that it belongs to."""
    return trees.leaf_name(path[2:] or path)
