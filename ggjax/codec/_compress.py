"""Compressed trees: every array of a tree in its coded form, and back."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import rf8
from ggjax._internal import trees
from ggjax.codec import _coded, _decode, _encode
from ggjax.codec._coded import Coded
from ggjax.codec.quantize import _keys, _steps

GROUP = 1 << 24
"""Arrays are coded together up to so many weights, which bounds the memory."""


class Options(NamedTuple):
    """How to code: the arguments of ``compress``."""

    kind: _keys.Kind
    want: _steps.Want
    dead_zone: float = 0.0
    centroids: bool = False
    coder: str = "rans"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array that is coded in blocks, one for every shard: a pytree of the blocks."""

    blocks: tuple[Any, ...]  # Coded, or arrays as they are
    starts: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    sharding: Any = dataclasses.field(
        default=None, metadata={"static": True}
    )  # None: put together on one device

    @property
    def size(self) -> int:
        """The number of elements of the array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that the blocks at hand take in a file."""
        return sum(b.nbytes for b in self.blocks)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed tree: a pytree of arrays, which jit takes and checkpoints hold.

    ``tree`` is like the tree that was compressed, with a coded array in place of every leaf that was coded, and
    the other leaves as they were.
    """

    tree: Any

    @property
    def nbytes(self) -> int:
        """The bytes of all leaves: of their streams, and of the tables that each uses."""
        return sum(leaf.nbytes for _, leaf in self.leaves())

    @property
    def bits(self) -> dict[str, float]:
        """Bits per parameter of every coded leaf, by its name (of the shards at hand)."""
        return {n: 8 * x.nbytes / max(_size_at_hand(x), 1) for n, x in self.leaves() if is_coded(x)}

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """(name, leaf) of every leaf, coded or not."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.tree, is_leaf=is_coded):
            yield trees.leaf_name(path), leaf if hasattr(leaf, "nbytes") else np.asarray(leaf)


def _size_at_hand(x: Any) -> int:
    return sum(b.size for b in x.blocks) if isinstance(x, Blocks) else x.size


def is_coded(x: Any) -> bool:
    """Whether this is the coded form of an array."""
    return isinstance(x, (Coded, Blocks))


def compress(
    params: Any,
    *,
    step: float | None = None,
    bits: float | None = None,
    snr_db: float | None = None,
    step_per_std: float | None = None,
    rf8: bool = False,
    lossless: bool = False,
    dead_zone: float = 0.0,
    centroids: bool = False,
    coder: str = "rans",
    mask: trees.Mask = None,
) -> Compressed:
    """Entropy-code the weights of a tree.

    One of ``step``, ``bits``, ``snr_db``, ``step_per_std``, ``rf8`` and ``lossless`` says what is kept of them.
    Leaves that are not floating, not selected or of fewer than 1024 elements are kept as they are, and so are
    leaves of other dtypes than float32, bfloat16 and float16 when lossless, and of dtypes other than these,
    float64 (whose values are kept in float32), float8_e4m3fn and float8_e5m2 otherwise.

    Args:
      params: a tree of arrays (outside jit). Sharded leaves are coded shard by shard.
      step: round weights to multiples of this, from 2^-120 to 2^100, in their units.
      bits: choose the step of every leaf so that it takes about so many bits per parameter by entropy.
      snr_db: choose the step of every leaf for this ratio of its power to that of the error, in decibels.
      step_per_std: choose the step of every leaf as so many of its standard deviations.
      rf8: keep the 8-bit codes of ``ggjax.rf8``, one exponent a leaf.
      lossless: keep every bit: of NaN, infinities, -0 and subnormals too.
      dead_zone: in [0, 0.5): levels are sign(w) floor(|w| / step + 1/2 - dead_zone), nearer to 0 than rounded,
        for fewer bits at a higher error.
      centroids: decode a level to the mean of the weights that it stands for instead of to the middle of its
        range: a lower error for a few bytes.
      coder: "rans", which decodes on any device, or "zstd" (extra ``zstd``), faster on a CPU and a little
        larger.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.

    Returns:
      A ``Compressed`` tree; its ``nbytes`` and ``bits`` tell what it takes.

    Raises:
      ValueError: none or several of the six, one that is not positive, a bad dead_zone or coder, a mask that
        does not fit, a NaN or infinite weight unless lossless, weights beyond 2^31 steps, a traced leaf.
      ImportError: coder "zstd" without the library.

    >>> w = jnp.linspace(-1, 1, 5000)
    >>> small = compress({"w": w}, step=0.25)
    >>> bool(jnp.abs(decompress(small)["w"] - w).max() <= 0.125), small.nbytes < w.nbytes / 8
    (True, True)
    """
    given = options(
        step=step,
        bits=bits,
        snr_db=snr_db,
        step_per_std=step_per_std,
        rf8=rf8,
        lossless=lossless,
        dead_zone=dead_zone,
        centroids=centroids,
        coder=coder,
    )
    flat = trees.flatten(params, mask, needs_weights=False)
    names, leaves = flat.weight_names(), flat.weights()
    for name, leaf in zip(names, leaves, strict=True):
        if not trees.is_concrete(leaf):
            raise ValueError(
                f"leaf {name!r}: compress needs the weights themselves, got {leaf}: call it outside jit"
            )
    known: list[np.ndarray] = []
    coded: list[Any] = []
    for group in index_groups([(i, math.prod(np.shape(x))) for i, x in enumerate(leaves)]):
        coded.extend(code([names[i] for i in group], [leaves[i] for i in group], given, known))
    return Compressed(flat.replace(coded))


def decompress(compressed: Any, *, keep_rf8: bool = False) -> Any:
    """The tree that a ``Compressed`` stands for. Under jit too: on the device, from the streams.

    Args:
      compressed: what ``compress`` gave, or any tree with coded arrays in it.
      keep_rf8: give RF8 leaves as ``rf8.RF8Array`` instead of in their own dtype.

    Returns:
      A tree of ``jax.Array`` in place of the coded leaves, with their shapes and dtypes, sharded as the
      leaves that were compressed; the other leaves as they are.

    Raises:
      ValueError: streams that no encoder wrote (outside jit), or an array coded by "zstd" under jit.

    >>> tree = {"w": jnp.arange(2000.0), "n": 3}
    >>> back = jax.jit(decompress)(compress(tree, lossless=True))
    >>> bool((back["w"] == tree["w"]).all()), int(back["n"])
    (True, 3)
    """
    tree = compressed.tree if isinstance(compressed, Compressed) else compressed
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_coded)
    out = list(leaves)
    whole = [i for i, x in enumerate(leaves) if isinstance(x, Coded)]
    if all(trees.is_concrete(*jax.tree.leaves(leaves[i])) for i in whole):
        for group in index_groups([(i, leaves[i].size) for i in whole]):
            for i, array in zip(group, _decode.arrays([leaves[i] for i in group]), strict=True):
                out[i] = finished(leaves[i], array, keep_rf8)
    else:
        for i in whole:
            out[i] = finished(leaves[i], _decode.traced(leaves[i]), keep_rf8)
    for i, x in enumerate(leaves):
        if isinstance(x, Blocks):
            out[i] = _assembled(x, keep_rf8)
    return treedef.unflatten(out)


def options(
    *,
    step: float | None = None,
    bits: float | None = None,
    snr_db: float | None = None,
    step_per_std: float | None = None,
    rf8: bool = False,
    lossless: bool = False,
    dead_zone: float = 0.0,
    centroids: bool = False,
    coder: str = "rans",
) -> Options:
    """The checked options of ``compress``."""
    want = _steps.Want(step, bits, snr_db, step_per_std)
    if rf8 or lossless:
        ways = (*want._asdict().items(), ("rf8", rf8), ("lossless", lossless))
        given = [n for n, v in ways if v not in (None, False)]
        if len(given) > 1:
            raise ValueError(
                f"give one of step, bits, snr_db, step_per_std, rf8, lossless; got {' and '.join(given)}"
            )
        if dead_zone or centroids:
            raise ValueError("dead_zone and centroids belong to a step, not to rf8 or lossless")
    else:
        _steps.check(want)
    if not 0 <= dead_zone < 0.5:
        raise ValueError(f"dead_zone must be in [0, 0.5), got {dead_zone!r}")
    if coder not in ("rans", "zstd"):
        raise ValueError(f'coder must be "rans" or "zstd", got {coder!r}')
    if coder == "zstd":
        from ggjax.codec.entropy import _zstd

        _zstd.library()
    kind: _keys.Kind = "lossless" if lossless else "rf8" if rf8 else "uniform"
    return Options(kind, want, float(dead_zone), bool(centroids), coder)


def code(names: list[str], leaves: list[Any], given: Options, known: list[np.ndarray]) -> list[Any]:
    """Code some leaves together: each comes as ``Coded``, ``Blocks``, or as it is where it is not worth coding.

    Args:
      names: of the leaves, for messages.
      leaves: emptied, so that the memory of each is free as soon as it can be.
      given: how.
      known: the tables made so far, to be used again; new ones are appended.
    """
    out = list(leaves)
    leaves.clear()
    blocks: dict[int, list[Any]] = {}  # of each leaf that is coded, by its place
    frames: dict[int, Blocks] = {}  # for leaves in several blocks
    steps: dict[int, np.float32] = {}
    for i, leaf in enumerate(out):
        if codable(leaf, given.kind):
            parts = shards(leaf)
            blocks[i] = [_host(x) for _, x in parts]
            if len(parts) != 1 or blocks[i][0].shape != leaf.shape:
                starts = tuple(start for start, _ in parts)
                frames[i] = Blocks((), starts, tuple(leaf.shape), np.dtype(leaf.dtype), leaf.sharding)
                if not leaf.is_fully_addressable:  # all processes together, one leaf at a time
                    steps[i] = checked_step(names[i], blocks[i], given, everywhere=True)
            out[i] = None
    rest = [i for i in blocks if i not in steps]
    found = _encode.in_parallel(lambda i: checked_step(names[i], blocks[i], given), rest)
    steps |= dict(zip(rest, found, strict=True))
    work = [(i, j) for i, parts in blocks.items() for j, x in enumerate(parts) if x.size]
    tokens = _encode.in_parallel(lambda w: _tokens_of(blocks[w[0]], w[1], steps[w[0]], given), work)
    for i, j in work:
        blocks[i][j] = None
    if given.coder == "rans":
        coded = _encode.finish(tokens, known)
    else:
        from ggjax.codec.entropy import _zstd

        coded = [_zstd.encode(t) for t in tokens]
    for (i, j), c in zip(work, coded, strict=True):
        blocks[i][j] = c
    for i, parts in blocks.items():
        out[i] = dataclasses.replace(frames[i], blocks=tuple(parts)) if i in frames else parts[0]
    return out


def _host(x: Any) -> np.ndarray:
    """The array on the host, contiguous and in the byte order of this machine."""
    array = np.asarray(x)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array).reshape(array.shape)


def _tokens_of(blocks: list[Any], j: int, step: np.float32, given: Options) -> _encode.Tokens:
    x = blocks[j]
    meta: dict[str, Any] = {"dtype": str(x.dtype), "coder": given.coder}
    if given.kind == "rf8":
        q = rf8.encode(_encode.padded(x.reshape(-1)))  # zeros change nothing, and few programs are compiled
        meta["exponent"] = int(q.exponents)
        x = np.asarray(q.codes)[: x.size].reshape(x.shape)
    if given.centroids:
        meta["centroids"] = _steps.centroids([x], step, given.dead_zone)
    return _encode.tokens_of(x, given.kind, step, given.dead_zone, **meta)


def checked_step(
    name: str, blocks: list[np.ndarray], given: Options, *, everywhere: bool = False
) -> np.float32:
    """The step for a leaf.

    Args:
      name: of the leaf.
      blocks: its weights.
      given: what is wanted.
      everywhere: the leaf has other blocks in other processes, which call this too.

    Raises:
      ValueError: a weight is not finite, or beyond float32, or too many or too small a step away from 0.
    """
    if given.kind == "lossless":
        return np.float32(0)
    chosen = given.kind == "uniform" and given.want.step is None
    s = _steps.summarize(blocks, _steps.SAMPLE if chosen else 0)
    if everywhere:
        s = _summary_of_all(blocks)
    if not np.isfinite([s.low, s.high]).all():
        trees.check_finite([name] * len(blocks), blocks)
        raise ValueError(f"leaf {name!r}: expected finite weights, another process has others")
    largest = max(abs(float(s.low)), abs(float(s.high)))
    if largest > float(np.finfo(np.float32).max):
        raise ValueError(f"leaf {name!r}: its largest weight is {largest:.4g}, expected the range of float32")
    if given.kind == "rf8":
        return np.float32(0)
    try:
        step = _steps.choose(s, given.want)
    except ValueError as e:
        raise ValueError(f"leaf {name!r}: {e}") from None
    if largest / float(step) >= 2.0**31 - 128:
        raise ValueError(
            f"leaf {name!r}: its largest weight is {largest:.4g}, {largest / float(step):.4g} steps of "
            f"{step:.4g}, expected fewer than 2^31: take a larger step"
        )
    return step


def _summary_of_all(blocks: list[np.ndarray]) -> _steps.Summary:
    """The summary of the blocks of all processes, the same in each."""
    from jax.experimental.multihost_utils import process_allgather

    most = 1 << 14
    s = _steps.summarize(blocks, most)
    fields = np.concatenate([[len(s.sample)], [float(v) for v in s[1:]], np.resize(s.sample, most)])
    with jax.enable_x64(True):
        gathered = np.asarray(process_allgather(fields)).reshape(jax.process_count(), -1)
    parts = [_steps.Summary(g[6 : 6 + int(g[0])], *(np.array(v) for v in g[1:6])) for g in gathered]
    return _steps.merge(parts)


def codable(x: Any, kind: _keys.Kind) -> bool:
    if not hasattr(x, "shape") or math.prod(x.shape) < _coded.MIN_SIZE:
        return False
    return str(x.dtype) in (_keys.LOSSLESS if kind == "lossless" else _keys.CODED)


def shards(leaf: Any) -> list[tuple[tuple[int, ...], Any]]:
    """(start, data) of every distinct shard at hand; of the whole leaf when it is not sharded."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_replicated:
        data = leaf.addressable_shards[0].data if sharding is not None else leaf
        return [((0,) * data.ndim, data)]
    distinct = {tuple(i.start or 0 for i in s.index): s.data for s in leaf.addressable_shards}
    return list(distinct.items())


def index_groups(sizes: list[tuple[Any, int]], most: int = GROUP) -> Iterator[list[Any]]:
    """Runs of items (name, size), each run of at most ``most`` in all or of one item."""
    group: list[Any] = []
    total = 0
    for i, size in sizes:
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(i)
        total += size
    if group:
        yield group


def finished(c: Coded, array: Any, keep_rf8: bool) -> Any:
    """A decoded array as JAX's."""
    if c.meta.kind != "rf8":
        return jax.device_put(array)  # jnp.asarray would compile a program for every shape
    if keep_rf8:
        dtype = jax.dtypes.canonicalize_dtype(c.meta.dtype)
        return rf8.RF8Array(jnp.asarray(array), jnp.int8(c.meta.exponent), dtype)
    if isinstance(array, jax.core.Tracer):
        return rf8.decode(finished(c, array, True))
    return jax.device_put(rf8_values(array, c.meta))


def rf8_values(codes: np.ndarray, meta: _coded.Meta) -> np.ndarray:
    """The weights of RF8 codes, on the host."""
    dtype = jax.dtypes.canonicalize_dtype(meta.dtype)
    flat = _encode.padded(codes.reshape(-1))
    values = rf8.decode(rf8.RF8Array(jax.device_put(flat), jnp.int8(meta.exponent), dtype))
    return np.asarray(values)[: codes.size].reshape(codes.shape)


def _assembled(x: Blocks, keep_rf8: bool) -> Any:
    """The array of its blocks, on the devices that it was on."""
    if keep_rf8 and any(isinstance(b, Coded) and b.meta.kind == "rf8" for b in x.blocks):
        raise ValueError("keep_rf8 takes whole arrays, not sharded ones (each shard has its own exponent)")
    if not trees.is_concrete(*jax.tree.leaves(x)):
        return _assembled_traced(x)
    at = dict(zip(x.starts, (decompress(b) for b in x.blocks), strict=True))
    kind = x.sharding.memory_kind
    arrays = []
    for device, index in x.sharding.addressable_devices_indices_map(x.shape).items():
        place = jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
        arrays.append(jax.device_put(at[tuple(i.start or 0 for i in index)], place))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, arrays)


def _assembled_traced(x: Blocks) -> jax.Array:
    here = _size_at_hand(x)
    if here != x.size:
        raise ValueError(
            f"an array of shape {x.shape} has {here} of its {x.size} elements in this process: call decompress "
            "outside jit, where it gives an array over all processes"
        )
    # As bits: a floating type may be widened on the way, and its NaN changed.
    bits = jnp.dtype(f"uint{8 * jnp.dtype(x.dtype).itemsize}")
    out = jnp.zeros(x.shape, bits)
    for start, block in zip(x.starts, x.blocks, strict=True):
        piece = decompress(block).astype(x.dtype)
        out = jax.lax.dynamic_update_slice(out, jax.lax.bitcast_convert_type(piece, bits), start)
    return jax.lax.bitcast_convert_type(out, x.dtype)
