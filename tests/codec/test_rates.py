"""What bits= and snr_db= of a whole tree give, which leaves are rounded, and weights of few distinct values."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ggjax import codec, masks


def layers():
    """Layers whose weights differ in scale by a factor of 8, with biases."""
    rng = np.random.default_rng(0)
    return {
        f"layer{i}": {
            "kernel": (rng.laplace(size=(150, 200)) * 2.0 ** (i - 6)).astype(np.float32),
            "bias": rng.normal(size=1500).astype(np.float32),
        }
        for i in range(4)
    }


def number_of_weights(tree):
    return sum(x.size for layer in tree.values() for x in layer.values())


def squared_error(tree, small):
    back = codec.decompress(small)
    pairs = [(tree[k]["kernel"], np.asarray(back[k]["kernel"], np.float64)) for k in tree]
    return sum(np.sum((a - b) ** 2) for a, b in pairs)


@pytest.mark.parametrize("options", [{}, {"dead_zone": 0.2, "centroids": True}], ids=str)
@pytest.mark.parametrize("bits", [3.0, 5.5, 11.0])
def test_a_tree_takes_the_bits_that_are_asked(bits, options):
    tree = layers()
    small = codec.compress(tree, bits=bits, **options)
    taken = 8 * small.nbytes / number_of_weights(tree)
    assert bits - max(0.02, 0.01 * bits) <= taken <= bits
    assert len({small.tree[k]["kernel"].meta.params.step for k in tree}) == 1


def test_so_does_a_checkpoint_with_all_that_is_in_it(tmp_path):
    tree = layers()
    flat = {f"{k}.{n}": x for k, layer in tree.items() for n, x in layer.items()}
    safetensors.numpy.save_file(flat | {"ids": np.arange(9000)}, tmp_path / "plain")
    nbytes = codec.compress_file(tmp_path / "plain", tmp_path / "y", bits=4)
    assert nbytes == (tmp_path / "y").stat().st_size == codec.compress_file(tmp_path / "plain", None, bits=4)
    assert 3.96 <= 8 * (nbytes - 9000 * 8) / number_of_weights(tree) <= 4
    kinds = {t.name: t.kind for t in codec.inspect_file(tmp_path / "y").tensors}
    assert all(kinds[n] == ("uniform" if n.endswith("kernel") else "lossless") for n in flat)


def test_one_step_loses_less_than_one_rate():
    tree = layers()
    each = codec.compress(tree, bits=4, per="leaf")
    assert all(3.95 <= each.bits[f"{k}/kernel"] <= 4 for k in tree)
    both = codec.compress(tree, bits=8 * each.nbytes / number_of_weights(tree))
    assert both.nbytes <= each.nbytes
    assert squared_error(tree, both) < 0.6 * squared_error(tree, each)


def test_snr_of_a_tree():
    tree = layers()
    power = sum(np.sum(np.float64(tree[k]["kernel"]) ** 2) for k in tree)
    snr = 10 * np.log10(power / squared_error(tree, codec.compress(tree, snr_db=20)))
    assert 19.95 < snr < 20.1


@pytest.mark.parametrize("largest", [1e9, 3.4e38])
@pytest.mark.parametrize("options", [{"bits": 4}, {"snr_db": 20}], ids=str)
def test_a_mask_among_the_weights_takes_nothing_from_them(largest, options):
    """A mask that no name tells comes out exact; the common step suits the others."""
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    mask = np.triu(np.full((64, 64), -largest, np.float32), 1)
    tree = {"a": {"kernel": w}, "m": {"kernel": mask}}
    small = codec.compress(tree, **options)
    back = codec.decompress(small)
    np.testing.assert_array_equal(back["m"]["kernel"], mask)
    error = float(np.mean((back["a"]["kernel"] - w) ** 2) / np.mean(w**2))
    if "bits" in options:
        assert 3.95 < 8 * small.nbytes / (2 * w.size) <= 4 and error < 1e-3
    else:
        assert 0.009 < error <= 0.01


def test_bits_that_cannot_be_met():
    tree = {"kernel": np.ones((40, 50), np.float32), "bias": np.random.default_rng(0).normal(size=900)}
    with pytest.raises(ValueError, match="bits=4 cannot be met.* take about .* for leaves that are kept"):
        codec.compress(tree, bits=4)
    assert codec.compress(tree, bits=4, per="leaf").bits["kernel"] <= 4


@pytest.mark.parametrize("options", [{"step": 0.1}, {"step_per_std": 0.5}, {"rf8": True}], ids=str)
def test_only_kernels_are_rounded(options):
    tree = {
        "kernel": np.linspace(-1, 1, 4000, dtype=np.float32).reshape(40, 100),
        "norm": {"scale": np.linspace(0.9, 1.1, 2000, dtype=np.float32)},
        "batch_stats": {"var": np.geomspace(1e-6, 1, 2000, dtype=np.float32)},
    }
    back = codec.decompress(codec.compress(tree, **options))
    np.testing.assert_array_equal(back["norm"]["scale"], tree["norm"]["scale"])
    np.testing.assert_array_equal(back["batch_stats"]["var"], tree["batch_stats"]["var"])
    assert (np.asarray(back["kernel"]) != tree["kernel"]).any()
    for mask in (None, masks.floating):
        back = codec.decompress(codec.compress(tree, mask=mask, **options))
        assert (np.asarray(back["batch_stats"]["var"]) != tree["batch_stats"]["var"]).any()


def few_values():
    rng = np.random.default_rng(0)
    n = (200, 300)
    int4 = np.clip(np.round(rng.normal(size=n) * 1.2), -4, 3)
    return {
        "ternary": (rng.integers(-1, 2, n) * 0.02).astype(np.float32),
        "int4 in float16": (int4 * 0.013).astype(np.float16),
        "int4 in bfloat16": (int4 * 0.013).astype(jnp.bfloat16),
        "even": (2 * int4 * np.float32(0.013)).astype(np.float32),
        "int8 in float32": np.clip(np.round(rng.normal(size=n) * 20), -127, 127).astype(np.float32),
        "pruned": (rng.normal(size=n) * (rng.random(n) < 0.1)).astype(np.float32),
    }


@pytest.mark.parametrize("per", ["tree", "leaf"])
@pytest.mark.parametrize("name", few_values())
def test_weights_of_few_values_take_no_more_than_is_asked(name, per):
    x = few_values()[name]
    counts = np.unique(np.asarray(x, np.float32), return_counts=True)[1] / x.size
    entropy = -(counts * np.log2(counts)).sum()
    for bits in (2, 4, 8):
        small = codec.compress({"w": x}, bits=bits, per=per)
        assert small.bits["w"] <= bits
        if name != "pruned" and bits > entropy + 0.1:
            np.testing.assert_array_equal(np.asarray(codec.decompress(small)["w"]), x)
            assert small.bits["w"] < entropy + 0.1
