"""Running programs from the host: few shapes, so that few are compiled; one a core; outside every trace."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context

FEW = 1 << 16
"""Fewer weights than this are turned into tokens, and back, by NumPy: programs run over whole chunks."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def bucket(n: int) -> int:
    """The next power of two, or above 8 the next multiple of 8.

    Sizes are rounded up to these, which bounds both the number of programs and the work that is wasted.
    """
    return -(-n // 8) * 8 if n > 8 else 1 << (n - 1).bit_length()


def padded(x: np.ndarray, size: int) -> np.ndarray:
    """A vector with zeros at its end that make it ``size`` long; itself where it is that long."""
    if len(x) == size:
        return x
    out = np.zeros(size, x.dtype)
    out[: len(x)] = x
    return out


def concatenated(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
    """The arrays one after another; no copy of a single one, which may be large."""
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0, dtype), *arrays])


@contextlib.contextmanager
def outside_trace() -> Iterator[None]:
    """A block in which programs run at once and give numbers.

    It makes concrete arrays that a traced function closes over (in jit, scan, vmap, grad) usable as outside it.
    The programs are compiled even under ``jax.disable_jit``: a coder's steps one by one would take minutes. A
    NaN in one of them is a weight to be kept, so ``jax_debug_nans`` and ``jax_debug_infs`` are off.
    """
    with eval_context(), jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):
        yield


def in_parallel(f: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """``[f(x) for x in items]`` outside every trace: on a CPU as many at a time as there are cores, since a
    program for the lanes runs on one of them. While the interpreter is shutting down, no thread can be started,
    and all is done by this one."""

    def run(x: _T) -> _R:  # a thread does not inherit the block
        with outside_trace():
            return f(x)

    items = list(items)
    threads = min(len(items), _cores())
    if threads < 2 or jax.default_backend() != "cpu":
        return [run(x) for x in items]
    try:
        from concurrent.futures import ThreadPoolExecutor
    except RuntimeError:  # the first import of it, at exit
        return [run(x) for x in items]
    started = []
    with ThreadPoolExecutor(threads) as pool:
        with contextlib.suppress(RuntimeError):
            started.extend(pool.submit(run, x) for x in items)
        return [*(s.result() for s in started), *(run(x) for x in items[len(started) :])]


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def namespace_of(x: Any) -> Any:
    """``numpy`` for its arrays, otherwise ``jax.numpy``."""
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp
