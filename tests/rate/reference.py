"""The rates from their definitions, in float64 NumPy and SciPy and with codes that are really written out."""

import functools
import heapq
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special as sp
import scipy.stats as st

from ggjax import gennorm, rate

DEVICE_CODES = [c for c in rate.CODES if c != "huffman"]
TRACED = {c: jax.jit(functools.partial(rate.bits, code=c)) for c in DEVICE_CODES}


def levels64(tree, step):
    """All levels of a tree in one array; the division is float32, as documented."""
    leaves = [np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate([np.rint(x / np.float32(step)) for x in leaves]).astype(np.int64)


def exp_golomb_word(k):
    """The code word of k itself: the binary digits of k + 1 after as many zeros, less one."""
    digits = format(int(k) + 1, "b")
    return "0" * (len(digits) - 1) + digits


def signed_number(q):
    return 2 * q - 1 if q > 0 else -2 * q


def huffman_words(counts):
    """An optimal prefix code as strings, built from the tree (one symbol: the empty word)."""
    order = itertools.count()
    heap = [(c, next(order), {q: ""}) for q, c in counts.items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        a, _, zero = heapq.heappop(heap)
        b, _, one = heapq.heappop(heap)
        words = {q: "0" + w for q, w in zero.items()} | {q: "1" + w for q, w in one.items()}
        heapq.heappush(heap, (a + b, next(order), words))
    return heap[0][2]


def law_of(x):
    """SciPy's law, fitted by moments about 0 and the nearest entry of the table."""
    nus, ratios = gennorm.table()
    nu = nus[np.argmin(np.abs(ratios - np.mean(x**2) / np.mean(np.abs(x)) ** 2))]
    return st.gennorm(nu, scale=np.sqrt(np.mean(x**2) * sp.gamma(1 / nu) / sp.gamma(3 / nu)))


def bin_masses(law, levels, step):
    """The probability of each level; by symmetry, tails are differenced on the left, where they are small."""
    v = np.abs(np.asarray(levels))
    return law.cdf((0.5 - v) * step) - law.cdf((-0.5 - v) * step)


def expected(tree, step):
    """Every rate of a tree in float64, from its definition."""
    q = levels64(tree, step)
    n, counts = len(q), Counter(q.tolist())
    p = np.array(list(counts.values())) / n
    ranked = [level for level, _ in counts.most_common()]
    golomb = {level: len(exp_golomb_word(signed_number(level))) for level in ranked}
    side = len(exp_golomb_word(len(ranked))) + sum(golomb.values())
    words = huffman_words(counts)
    out = {
        "entropy": -np.sum(p * np.log2(p)),
        "fixed": len(format(q.max() - q.min(), "b")) if q.max() > q.min() else 0,
        "exp_golomb": sum(golomb[level] * c for level, c in counts.items()) / n,
        "exp_golomb_rank": (sum(len(exp_golomb_word(r)) * counts[v] for r, v in enumerate(ranked)) + side) / n,
        "huffman": sum(len(words[v]) * c for v, c in counts.items()) / n,
    }
    x = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    if x.any():
        law = law_of(x)
        out["gg"] = -np.sum(p * np.log2(bin_masses(law, list(counts), step)))
        out["gg_closed_form"] = law.entropy() / np.log(2) - np.log2(step)
    return out


def tree_of(nu=0.8, scale=0.02, n=6000, seed=0):
    """Two leaves of generalized Gaussian weights, the second off centre."""
    r = np.random.default_rng(seed)
    x = scale * r.gamma(1 / nu, size=n) ** (1 / nu) * r.choice([-1.0, 1.0], n)
    a, b = np.split(x.astype(np.float32), [n // 3])
    return {"a": jnp.asarray(a.reshape(-1, 8)), "b": {"w": jnp.asarray(b) + 0.01}}
