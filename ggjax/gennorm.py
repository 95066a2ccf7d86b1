"""The generalized Gaussian law: density, distribution, moments, fitting and sampling.

    p(x) = nu / (2 alpha Gamma(1/nu)) exp(-(|x - mu| / alpha)^nu)

``nu`` is the shape (1 Laplace, 2 Gaussian, below 2 heavier-tailed), ``scale`` is alpha and ``loc`` is mu.
SciPy's equivalent is ``scipy.stats.gennorm(nu, loc, scale)``. The fit by moments over a table of shapes
follows arXiv 2506.00486 and arXiv 2504.16968.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammainc, gammaincc, gammaln
from jax.typing import ArrayLike, DTypeLike

from ggjax import _mesh, _tree

TABLE_START, TABLE_STEP, TABLE_SIZE = 0.10, 0.01, 291
"""The tabulated shapes: 0.10, 0.11, ..., 3.00."""

_Method = Literal["table", "interp"]


class Fit(NamedTuple):
    """A fitted law: three float32 scalars (float64 when fitted to float64 weights)."""

    nu: jax.Array  # shape, ()
    scale: jax.Array  # alpha, in the units of the weights, ()
    loc: jax.Array  # mean, in the units of the weights, ()


def rho(nu: ArrayLike) -> jax.Array:
    """The ratio of moments E[x^2] / E[|x|]^2 of the law of shape nu about its mean.

    rho(nu) = Gamma(1/nu) Gamma(3/nu) / Gamma(2/nu)^2, decreasing: 2 at nu = 1, pi/2 at nu = 2. It is almost
    flat above nu = 2.5, so that a shape read from a ratio is ill-conditioned there.

    Args:
      nu: positive shapes, any shape of array.

    Returns:
      An array like nu, float32 (relative error about 1e-5 at nu = 0.1, 1e-6 from 0.5 on) or float64.

    >>> round(float(rho(1.0)), 4)
    2.0
    """
    _tree.check_positive("nu", nu)
    a = 1 / _tree.wide(nu)
    return jnp.exp(gammaln(a) + gammaln(3 * a) - 2 * gammaln(2 * a))


@functools.cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """The published table of shapes: (nu, rho), two float64 arrays of 291 entries, nu = 0.10 to 3.00.

    >>> nu, ratio = table()
    >>> len(nu), round(float(ratio[0]), 3), round(float(ratio[-1]), 5)
    (291, 216.827, 1.461)
    """
    from scipy.special import gammaln as gammaln64  # scipy comes with jax

    nu = (np.arange(TABLE_SIZE) + round(TABLE_START / TABLE_STEP)) * TABLE_STEP
    nu = np.round(nu, 2)
    a = 1 / nu
    ratio = np.exp(gammaln64(a) + gammaln64(3 * a) - 2 * gammaln64(2 * a))
    nu.flags.writeable = ratio.flags.writeable = False
    return nu, ratio


def shape_from_ratio(ratio: ArrayLike, method: _Method = "table") -> jax.Array:
    """The shape whose ratio of moments ``rho`` is nearest to the given one.

    Args:
      ratio: E[x^2] / E[|x|]^2, any shape of array. The ratios of the table run from 216.8 (nu = 0.10) down to
        1.461 (nu = 3.00); a ratio beyond either end gets that end, a NaN stays NaN.
      method: "table" gives the entry with the nearest ratio, a multiple of 0.01 (the papers' rule);
        "interp" interpolates linearly between entries.

    Returns:
      An array like ratio: the shape nu.

    Raises:
      ValueError: an unknown method.

    >>> round(float(shape_from_ratio(2.0)), 2)
    1.0
    """
    if method not in ("table", "interp"):
        raise ValueError(f'method must be "table" or "interp", got {method!r}')
    ratio = _tree.wide(ratio)
    nus, ratios = (t.astype(ratio.dtype) for t in table())
    if method == "interp":
        nu = jnp.interp(ratio, ratios[::-1], nus[::-1])
    else:
        row = (1,) * ratio.ndim + (-1,)
        entry = jnp.argmin(jnp.abs(ratio[..., None] - ratios.reshape(row)), -1)
        # Read the entry by a sum over the table: exact, and a lookup would refuse a sharded ratio.
        hit = entry[..., None] == np.arange(TABLE_SIZE).reshape(row)
        nu = jnp.sum(jnp.where(hit, nus.reshape(row), 0), -1)
    return jnp.where(jnp.isnan(ratio), ratio, nu)


def fit(
    params: Any,
    *,
    mask: _tree.Mask = None,
    center: bool = False,
    method: _Method = "table",
) -> Fit:
    """Fit one law to all selected weights of a tree, by moments.

    rho_hat = n sum(x^2) / (sum |x|)^2 over all selected leaves together gives nu, the variance gives alpha.

    Args:
      params: a tree of arrays; floating leaves count, in any floating dtype (sums are float32, or float64 for
        float64 leaves). A single array is a tree too.
      mask: tree of bools, prefix of one, or a function from params to one; None for all floating leaves.
      center: take the moments about the mean (DeepShape) instead of about 0 (BackSlash).
      method: see ``shape_from_ratio``.

    Returns:
      A ``Fit(nu, scale, loc)``; loc is 0 unless ``center``. All-zero, empty and (with center) constant weights
      give Fit(2, 0, loc): a Gaussian of width 0. Constant weights without center give the table's end, nu = 3.
      Under jit a NaN weight gives NaN.

    Raises:
      ValueError: no floating leaf, a mask that does not fit, or (outside jit) a NaN or infinite weight.

    >>> import jax
    >>> law = fit({"w": sample(jax.random.key(0), 1.0, (100_000,))})
    >>> bool(abs(law.nu - 1.0) < 0.03), bool(abs(law.scale - 1.0) < 0.03)
    (True, True)
    """
    flat = _tree.flatten(params, mask)
    _tree.check_finite(flat.weight_names(), flat.weights())
    return fit_leaves(flat.weights(), center=center, method=method)


@functools.partial(jax.jit, static_argnames=("center", "method"))
def fit_leaves(leaves: list[Any], *, center: bool = False, method: _Method = "table") -> Fit:
    """``fit`` of a list of floating arrays, without its checks."""
    n = _tree.size(leaves)
    loc = _total([jnp.sum(_tree.wide(x)) for x in leaves]) / float(max(n, 1)) if center else 0.0
    first, second = abs_moments(leaves, loc)
    return from_moments(first, second, float(n), loc, method=method)


def abs_moments(leaves: list[Any], loc: ArrayLike = 0.0) -> tuple[jax.Array, jax.Array]:
    """(sum |x - loc|, sum (x - loc)^2) over all leaves together, in float32 or wider."""
    first, second = [], []
    for alike in _alike(leaves):
        centred = [x - jnp.asarray(loc, x.dtype) for x in map(_tree.wide, alike)]
        first.append(jnp.sum(functools.reduce(jnp.add, map(jnp.abs, centred))))
        second.append(jnp.sum(functools.reduce(jnp.add, [x * x for x in centred])))
    return _total(first), _total(second)


_ALIKE = 16
"""Leaves of one shape that are summed up together: models have many, and a program for each takes long to
compile."""


def _alike(leaves: list[Any]) -> list[list[Any]]:
    """The leaves in groups of one shape and dtype; each alone where they may be sharded, each in its own
    way."""
    if jax.device_count() > 1:
        return [[x] for x in leaves]
    groups: dict[Any, list[list[Any]]] = {}
    for x in leaves:
        runs = groups.setdefault((jnp.shape(x), jnp.result_type(x)), [[]])
        if len(runs[-1]) == _ALIKE:
            runs.append([])
        runs[-1].append(x)
    return [run for runs in groups.values() for run in runs]


def _total(parts: list[jax.Array]) -> jax.Array:
    """The sum of float32 and float64 scalars; float32 zero for none."""
    dtype = _tree.wide_dtype(*(p.dtype for p in parts))
    return sum((p.astype(dtype) for p in parts), jnp.zeros((), dtype))


def from_moments(
    first: jax.Array,
    second: jax.Array,
    n: ArrayLike,
    loc: ArrayLike = 0.0,
    *,
    method: _Method = "table",
) -> Fit:
    """The law of given moments: sums of |x - loc| and (x - loc)^2 over n numbers.

    Zero moments give Fit(2, 0, loc); NaN ones give NaN.
    """
    n = jnp.asarray(n, first.dtype)
    some = first != 0  # NaN counts as some
    ratio = jnp.where(some, (second / jnp.where(some, first, 1)) * (n / jnp.where(some, first, 1)), jnp.pi / 2)
    nu = shape_from_ratio(ratio, method)
    variance = jnp.where(some, second / jnp.maximum(n, 1), 0)
    return Fit(nu, jnp.sqrt(variance) / std(nu), jnp.asarray(loc, nu.dtype))


def std(nu: ArrayLike, scale: ArrayLike = 1.0) -> jax.Array:
    """The standard deviation, alpha sqrt(Gamma(3/nu) / Gamma(1/nu)).

    Args:
      nu, scale: positive, broadcastable arrays.

    >>> round(float(std(2.0)), 4)
    0.7071
    """
    nu, scale = _floats(nu, scale)
    return scale * jnp.exp(0.5 * (gammaln(3 / nu) - gammaln(1 / nu)))


def logpdf(x: ArrayLike, nu: ArrayLike, scale: ArrayLike = 1.0, loc: ArrayLike = 0.0) -> jax.Array:
    """Log of the density at x, in nats.

    Differentiable in every argument; at x = loc, where the density of nu <= 1 has a cusp, the gradient with
    respect to x is 0.

    Args:
      x, nu, scale, loc: arrays that broadcast; nu and scale positive.

    Raises:
      ValueError: nu or scale is not positive (when concrete).

    >>> round(float(logpdf(0.0, 2.0)), 4)
    -0.5724
    """
    x, nu, scale, loc = _law(x, nu, scale, loc)
    log_z = _abs_power((x - loc) / scale, nu)
    return jnp.log(nu / (2 * scale)) - gammaln(1 / nu) - log_z


def cdf(x: ArrayLike, nu: ArrayLike, scale: ArrayLike = 1.0, loc: ArrayLike = 0.0) -> jax.Array:
    """Probability of a value at most x, accurate in relative terms in the left tail.

    (``jax.scipy.stats.gennorm.cdf`` loses that tail in float32.) For the right tail take ``cdf(2 loc - x)``;
    for the mass of an interval in a tail, the difference of two such.

    Args:
      x, nu, scale, loc: arrays that broadcast; nu and scale positive.

    Raises:
      ValueError: nu or scale is not positive (when concrete).

    >>> round(float(cdf(0.0, 0.7)), 4)
    0.5
    """
    x, nu, scale, loc = _law(x, nu, scale, loc)
    return _cdf((x - loc) / scale, nu)


def ppf(q: ArrayLike, nu: ArrayLike, scale: ArrayLike = 1.0, loc: ArrayLike = 0.0) -> jax.Array:
    """Quantile: the x with ``cdf(x) = q``, by bisection (jax has no inverse incomplete gamma function).

    Relative error of (x - loc) about 1e-5 in float32. Differentiable in every argument.

    Args:
      q: probabilities; 0 and 1 give -inf and inf, anything outside [0, 1] NaN.
      nu, scale, loc: arrays that broadcast with q; nu and scale positive.

    Raises:
      ValueError: nu or scale is not positive (when concrete).

    >>> round(float(ppf(0.75, 1.0)), 4)
    0.6931
    """
    q, nu, scale, loc = _law(q, nu, scale, loc)
    q, nu = jnp.broadcast_arrays(q, nu)
    return loc + scale * _ppf(q, nu)


def entropy(nu: ArrayLike, scale: ArrayLike = 1.0) -> jax.Array:
    """Differential entropy, in nats: 1/nu - log(nu / (2 alpha Gamma(1/nu))).

    Quantized with a fine step D, the weights take entropy / log(2) - log2(D) bits each.

    Args:
      nu, scale: positive arrays that broadcast.

    Raises:
      ValueError: nu or scale is not positive (when concrete).

    >>> round(float(entropy(2.0)), 4)
    1.0724
    """
    _tree.check_positive("nu", nu)
    _tree.check_positive("scale", scale)
    nu, scale = _floats(nu, scale)
    return entropy_unchecked(nu, scale)


def entropy_unchecked(nu: jax.Array, scale: jax.Array) -> jax.Array:
    """``entropy`` without its checks: -inf at scale 0."""
    return 1 / nu - jnp.log(nu / 2) + jnp.log(scale) + gammaln(1 / nu)


def sample(
    key: jax.Array,
    nu: float,
    shape: tuple[int, ...] = (),
    dtype: DTypeLike | None = None,
    *,
    scale: ArrayLike = 1.0,
    out_sharding: Any = None,
) -> jax.Array:
    """Draw from the law of shape nu and mean 0, as fast as ``jax.random.normal``.

    Each value takes one 32-bit random number: a sign, and a survival probability whose quantile is
    interpolated in a table that is computed once per nu in float64. The tail beyond probability 2^-31 is one
    value, its root mean square. The draw is float32 and cast last (float64 when dtype is float64, from the
    same 32 bits). The same key gives the same values whether or not the result is sharded.

    Args:
      key: a PRNG key, not used up before.
      nu: the shape, a positive number of at least 0.1. A traced nu falls back on
        ``jax.random.generalized_normal``, which is some 60 times slower.
      shape: of the result.
      dtype: a floating dtype; None for JAX's default.
      scale: alpha, positive; multiplied in before the cast.
      out_sharding: sharding of the result, as in ``jax.random.normal``.

    Raises:
      ValueError: nu or scale is not positive, or nu is below 0.1.
      TypeError: dtype is not a floating one.

    >>> import jax
    >>> sample(jax.random.key(0), 0.7, (2, 3)).shape
    (2, 3)
    """
    _tree.check_positive("nu", nu)
    _tree.check_positive("scale", scale)
    dtype = jax.dtypes.canonicalize_dtype(jnp.float_ if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating one, got {dtype}")
    wide = _tree.wide_dtype(dtype)
    if not _tree.is_concrete(nu):
        x = jax.random.generalized_normal(key, nu, shape, wide, out_sharding=out_sharding)
        return (x * jnp.asarray(scale, wide)).astype(dtype)
    if float(nu) < TABLE_START:
        raise ValueError(f"nu must be at least {TABLE_START}, got {nu!r}")
    return _sample(key, jnp.asarray(scale, wide), float(nu), tuple(shape), dtype, out_sharding)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _sample(
    key: jax.Array, scale: jax.Array, nu: float, shape: tuple[int, ...], dtype: Any, out_sharding: Any
) -> jax.Array:
    wide = _tree.wide_dtype(dtype)
    bits = jax.random.bits(key, shape, out_sharding=out_sharding)
    # A survival probability in units of 2^-31: its float32 code names the cell by exponent and high mantissa.
    survival = (bits >> 1).astype(jnp.float32) + 0.5
    code = lax.bitcast_convert_type(survival, jnp.int32)
    low = 23 - _CELL_BITS
    cell = jnp.maximum((code >> low) - (127 << _CELL_BITS) + 1, 0)
    part = (code & ((1 << low) - 1)).astype(wide) / (1 << low)
    edge, rise = (jnp.asarray(t, wide) for t in _quantile_cells(nu))
    x = _mesh.elementwise(lambda i: edge[i], cell) + part * _mesh.elementwise(lambda i: rise[i], cell)
    return (scale * jnp.where(bits & 1, x, -x)).astype(dtype)


_CELL_BITS = 10
"""Cells per octave of survival probability, as a power of two."""


@functools.lru_cache(maxsize=64)
def _quantile_cells(nu: float) -> tuple[np.ndarray, np.ndarray]:
    """|x| at the start of every cell of survival probability, and its rise within the cell, in float64.

    Cell 0 is the tail below 2^-31, where |x| is the root mean square of the law there; then 31 octaves of
    1024 cells; then the single point of probability 1, where x is 0.
    """
    from scipy.special import gammaincc, gammainccinv, gammaincinv, gammaln

    a = 1 / nu
    cells = 1 << _CELL_BITS
    octaves = 2.0 ** np.arange(-31, 0)[:, None] * (1 + np.arange(cells) / cells)
    survival = np.append(octaves.ravel(), 1.0)
    t = np.where(survival < 0.5, gammainccinv(a, survival), gammaincinv(a, 1 - survival))
    mean_square = np.exp(gammaln(3 * a) - gammaln(a)) * gammaincc(3 * a, t[0]) / gammaincc(a, t[0])
    x = t**a
    return np.concatenate([[np.sqrt(mean_square)], x]), np.concatenate([[0], np.diff(x), [0]])


def _floats(*xs: ArrayLike) -> list[jax.Array]:
    arrays = [jnp.asarray(x) for x in xs]
    dtype = _tree.wide_dtype(*(x.dtype for x in arrays))
    return [x.astype(dtype) for x in arrays]


def _law(x: ArrayLike, nu: ArrayLike, scale: ArrayLike, loc: ArrayLike) -> list[jax.Array]:
    _tree.check_positive("nu", nu)
    _tree.check_positive("scale", scale)
    return _floats(x, nu, scale, loc)


def _abs_power(z: jax.Array, nu: jax.Array) -> jax.Array:
    """|z|^nu, with gradient 0 at z = 0 (double where: the power's own gradient is infinite or NaN there)."""
    zero = z == 0
    return jnp.where(zero, 0, jnp.abs(jnp.where(zero, 1, z)) ** nu)


def _log_density(z: jax.Array, nu: jax.Array) -> jax.Array:
    return jnp.log(nu / 2) - gammaln(1 / nu) - _abs_power(z, nu)


def _tails(z: jax.Array, nu: jax.Array) -> jax.Array:
    tail = 0.5 * gammaincc(1 / nu, _abs_power(z, nu))
    return jnp.where(z < 0, tail, 1 - tail)


@jax.custom_jvp
def _cdf(z: jax.Array, nu: jax.Array) -> jax.Array:
    return _tails(z, nu)


@_cdf.defjvp
def _cdf_jvp(primals: Any, tangents: Any) -> Any:
    (z, nu), (dz, dnu) = primals, tangents
    return _cdf(z, nu), jnp.exp(_log_density(z, nu)) * dz + _cdf_dnu(z, nu, dnu)


def _cdf_dnu(z: jax.Array, nu: jax.Array, dnu: jax.Array) -> jax.Array:
    """The change of the distribution function with nu (0 at z = 0, where it is 1/2 for every nu)."""
    zero = z == 0
    safe = jnp.where(zero, 1, z)
    return jnp.where(zero, 0, jax.jvp(lambda v: _tails(safe, v), (nu,), (dnu,))[1])


@jax.custom_jvp
def _ppf(q: jax.Array, nu: jax.Array) -> jax.Array:
    """Bisection for log |x|, on whichever of the two incomplete gamma functions is the smaller."""
    a = 1 / nu
    tiny = jnp.finfo(q.dtype).tiny
    outer = 2 * jnp.minimum(q, 1 - q)  # P(|X| > |x|)
    inner = jnp.abs(2 * q - 1)
    low = jnp.log(jnp.maximum(inner, tiny)) + gammaln(1 + a)  # since P(|X| < x) <= x / Gamma(1 + 1/nu)
    high = jnp.log(800 + 5 * a) * a

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        t = jnp.exp(nu * middle)
        below = jnp.where(outer < 0.5, gammaincc(a, t) > outer, gammainc(a, t) < inner)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    steps = 2 * jnp.finfo(q.dtype).nmant
    low, high = lax.fori_loop(0, steps, halve, (low, high))
    x = jnp.sign(q - 0.5) * jnp.exp(0.5 * (low + high))
    x = jnp.where((q == 0) | (q == 1), jnp.sign(q - 0.5) * jnp.inf, x)
    return jnp.where((q >= 0) & (q <= 1), x, jnp.nan)


@_ppf.defjvp
def _ppf_jvp(primals: Any, tangents: Any) -> Any:
    (q, nu), (dq, dnu) = primals, tangents
    x = _ppf(q, nu)
    return x, (dq - _cdf_dnu(x, nu, dnu)) * jnp.exp(-_log_density(x, nu))
