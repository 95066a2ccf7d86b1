"""What weights in a small form have in common: the sizes of an array, and no arithmetic."""

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np


class Small:
    """Behaves like an array in everything but arithmetic, where it says what to do instead.

    A class that derives from it has ``shape``, ``dtype``, ``decode`` and ``__getitem__``.
    """

    __array_priority__ = 100  # that of jax.Array: operators of NumPy arrays leave the work to ours
    __hash__ = None  # type: ignore[assignment]  # like arrays

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays together."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError(f"a {type(self).__name__} without dimensions has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        fields = {k: v for k, v in vars(self).items() if v is not None}
        return f"{type(self).__name__}({', '.join(f'{k}={_brief(v)}' for k, v in fields.items())})"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} is no array of floats: multiply with codec.dot(x, w) or "
            "codec.einsum(subscripts, x, w), or take w.decode() for its weights"
        )

    __array__ = __jax_array__ = __float__ = __neg__ = __abs__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __rpow__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse


def is_leading(entries: tuple[Any, ...], axes: int) -> bool:
    """Whether an index takes some of so many first axes and leaves the others alone."""
    return len(entries) <= axes and not any(
        e is None or e is Ellipsis or getattr(e, "dtype", None) == np.bool_ for e in entries
    )


def _brief(x: Any) -> str:
    """The dtype and shape of an array, or whatever else a pytree may hold, as it is."""
    if isinstance(x, tuple):
        return f"({', '.join(map(_brief, x))})"
    if isinstance(x, np.dtype):
        return str(x)
    return f"{x.dtype}{x.shape}" if hasattr(x, "dtype") and hasattr(x, "shape") else repr(x)
