"""Files of version 1: what they say of a tensor, told as version 2 would. These files load for ever."""

from typing import Any

from ggjax.codec.container._body import PART

PARAMETERS = ("step", "centroids", "exponent")


def upgraded(t: Any) -> Any:
    """A description of version 2 that means the same; of a wrong one, one that is refused.

    The two sections of version 2, row classes and exceptions, are one there, with one CRC-32: its name here,
    "side", is none that a file of version 2 can have.
    """
    if not isinstance(t, dict):
        return t
    chunks = t.get("chunks")
    if not isinstance(chunks, list) or not all(_is_pair(c) for c in chunks):
        raise ValueError("chunks must be [bytes, crc32] pairs")
    out = {n: t[n] for n in ("dtype", "shape", "axis", "coder", "leaf", "start", "full") if n in t}
    out |= {"bytes": [c[0] for c in chunks], "crc32": [c[1] for c in chunks]}
    if "side" in t:
        out["sections"] = {"side": t["side"]}
    if "kind" in t:
        parts = t.get("parts")
        if not isinstance(parts, list) or not all(isinstance(p, list) and len(p) == len(PART) for p in parts):
            raise ValueError("parts must be lists of six numbers")
        out["quantizer"] = t["kind"]
        out["parts"] = {name: [p[i] for p in parts] for i, name in enumerate(PART)}
        out["params"] = {n: t[n] for n in PARAMETERS if n in t}
    return out


def _is_pair(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2
