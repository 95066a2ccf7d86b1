"""GG init: initializers that draw from a generalized Gaussian (arXiv 2506.00486, section on GG init)."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ggjax import gennorm
from ggjax._internal import trees

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
_Axes = int | Sequence[int]


def gg_init(
    shape: float = 2.0,
    xi: float = 2.0,
    mode: Mode = "fan_out",
    in_axis: _Axes = -2,
    out_axis: _Axes = -1,
    batch_axis: _Axes = (),
    dtype: DTypeLike | None = None,
) -> Initializer:
    """An initializer that draws weights from a generalized Gaussian of variance xi / fan.

    ``shape=2, xi=2, mode="fan_in"`` is He initialization, ``shape=2, xi=1, mode="fan_avg"`` Glorot's. The fan
    counts the receptive field of a convolution, as in ``jax.nn.initializers.variance_scaling``.

    Args:
      shape: nu of the law, at least 0.1: 2 Gaussian, 1 Laplace, below 1 heavier-tailed still.
      xi: gain, positive: 1 for linear and sigmoid layers, 2 for ReLU, 2 / (1 + k^2) for leaky ReLU of slope k.
      mode: the fan that divides xi: "fan_out" (the published code's choice), "fan_in", "fan_avg" (their mean)
        or "fan_geo_avg" (their geometric mean).
      in_axis, out_axis, batch_axis: axes of the inputs, of the outputs, and of neither; every other axis
        belongs to the receptive field.
      dtype: default dtype of the weights; None for JAX's default.

    Returns:
      ``init(key, shape, dtype=None, out_sharding=None) -> array``, as Flax and JAX expect. It samples in
      float32 and casts last, and gives the same values whether or not they are sharded. It raises ValueError
      for an array shape with fewer than two axes or with a zero.

    Raises:
      ValueError: an unknown mode, xi not positive, shape below 0.1.
      TypeError: called like the initializer itself, with a key.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, ggjax
      >>> layer = nn.Dense(64, kernel_init=ggjax.gg_init(shape=1.0, xi=2.0))
      >>> params = layer.init(jax.random.key(0), jnp.ones((1, 32)))
      >>> params["params"]["kernel"].shape
      (32, 64)

    References:
      arXiv 2506.00486, GG initialization.
    """
    if hasattr(shape, "dtype") and (jnp.ndim(shape) > 0 or jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)):
        raise TypeError(
            f"gg_init makes an initializer and was called like one (its first argument is {shape!r}): "
            "did you forget the parentheses, as in kernel_init=gg_init()?"
        )
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    trees.check_positive("xi", xi)
    trees.check_positive("shape", shape)
    if shape < gennorm.TABLE_START:
        raise ValueError(f"shape must be at least {gennorm.TABLE_START}, got {shape!r}")
    nu = float(shape)
    unit_std = math.exp(0.5 * (math.lgamma(3 / nu) - math.lgamma(1 / nu)))  # of scale 1

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = dtype,
        out_sharding: Any = None,
    ) -> jax.Array:
        fan = _fan(tuple(shape), mode, in_axis, out_axis, batch_axis)
        scale = math.sqrt(xi / fan) / unit_std
        return gennorm.sample(key, nu, tuple(shape), dtype, scale=scale, out_sharding=out_sharding)

    return init


def _fan(shape: tuple[int, ...], mode: Mode, in_axis: _Axes, out_axis: _Axes, batch_axis: _Axes) -> float:
    if len(shape) < 2:
        raise ValueError(f"gg_init needs an array shape of at least two axes for its fan, got {shape}")
    if 0 in shape:
        raise ValueError(f"gg_init needs an array shape without a zero for its fan, got {shape}")

    def count(axes: _Axes) -> int:
        return math.prod(shape[a] for a in ([axes] if isinstance(axes, int) else axes))

    inputs, outputs = count(in_axis), count(out_axis)
    field = math.prod(shape) / (inputs * outputs * count(batch_axis))
    fan_in, fan_out = inputs * field, outputs * field
    means = (fan_in + fan_out) / 2, math.sqrt(fan_in * fan_out)
    return dict(zip(get_args(Mode), (fan_in, fan_out, *means), strict=True))[mode]


_EMBEDDING = re.compile(r"embed|(^|[/_])(wte|wpe)($|[/_])", re.IGNORECASE)
_BIAS = re.compile(r"(^|[/_.])(b|bias|biases|beta|offset)$", re.IGNORECASE)
_UNIT = re.compile(r"(^|[/_.])(w|kernel|weight|weights|scale|gamma)$", re.IGNORECASE)
_STATISTIC = re.compile(r"batch_stats|running_|(^|[/_.])(mean|var|ema|average)$", re.IGNORECASE)

Rule = Callable[[str, Any], Initializer | None]


def gg_reinit(
    key: jax.Array,
    params: trees.PyTree,
    shape: float = 2.0,
    xi: float = 2.0,
    *,
    mode: Mode = "fan_out",
    in_axis: _Axes = -2,
    out_axis: _Axes = -1,
    batch_axis: _Axes = (),
    embeddings: bool = False,
    rule: Rule | None = None,
    mask: trees.Mask = None,
) -> trees.PyTree:
    """Draw the weights of a whole model anew, whichever library made its parameter tree.

    By name and number of axes, of the floating leaves:

    * embeddings (``embed``, ``wte`` or ``wpe`` in the name) stay as they are, unless ``embeddings=True``: then
      they are drawn with their number of features (last axis) as the fan, not their vocabulary;
    * biases (``bias``, ``b``, ``beta``, ``offset``) become 0;
    * statistics (``batch_stats``, ``running_...``, ``mean``, ``var``) stay;
    * leaves of two and more axes are drawn by ``gg_init``, convolutions with their receptive field in the fan;
    * other leaves named like a weight (``weight``, ``kernel``, ``w``, ``scale``, ``gamma``) become 1;
    * the rest stays, as do leaves without elements.

    A leaf that stands at two places of the tree (the same array) is drawn once.

    Args:
      key: a PRNG key.
      params: a tree of arrays (linen, nnx, Haiku, plain dicts) in JAX's layout (..., in, out), or of
        ``jax.ShapeDtypeStruct``.
      shape, xi, mode, in_axis, out_axis, batch_axis: as in ``gg_init``.
      embeddings: draw embeddings too.
      rule: a function of (leaf name such as ``params/dense/kernel``, leaf) that gives the initializer of that
        leaf, or None to go by the rules above. For kernels of Flax's DenseGeneral, say
        ``lambda name, x: gg_init(1.0, in_axis=0, out_axis=(1, 2)) if "query/kernel" in name else None``.
      mask: tree of bools, prefix of one, or a function from params to one; False keeps the leaf as it is.

    Returns:
      A tree like params; every leaf keeps its shape, dtype and sharding. (Under jit nothing ties the new values
      to the old ones: state the shardings there by ``out_shardings``.)

    Raises:
      ValueError: as ``gg_init``, and for a tree without floating leaves.

    Example:
      >>> import jax, jax.numpy as jnp, ggjax
      >>> params = {"dense": {"kernel": jnp.zeros((8, 4)), "bias": jnp.ones(4)}}
      >>> new = ggjax.gg_reinit(jax.random.key(0), params, shape=1.0)
      >>> bool(jnp.all(new["dense"]["bias"] == 0)), bool(jnp.all(new["dense"]["kernel"] != 0))
      (True, True)
    """
    kernel = gg_init(shape, xi, mode, in_axis, out_axis, batch_axis)
    flat = trees.flatten(params, mask)
    drawn: dict[int, Any] = {}
    new = []
    keys = jax.random.split(key, max(len(flat.leaves), 1))
    for name, leaf, selected, leaf_key in zip(*flat[:3], keys, strict=False):
        if not selected:
            continue
        if id(leaf) not in drawn:
            init = rule(name, leaf) if rule else None
            if init is None:
                rows = tuple(range(leaf.ndim - 1))
                embedding = gg_init(shape, xi, "fan_out", (), -1, rows) if embeddings else None
                init = _default_init(name, leaf, kernel, embedding)
            drawn[id(leaf)] = leaf if init is None else _like(init, leaf_key, leaf)
        new.append(drawn[id(leaf)])
    return flat.replace(new)


def _default_init(
    name: str, leaf: Any, kernel: Initializer, embedding: Initializer | None
) -> Initializer | None:
    name = name.removesuffix("/value")  # nnx variables
    if 0 in leaf.shape or _STATISTIC.search(name):
        return None
    if _BIAS.search(name):
        return jax.nn.initializers.zeros
    if leaf.ndim >= 2:
        return embedding if _EMBEDDING.search(name) else kernel
    return jax.nn.initializers.ones if _UNIT.search(name) else None


def _like(init: Initializer, key: jax.Array, leaf: Any) -> jax.Array:
    """A new array of the leaf's shape, dtype and sharding."""
    sharding = leaf.sharding if isinstance(leaf, jax.Array) and trees.is_concrete(leaf) else None
    if sharding is None or len(sharding.device_set) == 1:
        return init(key, leaf.shape, leaf.dtype)
    return jax.jit(lambda k: init(k, leaf.shape, leaf.dtype), out_shardings=sharding)(key)
