"""The demo's model and data: a byte-level language model of Python's own standard library.

Nothing is downloaded: the text is the source of the interpreter that runs the demo. Everything is a function
of its arguments, so that two runs on one machine give the same numbers.
"""

import functools
import pathlib
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

SKIPPED = frozenset(
    # Tests and other people's packages, and folders that are tables rather than prose.
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
HELD_OUT = 10
"""Every tenth file is held out, for validation and for testing by turns."""


class Text(NamedTuple):
    """The text as bytes, uint8 arrays on the device."""

    train: jax.Array
    validation: jax.Array  # to choose settings by
    test: jax.Array  # to report the result of what was chosen


class Cache(NamedTuple):
    """What attention keeps of the bytes that were seen, so that the next ones need not begin again."""

    keys: jax.Array  # (depth, batch, context, heads, features of a head)
    values: jax.Array  # as keys
    length: jax.Array  # how many bytes were seen: at most the context


class Model(nn.Module):
    """A pre-norm transformer decoder over bytes; positions enter by ALiBi (arXiv 2108.12409).

    It has neither biases nor norm scales: every parameter is a matrix, so that one law describes them all.

    Attributes:
      width: features per position.
      depth: blocks.
      heads: attention heads.
      kernel_init: initializer of every matrix but the embedding.
      dtype: of the products with matrices; None for that of their operands.
    """

    width: int = 128
    depth: int = 3
    heads: int = 4
    kernel_init: Callable[..., jax.Array] = nn.initializers.glorot_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, cache: Cache | None = None) -> Any:
        """Logits of the next byte, float32 (batch, time, 256), for bytes (batch, time).

        With a cache the bytes follow those that it has seen, and the result is (logits, cache).
        """

        def dense(features: int, name: str) -> Callable[[jax.Array], jax.Array]:
            layer = nn.Dense(
                features, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name=name
            )
            return lambda x: layer(x).astype(jnp.float32)

        norm = nn.RMSNorm(use_scale=False)
        embed_init = nn.initializers.normal(0.1)
        x = nn.Embed(256, self.width, embedding_init=embed_init, name="embed")(tokens.astype(jnp.int32))
        x = x.astype(jnp.float32)
        split = (*tokens.shape, 3 * self.heads, self.width // self.heads)
        bias = _alibi(self.heads, tokens.shape[-1] if cache is None else cache.keys.shape[2])
        if cache is not None:
            bias = lax.dynamic_slice_in_dim(bias, cache.length, tokens.shape[-1], axis=2)
        seen = []
        for i in range(self.depth):
            y = dense(3 * self.width, name=f"qkv_{i}")(norm(x))
            q, k, v = jnp.split(y.reshape(split), 3, axis=-2)
            if cache is not None:
                at = (0, cache.length, 0, 0)
                k, v = (lax.dynamic_update_slice(a[i], b, at) for a, b in ((cache.keys, k), (cache.values, v)))
                seen.append((k, v))
            # As jax.nn.dot_product_attention has it, but faster on a CPU (a training step in 0.85x the time).
            weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / float(np.sqrt(q.shape[-1])) + bias)
            y = jnp.einsum("bhts,bshd->bthd", weights, v)
            x = x + dense(self.width, name=f"out_{i}")(y.reshape(x.shape))
            y = dense(4 * self.width, name=f"up_{i}")(norm(x))
            x = x + dense(self.width, name=f"down_{i}")(nn.relu(y))
        logits = dense(256, name="head")(norm(x))
        if cache is None:
            return logits
        keys, values = (jnp.stack(parts) for parts in zip(*seen, strict=True))
        return logits, Cache(keys, values, cache.length + tokens.shape[-1])


def _alibi(heads: int, length: int) -> np.ndarray:
    """Causal attention bias: minus the distance, times a slope per head that falls from 2 to near 1/128."""
    slope = 2.0 ** (1 - 8 * np.arange(heads) / heads)
    distance = np.arange(length)[:, None] - np.arange(length)
    bias = -slope[:, None, None] * distance
    return np.where(distance >= 0, bias, -1e9)[None].astype(np.float32)


def load_text(root: str | pathlib.Path | None = None) -> Text:
    """Read the standard library's Python source and split it by file.

    Args:
      root: folder to read; None for the running interpreter's library.

    Returns:
      The text of nine files in ten to train on; of the tenths, every other one is for validation, the rest
      for testing.

    Raises:
      FileNotFoundError: the folder holds too little Python source (some systems ship it without).
    """
    root = pathlib.Path(root or sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not SKIPPED.intersection(p.relative_to(root).parts))
    files = [p for p in files if not p.name.startswith("_sysconfigdata")]  # differs from machine to machine
    held_out = files[HELD_OUT - 1 :: HELD_OUT]
    splits = [sorted(set(files) - set(held_out)), held_out[::2], held_out[1::2]]
    text = [np.frombuffer(b"".join(p.read_bytes() for p in split), np.uint8) for split in splits]
    if any(len(part) < least for part, least in zip(text, (100_000, 5_000, 5_000), strict=True)):
        found = f"{len(files)} files, {sum(map(len, text))} bytes"
        raise FileNotFoundError(f"too little Python source under {root} to train on ({found})")
    return Text(*map(jnp.asarray, text))


def init(model: Model, seed: int, context: int = 16) -> Any:
    """The model's parameters before training, a tree of float32 arrays."""
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, context), jnp.uint8))["params"]


def loss(model: Model, params: Any, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per byte of windows of bytes (batch, time + 1)."""
    logits = jnp.asarray(model.apply({"params": params}, tokens[:, :-1]))
    labels = tokens[:, 1:].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.partial(
    jax.jit, static_argnames=("model", "tx", "batch", "context"), donate_argnames=("params", "state")
)
def train_steps(
    model: Model,
    tx: optax.GradientTransformationExtraArgs,
    params: Any,
    state: Any,
    text: jax.Array,
    key: jax.Array,
    first: jax.Array,
    last: jax.Array,
    *,
    batch: int,
    context: int,
) -> tuple[Any, Any, jax.Array]:
    """Training steps number first to last - 1, in one dispatch; which bytes a step sees depends on key only.

    Returns:
      The parameters, the optimizer's state, and the mean loss of these steps in nats per byte.
    """

    def step(i: jax.Array, carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
        params, state, total = carry
        tokens = windows(text, jax.random.fold_in(key, i), batch, context)
        value, grads = jax.value_and_grad(functools.partial(loss, model))(params, tokens)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, total + value

    params, state, total = lax.fori_loop(first, last, step, (params, state, jnp.zeros(())))
    return params, state, total / (last - first)


def windows(text: jax.Array, key: jax.Array, batch: int, context: int) -> jax.Array:
    """Windows of bytes (batch, context + 1) at random places of the text."""
    starts = jax.random.randint(key, (batch,), 0, text.size - context)
    return jax.vmap(lambda s: lax.dynamic_slice(text, (s,), (context + 1,)))(starts)


def windows_of(text: jax.Array, count: int, context: int) -> jax.Array:
    """Windows of bytes (at most count, context + 1), spread evenly over the text, without overlap."""
    last = text.size - context - 1
    starts = np.linspace(0, last, min(count, last // context), dtype=np.int32)
    return text[starts[:, None] + np.arange(context + 1, dtype=np.int32)[None]]


@functools.partial(jax.jit, static_argnames=("model", "batch"))
def evaluate(model: Model, params: Any, windows: jax.Array, *, batch: int = 16) -> jax.Array:
    """Mean cross-entropy in bits per byte over held-out windows."""
    batches = windows[: len(windows) // batch * batch].reshape(-1, batch, windows.shape[-1])
    return lax.map(lambda tokens: loss(model, params, tokens), batches).mean() / np.log(2)
