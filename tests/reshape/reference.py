"""DeepShape written down once more, by sorting in NumPy float64, and what the tests measure."""

import numpy as np
import scipy.special as sp

STEP = 2.0**-13
METHODS = ["histogram", "rank"]


def draw(nu, n, std=1.0, seed=0):
    """Float32 samples of a GG of this shape and standard deviation."""
    r = np.random.default_rng(seed)
    x = r.gamma(1 / nu, size=n) ** (1 / nu) * r.choice([-1.0, 1.0], n)
    return np.float32(x * std / np.sqrt(sp.gamma(3 / nu) / sp.gamma(1 / nu)))


def fit64(x):
    """Shape (nearest of 0.10, 0.11, ..., 3.00) and scale by moments about 0."""
    if not np.any(x):
        return 2.0, 0.0
    ratio = np.mean(x**2) / np.mean(np.abs(x)) ** 2
    nus = np.round(np.arange(10, 301) / 100, 2)
    rho = np.exp(sp.gammaln(1 / nus) + sp.gammaln(3 / nus) - 2 * sp.gammaln(2 / nus))
    nu = nus[np.argmin(np.abs(rho - ratio))]
    return nu, np.sqrt(np.mean(x**2) * sp.gamma(1 / nu) / sp.gamma(3 / nu))


def reference(x, shape_scale=0.8, std_scale=0.6, step=STEP, min_count=1000):
    """The published rule by sorting; (levels, nu, alpha, mu, max_level, kept, target pmf), all in float64."""
    x = np.float64(x)
    q = np.rint(x / step).astype(int)
    values, counts = np.unique(q[q > 0], return_counts=True)
    rare = values[counts <= min_count]
    fitted = x[np.abs(x) <= rare[0] * step] if rare.size else x
    nu, alpha = fit64(fitted)
    mu = int(np.trunc(fitted.mean() / step))
    top = int(rare[0]) if rare.size else int(np.abs(q - mu).max())
    k = np.arange(-top, top + 1)
    scale = max(alpha * std_scale / step, 1e-30)
    pmf = np.exp(-((np.abs(k) / scale) ** (nu * shape_scale)))
    pmf /= pmf.sum()
    kept = np.flatnonzero(np.abs(q - mu) <= top)
    order = kept[np.argsort(x[kept], kind="stable")]
    out = q.copy()
    rank = (np.arange(kept.size) + 0.5) / max(kept.size, 1)
    out[order] = mu + k[np.minimum(np.searchsorted(np.cumsum(pmf), rank, side="right"), 2 * top)]
    return out, nu, alpha, mu, top, kept, pmf


def levels(x, step=STEP):
    return np.rint(np.asarray(x, np.float64) / step).astype(int)


def total_variation(new, mu, top, kept, pmf):
    counts = np.bincount(new[kept] - mu + top, minlength=pmf.size)
    return 0.5 * np.abs(counts / kept.size - pmf).sum()
