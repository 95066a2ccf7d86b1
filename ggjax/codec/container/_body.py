"""The metadata of a compressed file as JSON: what can be read of it without knowing how weights are coded.

``_parse`` reads the rest. This alone needs no JAX, so that programs which only list a file start at once.
"""

import base64
import json
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

from ggjax.codec.container._header import MAX_HEADER, FormatError, Header

VERSION = 2
KEY = "ggjax"
NO_CRC = "00000000"
"""What stands in place of the checksum while it is computed."""

FEATURES = frozenset({"atoms"})
"""What a tensor may need of a reader beyond version 2, and this one understands."""

QUANTIZERS = ("uniform", "rf8", "lossless", "dictionary", "scaled")
CODERS = ("rans", "zstd")
"""The names of the quantizers and coders that this version knows."""

MOST_RATIO, MOST_SMALL = 64, 1 << 16
"""The metadata has at most so many times the bytes of its compressed form, and so many more."""

MOST_VALUES, VALUES_PER_BYTE = 1 << 18, 16
"""It has at most so many values, and so many more for each byte of its compressed form: values take far more
memory than their text does."""

PART = {"size": None, "base": 0, "shift": 0, "zeros": 0, "table": 0, "exceptions": 0}
"""The numbers of a part, and what they are where a file does not say; a size is then that of the tensor."""

_ENVELOPE = {"crc32", "deflated", "size", "version"}
_BODY = {"original", "save", "tables", "tensors"}


class Body(NamedTuple):
    """What the metadata says, the descriptions of the tensors as they stand there."""

    version: int
    tensors: dict[str, Any]
    tables: list[Any]
    original: dict[str, str]
    save: str


def is_compressed(header: Header) -> bool:
    """Whether a file says that it is ours."""
    return KEY in header.metadata


def read(path: Any, header: Header) -> Body:
    """The metadata of a file.

    Raises:
      FormatError: it is not of this format, of another version, or damaged.
    """
    text = header.metadata.get(KEY)
    if text is None:
        raise FormatError(f"{path}: no {KEY!r} in __metadata__: not a compressed file")
    where = f"{path}: metadata {KEY!r}"
    if list(header.metadata) != [KEY]:
        raise FormatError(f"{path}: __metadata__ has other keys than {KEY!r}")
    stated = text[10:18]
    blank = text[:10] + NO_CRC + text[18:]
    if text[:10] != '{"crc32":"' or stated != f"{zlib.crc32(blank.encode('utf-8', 'surrogatepass')):08x}":
        raise FormatError(f"{where}: its CRC-32 does not fit")
    try:
        return _checked(*_body(text), header.entries)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as e:
        raise FormatError(f"{where}: {e}") from None


def _checked(version: int, body: dict[str, Any], names: Collection[str]) -> Body:
    tables, tensors = body["tables"], body["tensors"]
    if not isinstance(tables, list) or not isinstance(tensors, dict):
        raise ValueError("tables and tensors expected")
    original, save = body.get("original", {}), body.get("save", "")
    if not isinstance(original, dict) or not all(isinstance(v, str) for v in original.values()):
        raise ValueError("original does not map strings to strings")
    if KEY in original or not isinstance(save, str):
        raise ValueError("original or save is not what it can be")
    if tensors.keys() != set(names):
        odd = sorted(tensors.keys() ^ set(names))[0]
        raise ValueError(f"tensor {odd!r:.200} is only in one of metadata and header")
    return Body(version, tensors, tables, original, save)


def _body(text: str) -> tuple[int, dict[str, Any]]:
    """(version, what the metadata says)."""
    outer = _json(text)
    version = outer.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise ValueError(f"version {version!r:.50}, this reads versions 1 and {VERSION}")
    if version == 1:
        return version, outer
    if outer.keys() != _ENVELOPE:
        raise ValueError(f"expected the keys {sorted(_ENVELOPE)}, got {sorted(outer)!r:.200}")
    body = _json(_inflated(base64.b64decode(outer["deflated"], validate=True), outer["size"]))
    odd = sorted(body.keys() - _BODY)
    if odd:
        raise ValueError(f"unknown key {odd[0]!r:.50}")
    return version, body


def _inflated(data: bytes, size: Any) -> bytes:
    """The text of compressed metadata, which a file may not make large from little."""
    if type(size) is not int or not 0 <= size <= min(MOST_RATIO * len(data) + MOST_SMALL, MAX_HEADER):
        raise ValueError(f"{len(data)} bytes cannot be metadata of {size!r:.50}")
    decoder = zlib.decompressobj()
    try:
        text = decoder.decompress(data, size + 1)
    except zlib.error as e:
        raise ValueError(f"not deflated: {e}") from None
    if len(text) != size or not decoder.eof or decoder.unused_data:
        raise ValueError(f"does not inflate to {size} bytes")
    if _values(text) > MOST_VALUES + VALUES_PER_BYTE * len(data):
        raise ValueError(f"{len(data)} bytes cannot be metadata of {_values(text)} values")
    return text


def _values(text: bytes) -> int:
    """About how many values JSON has: not fewer, but for one."""
    return sum(map(text.count, (b"[", b"{", b",", b":")))


def may_be(text: bytes, nbytes: int) -> bool:
    """Whether a reader takes so many bytes as the compressed form of a text."""
    most = MOST_VALUES + VALUES_PER_BYTE * nbytes
    return len(text) <= MOST_RATIO * nbytes + MOST_SMALL and _values(text) <= most


def _json(text: str | bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys and without numbers that are none."""
    value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a JSON object has a key twice")
    return out


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def problem_of(quantizer: str, coder: str, needs: Collection[str]) -> str:
    """Why this version cannot read a tensor, or nothing."""
    odd = [f"{n!r:.50}" for n in needs if n not in FEATURES]
    odd += [f"the quantizer {quantizer!r:.50}"] if quantizer and quantizer not in QUANTIZERS else []
    odd += [f"the coder {coder!r:.50}"] if coder not in CODERS else []
    return f"needs {' and '.join(odd)}, which this version of ggjax does not know" if odd else ""
