"""The demo's language model: ``python -m tests.benchmarks.calibrated.lm --cache FOLDER --weights backslash``.

"adam" is Adam from Glorot's init, "small" Adam from the small init, "backslash" Adam with BackSlash from the
small init, as ``ggjax demo`` and the table of ``tests.benchmarks.arms`` have them. A training takes some three
minutes; its weights are kept in the folder.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ggjax
from ggjax.app import _lm, _training
from ggjax.app._training import Settings
from tests.benchmarks import arms
from tests.benchmarks.arms import Arm, Job
from tests.benchmarks.calibrated import subject
from tests.benchmarks.calibrated.subject import Examples, Quality, Split, Subject

FULL = _training.FULL
WEIGHTS = {"adam": Arm(1.0), "small": Arm(FULL.xi), "backslash": Arm(FULL.xi, strength=FULL.strength)}
DEFAULT_CACHE = Path.home() / ".cache/ggjax-lm"
JUDGED_AT_ONCE = 128  # windows


def trained(arm: Arm, seed: int, cache: Path, s: Settings = FULL) -> tuple[_lm.Model, Any]:
    """The model of an arm and its weights, from the folder if they are there."""
    text = arms.load_text()
    key = [arm._asdict(), seed, arms.used(s), arms.checksum(text), jax.__version__]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"lm-{name}.ggjax.safetensors"
    if path.exists():
        model = _lm.Model(width=s.width, depth=s.depth, heads=s.heads)
        return model, ggjax.load_file(path, like=_lm.init(model, 0))
    model, params = arms.train(Job(arm, seed, "test", s), text)
    cache.mkdir(parents=True, exist_ok=True)
    ggjax.save_file(params, path, lossless=True)
    return model, params


def load(weights: str = "adam", seed: int = 1, cache: Path = DEFAULT_CACHE, s: Settings = FULL) -> Subject:
    """The model with the weights of an arm, by name."""
    model, params = trained(WEIGHTS[weights], seed, cache, s)
    text = arms.load_text()

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        return jnp.asarray(model.apply({"params": params}, tokens))

    def batches(number: int) -> Iterator[jax.Array]:
        starts = np.random.default_rng(0).integers(0, text.train.size - s.context, (number, s.batch))
        return (text.train[x[:, None] + np.arange(s.context)] for x in starts)

    @functools.cache
    def data(split: Split) -> list[Examples]:
        windows = _lm.windows_of(getattr(text, split), s.test_windows, s.context)
        parts = np.split(windows, range(JUDGED_AT_ONCE, len(windows), JUDGED_AT_ONCE))
        return [Examples(x[:, :-1], x[:, 1:].astype(jnp.int32), jnp.ones(x[:, 1:].shape, bool)) for x in parts]

    def quality(changed: Any, split: Split) -> Quality:
        return subject.judged(apply, params, changed, data(split))

    return Subject(f"language model, {weights}, seed {seed}", params, apply, "logits", batches, quality)


def main() -> None:
    parser = subject.parser(__doc__)
    parser.add_argument("--weights", choices=WEIGHTS, default="adam")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="folder of weights (default: %(default)s)"
    )
    args = parser.parse_args()
    subject.show(load(args.weights, args.seed, args.cache), args.split)


if __name__ == "__main__":
    main()
