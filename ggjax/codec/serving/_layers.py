"""Stacked layers, each entropy-coded in streams of one length, so that a scan can take them in turn."""

from typing import Any

import jax
import numpy as np

from ggjax._internal import trees
from ggjax.codec import _decode, _encode
from ggjax.codec._coded import STREAMS, Coded, Meta, Part
from ggjax.codec._compressed import Blocks
from ggjax.codec._decompress import decompress
from ggjax.codec._host import outside_trace
from ggjax.codec._tokenize import tokenized
from ggjax.codec.quantize._quantizers import QUANTIZERS

_KINDS = ("lossless", "uniform")
"""The quantizers whose keys layers keep; other coded arrays are decoded and kept losslessly."""


def layers(w: Any) -> Coded:
    """Layers that stay entropy-coded until each is used: for a step that scans over them.

    Under ``lax.scan`` (or ``jax.tree.map(lambda a: a[i], coded)``) every layer is a ``Coded``, which
    ``codec.dot`` and ``codec.decompress`` decode on the device: so only one layer is decoded at any time, by
    one compiled program. Decoding takes about 20 bytes a weight of that layer. All layers have one window of
    tokens, a table each, and streams padded to those of the longest.

    Args:
      w: layers stacked along the first axis: an array of float32, bfloat16 or float16, which is kept
        losslessly, or what ``compress`` made of one (``load_file(form="coded")``), whose weights are kept.
        Outside jit.

    Returns:
      A ``Coded`` whose streams have one axis more, and whose ``shape`` is that of one layer.

    Raises:
      TypeError: w is neither of these.
      ValueError: w has no layers.

    >>> import jax.numpy as jnp
    >>> from ggjax.codec import dot
    >>> w = jnp.sin(jnp.arange(3 * 64 * 64.0)).reshape(3, 64, 64)
    >>> y, _ = jax.lax.scan(lambda x, layer: (dot(x, layer), None), jnp.ones((1, 64)), layers(w))
    >>> bool((y == jnp.ones((1, 64)) @ w[0] @ w[1] @ w[2]).all())
    True
    """
    x, kind, step = _weights(w)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"expected layers stacked along the first axis, got shape {x.shape}")
    with outside_trace():
        whole = _encode.tokens_of(x.reshape(-1), kind, step, classes=False, atoms=False)
        assert whole is not None
        (part,) = whole.meta.parts
        found = [_tokens_in(layer, kind, step, part) for layer in x.reshape(len(x), -1)]
        coded = _encode.finish(found, [], "rans")
    part = part._replace(size=x[0].size, exceptions=max(c.meta.parts[0].exceptions for c in coded))
    meta = coded[0].meta._replace(shape=x.shape[1:], parts=(part,), beyond=())
    return Coded(**{name: _stacked([getattr(c, name) for c in coded]) for name in STREAMS}, meta=meta)


def _weights(w: Any) -> tuple[np.ndarray, str, np.float32]:
    """The weights on the host, the quantizer, and its step."""
    if isinstance(w, Blocks):  # of a sharded stack: what one step made of every shard is kept losslessly
        w = np.asarray(decompress(w))
    if isinstance(w, Coded):
        array = np.asarray(_decode.weights_of(w, _decode.arrays([w])[0]))
        keeps = w.meta.kind in _KINDS and not getattr(w.meta.params, "centroids", ())
        kind = w.meta.kind if keeps else "lossless"
        step = np.float32(w.meta.step)
    else:
        array, kind, step = w, "lossless", np.float32(0)
    if not trees.is_weight(array) or str(array.dtype) not in QUANTIZERS[kind].dtypes:
        dtypes = ", ".join(QUANTIZERS["lossless"].dtypes)
        raise TypeError(f"expected an array of {dtypes}, or a coded one, got {w!r:.80}")
    return np.ascontiguousarray(array), kind, step


def _tokens_in(flat: np.ndarray, kind: str, step: np.float32, part: Part) -> _encode.Tokens:
    """The tokens of a layer, in the window of all."""
    ready = QUANTIZERS[kind].prepare(flat, step, 0.0, ())
    assert ready is not None
    tokens = tokenized(ready.x, part.bins, kind, ready.settings, part.zeros)
    own = part._replace(size=len(flat), exceptions=len(tokens.exceptions))
    meta = Meta(flat.shape, str(flat.dtype), kind, ready.params, (own,))
    return _encode.Tokens(meta, [tokens], np.zeros(0, np.uint8))


def _stacked(streams: list[np.ndarray]) -> jax.Array | np.ndarray:
    """Streams one above the other, with zeros at the ends of shorter ones."""
    length = max(len(s) for s in streams)
    out = np.zeros((len(streams), length, *streams[0].shape[1:]), streams[0].dtype)
    for row, s in zip(out, streams, strict=True):
        row[: len(s)] = s
    return jax.device_put(out) if out.size else out
