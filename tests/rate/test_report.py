"""The report: its rows and its table."""

import jax
import jax.numpy as jnp
import numpy as np

from ggjax import gennorm, rate
from tests.rate.reference import expected, levels64, tree_of


def test_report_rows_and_total():
    tree = tree_of()
    r = rate.report(tree, 0.003)
    assert [(row.name, row.size) for row in r.rows] == [("a", 2000), ("b/w", 4000)]
    assert r.total.name == "total" and r.total.size == 6000 and r.step == 0.003
    for row, part in zip((*r.rows, r.total), ({"a": tree["a"]}, {"b": tree["b"]}, tree), strict=True):
        want = expected(part, 0.003)
        assert list(row.bits) == list(rate.CODES)
        for code in rate.CODES:
            np.testing.assert_allclose(row.bits[code], want[code], rtol=2e-6, err_msg=code)
            np.testing.assert_allclose(row.bits[code], rate.bits(part, 0.003, code=code), rtol=1e-6)
        x = np.concatenate([np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(part)])
        np.testing.assert_allclose(row.std, x.std(), rtol=1e-5)
        assert row.levels == len(np.unique(levels64(part, 0.003)))
        np.testing.assert_allclose(row.nu, gennorm.fit(part).nu, rtol=1e-6)
    assert r.nbytes("huffman") == 6000 * r.total.bits["huffman"] / 8


def test_report_prints_as_an_aligned_table():
    r = rate.report(
        {"long/name": jnp.array([0.0, 0.0, 0.5, -0.5]), "z": jnp.zeros(4)}, 0.5, codes=["fixed", "entropy"]
    )
    assert str(r).splitlines() == [
        "bits per parameter at step 0.5",
        "leaf                   size    nu    std  levels   fixed  entropy",
        "-----------------------------------------------------------------",
        "long/name                 4  1.00  0.354       3   2.000    1.500",
        "z                         4  2.00      0       1   0.000    0.000",
        "-----------------------------------------------------------------",
        "total                     8  0.43   0.25       3   2.000    1.061",
        "bytes of the total                                     2        1",
        "smaller than float32                              16.00x   30.15x",
        "smaller than bfloat16                              8.00x   15.08x",
    ]
    empty = rate.report({}, 0.5)
    assert empty.rows == () and empty.total.size == 0 and str(empty).endswith("-")


def test_long_names_leave_the_table_readable():
    name = "params/" + "/".join(f"TransformerBlock_{i}" for i in range(9)) + "/attention/query/kernel"
    r = rate.report({name: jnp.ones(4), "params/w": jnp.zeros(2)}, 0.5, codes=["entropy"])
    assert r.rows[0].name == name
    lines = str(r).splitlines()
    assert max(map(len, lines)) < 90
    assert "params/Tran" in lines[3] and "/attention/query/kernel" in lines[3] and "..." in lines[3]
