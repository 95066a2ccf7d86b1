"""What a leaf is, as far as its name tells: the names that Flax, Haiku, Equinox and PyTorch give their leaves.

A name is the leaf's path, its parts separated by slashes or, as in PyTorch, by dots:
``params/LayerNorm_0/scale``, ``linear/w``, ``layers/0/weight``, ``h.0.ln_1.weight``. The last part is the leaf
itself, the others are modules; parts that are mere numbers say nothing. Case does not matter.
"""

import functools
import re
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal[
    "buffer",  # no weight at all: masks, rotary frequencies, position ids, caches
    "statistic",  # running means and variances, averages of weights
    "token",  # vectors put into a sequence (class and mask tokens, latents), which often start at zero
    "adapter",  # the factors of LoRA, one of which starts at zero
    "special",  # starts at a value that its layer chooses: temperatures, layer scales, decay rates
    "embedding",  # tables of vectors to look up, positions among them
    "bias",
    "scale",  # of a normalization layer
    "weight",  # what multiplies inputs, by name
    "other",  # the name does not tell
]

_LEAVES: dict[Kind, str] = {  # the leaf's own name, in the order of trial
    "token": r"(\w+_)?(cls|tokens?|latents|prompt|registers)",
    "buffer": r"(\w+_)?masks?|masked_bias|causal\w*|tril|triu|alibi\w*|anchors|num_batches_tracked"
    r"|(\w+_)?freqs?(_(cis|cos|sin|real|imag))?|(\w+_)?(cos|sin|sinusoids?)(_(cached?|table|emb|pos))?"
    r"|(\w+_)?(ids|position_index)"
    r"|cached?_\w+|\w+_cached?",
    "special": r"logit_scale|\w*temperature|(\w+_)?layer_?scale\w*|gamma_\d|lambda\w*|negative_slope|alpha"
    r"|a_log|dt_bias|time_(decay|first|mix\w*|maa\w*|faaaa)|log_\w+",
    "statistic": r"(running|moving)_\w+|(\w+_)?(mean|var|variance|ema|average)|u0|sigma",
    "embedding": r"(rel_?pos|relative_position)\w*|\w*pos(ition(al)?)?_?(s|emb\w*|enc\w*|table)"
    r"|pos|wte|wpe|codebook",
    "bias": r"b|b_?\d+|b[qkvo]|b_\w+|\w+_b|(\w+_)?bias(es)?|bias_\w+|beta|offset",
    "scale": r"(\w+_)?(scales?(_inv|_weight|_\d+)?|gamma|gain)|\w*absmax|(\w+_)?zero_points?|g"
    r"|weight_g|original0",
    "weight": r"(\w+_)?(w|kernel|weights?)|weight_\w+|w_?\d+|w[qkvo]|w_\w+|original1",
}

_MODULES: dict[Kind, str] = {  # the name of any module around the leaf; these go before the leaf's own name
    "adapter": r"(\w+_)?lora_\w+",
    "buffer": r"cache|buffers",
    "statistic": r"batch_stats|(\w+_)?ema|(state|uv)_index",
    "special": r"ls_?\d*|layer_?scale\w*",
    "scale": r"scales",
}

_GPT_MASK = r"(^|[/.])(h[/.]\d+[/.]attn([/.]attention)?|gpt_neox[/.]layers[/.]\d+[/.]attention)[/.]bias$"
"""The causal mask of GPT-2, GPT-Neo, GPT-J and GPT-NeoX is called bias, on a module that has no other bias."""

_NORM = r"norm(?!al($|_))|(^|_)(bn|gn|ln|rms)(_|\d|f?$)"  # LayerNorm_0, layer_norm, norm1, bn1, ln_f, attn_ln
_EMBED = r"embed|(^|_)emb(_|$)|^(wte|wpe|codebook)$|(rel_?pos|relative_(attention|position))"
_LAYER = r"mlp|linear|dense|proj|conv|(^|_)fc|patch|unembed|embed_out|time\w*_emb"
"""Modules that multiply, so that their weight is no table even inside a module that is named an embedding."""


@functools.lru_cache(maxsize=1 << 14)
def kind_of(name: str) -> Kind:
    """What the leaf of this name is; "other" when the name does not tell.

    >>> kind_of("params/LayerNorm_0/scale"), kind_of("h.0.ln_1.weight"), kind_of("h.0.mlp.c_fc.weight")
    ('scale', 'scale', 'weight')
    """
    name = name.lower().removesuffix("/value")  # the variables of nnx end in it
    every = re.split(r"[/.]", name)
    parts = [part for part in every if not part.isdigit()]
    if not parts:
        return "other"
    if re.search(_GPT_MASK, name):
        return "buffer"
    *modules, leaf = parts
    numbered = every[-1].isdigit()  # one of a list, so that its last part is the list's name
    if any(re.fullmatch(_MODULES["adapter"], part) for part in parts):
        return "adapter"
    for kind, pattern in _MODULES.items():
        if any(re.fullmatch(pattern, part) for part in (parts if numbered else modules)):
            return kind
    own: Kind = next((kind for kind, pattern in _LEAVES.items() if re.fullmatch(pattern, leaf)), "other")
    if own not in ("weight", "other"):
        return own
    if leaf == "kernel":  # Flax's kernels multiply, whatever their module is called
        return "weight"
    if own == "weight" and modules and _is_norm(modules[-1]):
        return "scale"
    if own == "other" and _is_norm(leaf) and not numbered:
        return "scale"
    return "embedding" if _is_table(parts) else own


def _is_norm(part: str) -> bool:
    return bool(re.search(_NORM, part)) and not re.search(_LAYER, part)


def _is_table(parts: list[str]) -> bool:
    """Whether a part says embedding, and neither it nor a part further in says that something multiplies."""
    first = next((i for i, part in enumerate(parts) if re.search(_EMBED, part)), None)
    return first is not None and not any(re.search(_LAYER, part) for part in parts[first:])
