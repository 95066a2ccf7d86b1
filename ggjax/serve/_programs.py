"""Small arrays that go into loops, branches and calls: each is built again around the program inside it."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ggjax.serve import _kinds
from ggjax.serve._held import Held, all_floats, floats, is_held

Run = Callable[[Any, Any, list[Any]], list[Any]]
"""Runs a traced program: (jaxpr, consts, operands) to results, any of which may be held."""


def _call(eqn: Any, values: list[Any], run: Run) -> list[Any] | None:
    inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
    return run(inner.jaxpr, inner.consts, values)


def _checkpoint(eqn: Any, values: list[Any], run: Run) -> list[Any] | None:
    p, (put, parts) = eqn.params, _apart(values)

    def inside(parts: list[Any]) -> list[Any]:
        return all_floats(run(p["jaxpr"], (), put(parts)))

    return jax.checkpoint(inside, policy=p["policy"], prevent_cse=p["prevent_cse"])(parts)


def _cond(eqn: Any, values: list[Any], run: Run) -> list[Any] | None:
    if eqn.params.get("branches_platforms"):
        return None  # the platform chooses when the program is compiled
    at, *operands = values
    put, parts = _apart(operands)

    def branch(closed: Any) -> Callable[[list[Any]], list[Any]]:
        return lambda parts: all_floats(run(closed.jaxpr, closed.consts, put(parts)))

    return lax.switch(floats(at), [branch(b) for b in eqn.params["branches"]], parts)


def _while(eqn: Any, values: list[Any], run: Run) -> list[Any] | None:
    p = eqn.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    of_cond, of_body, start = values[:first], values[first:second], all_floats(values[second:])

    def go_on(carry: list[Any]) -> Any:
        inner = p["cond_jaxpr"]
        return floats(run(inner.jaxpr, inner.consts, [*of_cond, *carry])[0])

    def step(carry: list[Any]) -> list[Any]:
        inner = p["body_jaxpr"]
        return all_floats(run(inner.jaxpr, inner.consts, [*of_body, *carry]))

    return lax.while_loop(go_on, step, start)


def _scan(eqn: Any, values: list[Any], run: Run) -> list[Any] | None:
    """Small arrays that are scanned over are taken apart layer by layer, as they are."""
    p = eqn.params
    inner, first, second = p["jaxpr"], p["num_consts"], p["num_consts"] + p["num_carry"]
    consts, carry = values[:first], all_floats(values[first:second])
    put, layers = _apart([_layers(x) for x in values[second:]], of_layers=True)

    def step(carry: list[Any], parts: list[Any]) -> tuple[list[Any], list[Any]]:
        found = all_floats(run(inner.jaxpr, inner.consts, [*consts, *carry, *put(parts)]))
        return found[: p["num_carry"]], found[p["num_carry"] :]

    options = {k: p[k] for k in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(step, carry, layers, **options)
    return [*carry, *ys]


def _layers(x: Any) -> Any:
    if not is_held(x):
        return x
    array = _kinds.stacked(x.array) if x.order[0] == 0 else None
    return floats(x) if array is None else x._replace(array=array)


def _apart(values: list[Any], of_layers: bool = False) -> tuple[Callable[[list[Any]], list[Any]], list[Any]]:
    """The values as trees of arrays, and a function that makes of such trees what they were.

    Args:
      values: arrays, held ones among them.
      of_layers: whether the function gets trees without their first axis.
    """

    def put(parts: list[Any]) -> list[Any]:
        return [_like(v, x) if is_held(v) else x for v, x in zip(values, parts, strict=True)]

    def _like(view: Held, array: Any) -> Held:
        order = tuple(a if a is None else a - 1 for a in view.order[1:]) if of_layers else view.order
        return view._replace(array=array, order=order)

    return put, [x.array if is_held(x) else x for x in values]


PROGRAMS: dict[str, Callable[[Any, list[Any], Run], list[Any] | None]] = {
    "jit": _call,
    "pjit": _call,
    "closed_call": _call,
    "core_call": _call,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
}
"""By the names of JAX's primitives. A function with a derivative of its own is left whole: it gets floats."""
