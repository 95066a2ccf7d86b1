"""gg_reinit: draw the weights of a whole model anew."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.nn.initializers import Initializer
from jax.sharding import AbstractMesh, NamedSharding, Sharding
from jax.typing import ArrayLike

from ggjax._internal import mesh, trees
from ggjax.init import _rules
from ggjax.init._fans import Axes, Mode
from ggjax.init._gg_init import gg_init

Rule: TypeAlias = Callable[[str, Any], Initializer | None]


def gg_reinit(
    key: jax.Array,
    params: trees.PyTree,
    shape: ArrayLike = 2.0,
    xi: ArrayLike = 2.0,
    *,
    mode: Mode = "fan_out",
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: _rules.BatchAxis = (),
    embeddings: bool = False,
    rule: Rule | None = None,
    mask: trees.Mask = None,
) -> trees.PyTree:
    """Draw the weights of a whole model anew, whichever library made its parameter tree.

    The name of a floating leaf decides first, then its number of axes (without those in batch_axis):

    * biases (``bias``, ``b``, ``beta``, ``offset``) become 0;
    * scales of normalization layers (``scale``, ``gamma``, ``norm/weight``) become 1;
    * embeddings and tables of positions (``embed``, ``wte``, ``pos_embed``) stay as they are, unless
      ``embeddings=True``: then they are drawn with their number of features (last axis) as the fan;
    * tokens (``cls``, ``mask_token``), statistics (``batch_stats``, ``running_mean``), buffers (causal masks,
      rotary frequencies), adapters (``lora_a``, ``lora_b``) and what starts at a value of its layer's choice
      (``logit_scale``, ``layer_scale``, ``A_log``) stay, as do leaves without elements;
    * ``query``, ``key``, ``value`` and ``out`` kernels of Flax's multi-head attention are drawn with the fans
      of the matrices that they are: (features, heads x size) and (heads x size, features);
    * all other leaves of two and more axes are drawn by ``gg_init``. Three axes are a convolution in one
      dimension (width, in, out), so that other kernels of ``nn.DenseGeneral`` and ``nn.Einsum`` need a rule;
    * leaves of fewer axes that are named like a weight (``weight``, ``kernel``, ``w``) become 1, the rest
      stays.

    An array that stands at two places of the tree (tied weights) is drawn once, and stays if one of its names
    says so. (Under jit the two places are two arrays.)

    Args:
      key: a PRNG key.
      params: a tree of arrays (linen, nnx, Haiku, plain dicts) in JAX's layout (..., in, out), or of
        ``jax.ShapeDtypeStruct``, of which those that stay remain abstract. Equinox and PyTorch keep weights as
        (out, in, ...): pass ``in_axis=1, out_axis=0``.
      shape, xi, mode: as in ``gg_init``.
      in_axis, out_axis: as in ``gg_init``, but axes of one layer: those in batch_axis are not counted.
      batch_axis: the axis (or axes) along which layers are stacked, by ``nn.scan``, ``nnx.vmap``,
        ``hk.experimental.layer_stack`` or an ensemble made by ``jax.vmap``. It does not count for fans; left
        out, the kernels of a stack come out too small, since the stack looks like a receptive field. An axis if
        all layers are stacked, or a function of (leaf name, leaf) if some are:
        ``lambda name, leaf: 0 if "ScanBlock" in name else ()``.
      embeddings: draw embeddings too.
      rule: a function of (leaf name such as ``params/dense/kernel``, leaf) that gives the initializer of that
        leaf, or None to go by the rules above: ``lambda name, leaf: gg_init(1.0, in_axis=(0, 1), out_axis=2)
        if name.endswith("proj/kernel") else None``.
      mask: tree of bools, prefix of one, or a function from params to one; False keeps the leaf as it is.

    Returns:
      A tree like params; every leaf keeps its shape, dtype and sharding. (Under jit only the shardings on
      a mesh with Explicit axes that ``jax.set_mesh`` names are known: state the others by ``out_shardings``.)

    Raises:
      ValueError: as ``gg_init``, naming the leaf; for a tree without floating leaves; for a batch_axis that is
        no function where a leaf has too few axes to be stacked.

    Example:
      >>> import jax, jax.numpy as jnp, ggjax
      >>> params = {"dense": {"kernel": jnp.zeros((8, 4)), "bias": jnp.ones(4)}}
      >>> new = ggjax.gg_reinit(jax.random.key(0), params, shape=1.0)
      >>> bool(jnp.all(new["dense"]["bias"] == 0)), bool(jnp.all(new["dense"]["kernel"] != 0))
      (True, True)
    """
    kernel = functools.cache(functools.partial(gg_init, shape, xi))  # one for all leaves of the same axes
    kernel(mode)  # so that bad numbers are found before the first leaf
    flat = trees.flatten(params, mask)
    attention = _rules.attention_kernels(flat.names, flat.leaves, batch_axis)
    rules = _rules.Rules(kernel, mode, in_axis, out_axis, batch_axis, embeddings, attention)

    # Leaves are told apart by their places, not by their names: {"a": {"b": x}, "a/b": y} has one name twice.
    places = [i for i, selected in enumerate(flat.selected) if selected]
    identities = {i: _identity(flat.leaves[i], i) for i in places}
    tied: dict[Any, list[str]] = {}  # the names of every array
    for i in places:
        tied.setdefault(identities[i], []).append(flat.names[i])
    drawn: dict[Any, Any] = {}
    compiled = functools.cache(_compiled)
    keys = jax.random.split(key, max(len(flat.leaves), 1))
    for i in places:
        leaf = flat.leaves[i]
        if identities[i] in drawn:
            continue
        with _rules.naming(flat.names[i], leaf):
            init = _choose(tied[identities[i]], leaf, rule, rules)
            drawn[identities[i]] = leaf if init is None else _draw(init, keys[i], leaf, compiled)
    return flat.replace(drawn[identities[i]] for i in places)


def _identity(leaf: Any, place: int) -> Any:
    """What tells one array from another; abstract ones may be one object and yet stand for several arrays."""
    return ("abstract", place) if isinstance(leaf, jax.ShapeDtypeStruct) else id(leaf)


def _choose(leaf_names: list[str], leaf: Any, rule: Rule | None, rules: _rules.Rules) -> Initializer | None:
    """The initializer of an array that the tree holds under these names, or None if it stays."""
    if rule is not None:
        given = [init for name in leaf_names if (init := rule(name, leaf)) is not None]
        if given:
            return given[0]
    by_name = [_rules.initializer(name, leaf, rules) for name in leaf_names]
    return None if None in by_name else by_name[0]


def _draw(init: Initializer, key: jax.Array, leaf: Any, compiled: Callable[..., Any]) -> jax.Array:
    """A new array of the leaf's shape, dtype and sharding."""
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)  # a NumPy leaf may be float64 without x64
    if isinstance(leaf, jax.core.Tracer):
        new = init(key, leaf.shape, dtype)
        sharding = mesh.explicit_sharding(leaf)
        known = sharding is not None and sharding.mesh == jax.sharding.get_abstract_mesh()
        return jax.sharding.reshard(new, sharding) if known else new
    sharding = _stated_sharding(leaf)
    if sharding is not None and len(sharding.device_set) > 1:
        return compiled(init, leaf.shape, dtype, sharding)(key)
    new = init(key, leaf.shape, dtype)
    return new if sharding is None or not trees.is_concrete(new) else jax.device_put(new, sharding)


def _stated_sharding(leaf: Any) -> Sharding | None:
    """The sharding that someone chose for a concrete or abstract leaf, or None where JAX may choose."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed else None
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        return None  # it names no devices
    return sharding if isinstance(sharding, Sharding) else None


def _compiled(init: Initializer, shape: tuple[int, ...], dtype: Any, sharding: Sharding) -> Callable[..., Any]:
    return jax.jit(lambda key: init(key, shape, dtype), out_shardings=sharding)
