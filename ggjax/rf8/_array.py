"""The encoded array: codes and exponents as one pytree, which can be used like the array that it stands for."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from ggjax._internal import shared, trees
from ggjax.rf8._format import MAX_EXPONENT, MIN_EXPONENT, NOT_FINITE, floats, is_reserved
from ggjax.rf8._rounding import exceeds


def _operator(f: Callable[[Any, Any], Any]) -> Callable[["RF8Array", Any], Any]:
    return lambda q, other: f(q.__jax_array__(), other)


def _reflected(f: Callable[[Any, Any], Any]) -> Callable[["RF8Array", Any], Any]:
    return lambda q, other: f(jnp.asarray(other), q.__jax_array__())


def _comparison(f: Callable[[Any, Any], Any]) -> Callable[["RF8Array", Any], Any]:
    """f of the decoded array; of the fields, where a transformation has put something else into them (dtypes,
    shardings, specs)."""

    def compare(q: Any, other: Any) -> Any:
        if isinstance(q.codes, (jax.Array, np.ndarray)):
            return f(q.__jax_array__(), other)
        return f(*((x.codes, x.exponents, x.dtype) if isinstance(x, RF8Array) else None for x in (q, other)))

    return compare


@struct.dataclass(eq=False)
class RF8Array:
    """An array of RF8 codes: a pytree of two arrays, so it passes through jit, vmap, scan and checkpoints.

    Invariants (``validate`` checks them):

    - codes: uint8, of the shape of the encoded array; none of the 31 reserved bytes.
    - exponents: int8, of as many dimensions as codes, each of the size that codes have there, or of size 1
      where all share one exponent. In [-125, 113], or 127 for "held a NaN or an infinity".
    - dtype: static; the floating dtype of the encoded array, and that of ``decode``.
    - value = (-1)^sign (1 + residual) 2^(E + exponents), below 2^128 (see the text of ``ggjax.rf8``).

    Because exponents keep every dimension, encoded layers can be stacked, sliced and mapped over like the
    layers themselves: ``jax.vmap(encode)`` of weights (layers, in, out) gives exponents (layers, 1, 1). (One
    exponent for all layers, as ``encode`` gives it without an axis, cannot be sliced along them by ``scan``.)

    Indexing, ``reshape`` and ``T`` give another ``RF8Array``. Functions of ``jax.numpy`` and NumPy, and the
    operators of arithmetic and comparison, take it for the decoded array; functions of ``jax.lax`` need
    ``decode`` first. Nothing is checked on construction, since transformations put other things than arrays
    into pytrees.

    >>> from ggjax.rf8 import encode
    >>> q = encode(jnp.array([[0.5, 0.7], [0.1, 0.0]]), axis=1)
    >>> q
    RF8Array(codes=uint8(2, 2), exponents=int8(2, 1), dtype=float32)
    >>> q[0].exponents.tolist(), np.asarray(q[0]).tolist()
    ([-16], [0.5, 0.75])
    >>> (jnp.ones((1, 2)) @ q).tolist()
    [[0.59375, 0.75]]
    """

    codes: jax.Array
    exponents: jax.Array
    dtype: Any = struct.field(pytree_node=False)

    __array_priority__ = 100  # that of jax.Array: operators of NumPy arrays leave the work to ours

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the encoded array."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions of the encoded array."""
        return self.codes.ndim

    @property
    def size(self) -> int:
        """The number of elements of the encoded array."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """The bytes of codes and exponents together."""
        return sum(x.size * x.dtype.itemsize for x in (self.codes, self.exponents))

    @property
    def sharding(self) -> Any:
        """The sharding of the codes."""
        return self.codes.sharding

    @property
    def T(self) -> "RF8Array":
        """The array with its axes in reverse order."""
        return RF8Array(self.codes.T, self.exponents.T, self.dtype)

    def reshape(self, *shape: Any) -> "RF8Array":
        """The array in another shape, given as numbers or as one tuple; one of them may be -1.

        Raises:
          ValueError: the shape has another size, or mixes axes that share an exponent with axes that do not.
        """
        codes = self.codes.reshape(*shape)
        if not codes.size:
            exponents = jnp.full((1,) * codes.ndim, MIN_EXPONENT, np.int8)
        else:
            new = shared.shape_of(self.exponents.shape, self.shape, codes.shape)
            exponents = self.exponents.reshape(new)
        return RF8Array(codes, exponents, self.dtype)

    def grouped(self, *groups: Sequence[int]) -> "RF8Array":
        """The array with one axis for every group of axes, transposed and reshaped as needed.

        Exponents follow: where some axes of a group share theirs and others do not, they are repeated.
        """
        codes = self.codes.transpose([a for group in groups for a in group])
        codes = codes.reshape([math.prod(self.shape[a] for a in group) for group in groups])
        return RF8Array(codes, shared.grouped(self.exponents, self.shape, groups), self.dtype)

    def astype(self, dtype: DTypeLike) -> jax.Array:
        """The decoded array in the dtype."""
        return self.__jax_array__().astype(dtype)

    def __getitem__(self, index: Any) -> "RF8Array":
        exponents = self.exponents[shared.index_of(self.exponents.shape, index)]
        return RF8Array(self.codes[index], exponents, self.dtype)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("an RF8Array without dimensions has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["RF8Array"]:
        return (self[i] for i in range(len(self)))

    def __jax_array__(self) -> jax.Array:
        check_form(self, "q")
        return floats(self.codes, self.exponents, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an RF8Array has to be decoded to become an array: copy=False cannot be had")
        return np.asarray(self.__jax_array__(), dtype)

    def __repr__(self) -> str:
        codes, exponents = _brief(self.codes), _brief(self.exponents)
        return f"RF8Array(codes={codes}, exponents={exponents}, dtype={self.dtype})"

    __add__, __radd__ = _operator(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _operator(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _operator(operator.mul), _reflected(operator.mul)
    __truediv__, __rtruediv__ = _operator(operator.truediv), _reflected(operator.truediv)
    __matmul__, __rmatmul__ = _operator(operator.matmul), _reflected(operator.matmul)
    __pow__, __rpow__ = _operator(operator.pow), _reflected(operator.pow)
    __eq__, __ne__ = _comparison(operator.eq), _comparison(operator.ne)  # type: ignore[assignment]
    __lt__, __le__ = _operator(operator.lt), _operator(operator.le)
    __gt__, __ge__ = _operator(operator.gt), _operator(operator.ge)
    __hash__ = None  # type: ignore[assignment]  # like arrays

    def __neg__(self) -> jax.Array:
        return -self.__jax_array__()

    def __abs__(self) -> jax.Array:
        return abs(self.__jax_array__())

    def __float__(self) -> float:
        return float(self.__jax_array__())


def _brief(x: Any) -> str:
    """The dtype and shape of an array, or whatever else a pytree may hold, as it is."""
    return f"{x.dtype}{x.shape}" if hasattr(x, "dtype") and hasattr(x, "shape") else repr(x)


def check_form(q: Any, name: str) -> None:
    """Raise TypeError or ValueError unless q is an RF8Array whose dtypes and shapes fit together."""
    if not isinstance(q, RF8Array):
        raise TypeError(f"{name} must be an RF8Array, got {type(q).__name__}")
    codes, exponents = (getattr(x, "dtype", type(x).__name__) for x in (q.codes, q.exponents))
    if codes != np.uint8 or exponents != np.int8:
        raise TypeError(f"{name}: codes must be uint8 and exponents int8, got {codes} and {exponents}")
    if not trees.is_weight_dtype(q.dtype):
        raise TypeError(f"{name}: dtype must be a floating one of at least 8 bits, got {q.dtype}")
    shape = q.exponents.shape
    if len(shape) != q.ndim or any(e not in (1, n) for e, n in zip(shape, q.shape, strict=True)):
        raise ValueError(
            f"{name}: exponents of shape {shape} do not fit codes of shape {q.shape}: expected as many "
            "dimensions, each of the same size or of size 1"
        )


def validate(q: RF8Array, name: str = "q") -> None:
    """Check the invariants of an ``RF8Array``, say of one read from a file.

    Args:
      q: the array; the values of traced or abstract codes are not looked at.
      name: what to call it in messages.

    Raises:
      TypeError: not an RF8Array, or a field of the wrong dtype.
      ValueError: shapes that do not fit, an exponent out of range, a reserved code or one beyond float32.

    >>> from ggjax.rf8 import encode
    >>> validate(encode(jnp.ones(3)))
    """
    check_form(q, name)
    if not trees.is_concrete(q.codes, q.exponents):
        return
    with jax.ensure_compile_time_eval():  # also inside jit, where operations on known arrays are traced too
        low, high, reserved, beyond = jax.device_get(_survey(q.codes, q.exponents))
    if low < MIN_EXPONENT or high > MAX_EXPONENT:
        raise ValueError(
            f"{name}: exponents must be in [{MIN_EXPONENT}, {MAX_EXPONENT}] or {NOT_FINITE}, "
            f"got {low if low < MIN_EXPONENT else high}"
        )
    if reserved or beyond:
        raise ValueError(f"{name}: {reserved} reserved codes and {beyond} codes beyond float32, expected none")


@jax.jit
def _survey(codes: jax.Array, exponents: jax.Array) -> tuple[jax.Array, ...]:
    """Lowest and highest exponent, and how many codes are reserved or stand for 2^128 and more."""
    exponents = exponents.astype(jnp.int32)
    finite = exponents != NOT_FINITE
    low = jnp.min(jnp.where(finite, exponents, 0), initial=0)
    high = jnp.max(jnp.where(finite, exponents, 0), initial=0)
    beyond = finite & exceeds(codes, exponents, jnp.float32)
    return low, high, jnp.sum(is_reserved(codes)), jnp.sum(beyond)
