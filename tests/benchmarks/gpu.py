"""What an accelerator makes of it: ``python -m tests.benchmarks.gpu``.

The table of ``bench_scale peers``, then shares of the memory bandwidth (that of a copy on the same device)
that RF8 and the BackSlash step reach, and the rates of rANS. Runs on any backend, but says so where that is
a CPU.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ggjax
from ggjax import rf8
from ggjax.codec.entropy import _models, _rans
from tests.benchmarks import bench_scale
from tests.benchmarks.bench_core import times, trained_like


def shares(n: int) -> None:
    """Bytes that have to be moved, by the time, by the bandwidth."""
    x = trained_like(n)
    copy = jax.jit(lambda v: v + 1)
    bandwidth = 8 * n / times(lambda: copy(x), repeats=20)[0]
    print(f"\nbandwidth of x + 1, {n:.0e} float32: {bandwidth / 1e9:.1f} GB/s")
    q = rf8.encode(x)
    encode, decode = jax.jit(rf8.encode), jax.jit(rf8.decode)
    half = jax.jit(lambda c: rf8.decode(c, jnp.bfloat16))
    rows: list[tuple[str, Callable[[], Any], int]] = [
        ("rf8.encode (two reads, for the exponent, and a write)", lambda: encode(x), 4 + 4 + 1),
        ("rf8.decode to float32", lambda: decode(q), 1 + 4),
        ("rf8.decode to bfloat16", lambda: half(q), 1 + 2),
    ]
    for name, run, moved in rows:
        seconds = times(run, repeats=20)[0]
        print(
            f"{name:<58} {1e3 * seconds:8.3f} ms  {100 * moved * n / seconds / bandwidth:5.1f} % of bandwidth"
        )

    params, grads = {"w": x}, {"w": 1e-3 * x}
    adam = optax.adam(1e-3)
    for name, tx, moved in (
        ("Adam, update and apply", adam, 7),
        ("Adam + BackSlash, update and apply", optax.chain(adam, ggjax.backslash(3.0)), 8),
    ):
        carry: list[Any] = [jax.tree.map(jnp.copy, params), tx.init(params)]

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(p: Any, s: Any, tx: Any = tx) -> Any:
            u, s = tx.update(grads, s, p)
            return optax.apply_updates(p, u), s

        def run(carry: list[Any] = carry, step: Any = step) -> Any:
            carry[:] = step(*carry)
            return carry

        seconds = times(run, repeats=20)[0]
        print(
            f"{name:<58} {1e3 * seconds:8.3f} ms  {400 * moved * n / seconds / bandwidth:5.1f} % of bandwidth"
        )


def rans(lanes: int) -> None:
    """Rates of the lanes of the codec, tokens at 4 bits."""
    rng = np.random.default_rng(0)
    tokens = np.clip(np.rint(rng.laplace(size=(_rans.STEPS, lanes)) * 3) + 128, 1, 255).astype(np.uint8)
    table = _models.frequencies(np.bincount(tokens.ravel(), minlength=256))
    lengths, models = jnp.full(lanes, _rans.STEPS, jnp.int32), jnp.zeros(lanes, jnp.int32)
    encoder = jnp.asarray(_models.encode_table(table)[None])
    entries, symbols = (jnp.asarray(t[None]) for t in _models.decode_tables(table))
    there = jnp.asarray(tokens)
    states, counts, words = _rans.encode(there, lengths, models, encoder, jnp.int32(_rans.STEPS))
    kept = np.asarray(words)
    flat = jnp.asarray(np.concatenate([w[len(w) - c :] for w, c in zip(kept, np.asarray(counts), strict=True)]))
    args = (flat, states, counts, lengths, models, entries, symbols, _rans.STEPS)
    decoded, good = _rans.decode(*args)
    assert bool(good.all()) and bool((decoded == there).all()), "rANS does not give its input back"
    one = times(lambda: _rans.encode(there, lengths, models, encoder, jnp.int32(_rans.STEPS)), repeats=5)[0]
    two = times(lambda: _rans.decode(*args), repeats=5)[0]
    bits = (16 * flat.size + 48 * lanes) / tokens.size
    rates = f"encode {tokens.size / one / 1e6:9.1f} M/s, decode {tokens.size / two / 1e6:9.1f} M/s"
    print(f"rANS, {lanes:>6} lanes of {_rans.STEPS} tokens at {bits:.3f} bits: {rates}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the sizes: does it run at all?")
    scale = 100 if parser.parse_args().quick else 1
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.platform}: {device.device_kind}")
    if device.platform == "cpu":
        print("no accelerator here: these are the figures of the CPU")
    bench_scale.peers(scale)
    shares(10**8 // scale)
    for lanes in (1024, 8192, 65536) if device.platform != "cpu" else (256, 1024):
        rans(max(lanes // scale, 32))


if __name__ == "__main__":
    main()
