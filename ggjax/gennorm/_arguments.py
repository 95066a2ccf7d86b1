"""Arguments of the law: checked where their values are known, and brought to one floating dtype."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ggjax._internal import trees


def floats(*values: ArrayLike) -> list[jax.Array]:
    """The values as arrays of one dtype: float32, or float64 where one of the arrays is float64.

    As everywhere in JAX, Python numbers follow the arrays beside them. Where nothing but Python numbers and
    whole numbers comes in, the dtype is JAX's default: float32, or float64 under ``jax_enable_x64``.

    Raises:
      TypeError: a complex number, or something that is not a number.
    """
    arrays = [jnp.asarray(v) for v in values]
    for value, x in zip(values, arrays, strict=True):
        if jnp.issubdtype(x.dtype, jnp.complexfloating) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise TypeError(f"expected real numbers, got {x.dtype}: {value!r}")
    given = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating) and not jax.typeof(x).weak_type]
    dtype = trees.wide_dtype(*given) if given else default_dtype()
    return [x.astype(dtype) for x in arrays]


def law(x: ArrayLike, nu: ArrayLike, scale: ArrayLike, loc: ArrayLike) -> list[jax.Array]:
    """``floats`` of the four, after a check that nu and scale are positive."""
    trees.check_positive("nu", nu)
    trees.check_positive("scale", scale)
    return floats(x, nu, scale, loc)


def default_dtype() -> Any:
    """JAX's default floating dtype: float32, or float64 under ``jax_enable_x64``."""
    return jax.dtypes.canonicalize_dtype(jnp.float_)


def check_kind_of_float(x: Any) -> None:
    """Raise TypeError for an array, or a dtype, of floats in which weights cannot be kept."""
    dtype = getattr(x, "dtype", x)
    if (
        isinstance(dtype, jnp.dtype)
        and jnp.issubdtype(dtype, jnp.floating)
        and not trees.is_weight_dtype(dtype)
    ):
        raise TypeError(
            f"{dtype} holds scales or codes, not weights: expected floats with a sign and at least eight bits "
            "(convert it to float32 first if its values are meant)"
        )
