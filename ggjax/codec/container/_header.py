"""The header of a safetensors file, read and checked by the rules of the safetensors library.

What the library refuses is refused here, and what it takes is taken: the tests compare the two. The library
reads a header only together with the data, and its errors tell neither the file nor the place.
"""

import json
import math
from typing import Any, NamedTuple, NoReturn

from ggjax.codec.container._dtypes import BITS

MAX_HEADER = 100_000_000
"""Bytes of a header at most, as in the library."""

METADATA = "__metadata__"

FIELDS = ("dtype", "shape", "data_offsets")
"""What the header says of a tensor; it may also be a list of these three."""

_END = 1 << 64
"""Numbers are below this, and so are products of the numbers of a shape."""


class FormatError(ValueError):
    """A file that is not what it should be; the message names the file and the place in it."""


class Entry(NamedTuple):
    """A tensor in the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class Header(NamedTuple):
    """The header of a file, checked: every tensor lies within the file, and they leave no gap."""

    entries: dict[str, Entry]  # in the order of the data
    metadata: dict[str, str]


def parse(path: Any, text: bytes, size: int) -> Header:
    """The header of a file of so many bytes, of its JSON.

    Raises:
      FormatError: it is not what it should be.
    """
    header = _json(path, text)
    metadata = header.pop(METADATA, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: {METADATA} does not map strings to strings")
    start = end = 8 + len(text)
    found = {name: _entry(f"{path}: tensor {name!r:.200}", value, start) for name, value in header.items()}
    entries = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    for name, entry in entries.items():
        if entry.begin != end:
            raise FormatError(f"{path}: tensor {name!r:.200} begins at byte {entry.begin}, expected {end}")
        end = entry.end
    if end != size:
        raise FormatError(f"{path}: {size} bytes, but its tensors end at byte {end}")
    return Header(entries, metadata)


class _Repeated(dict[str, Any]):
    """A JSON object that has keys twice; the last value of each counts."""

    keys_twice: frozenset[str] = frozenset()


def _json(path: Any, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refused, parse_float=_finite
        )
        if b"\\u" in text:  # half of a surrogate pair is no text, though JSON has an escape for it
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as e:
        raise FormatError(f"{path}: the header has half of a surrogate pair: {e.object[e.start]!r}") from None
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{path}: the header is not JSON: {e}") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is not a JSON object")
    if isinstance(header, _Repeated) and METADATA in header.keys_twice:
        raise FormatError(f"{path}: the header has {METADATA} twice")
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) == len(pairs):
        return out
    seen: set[str] = set()
    twice = frozenset(k for k, _ in pairs if k in seen or seen.add(k))
    out = _Repeated(pairs)
    out.keys_twice = twice
    return out


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.50} is out of range")
    return number


def _entry(where: str, value: Any, start: int) -> Entry:
    if isinstance(value, _Repeated) and (twice := value.keys_twice & set(FIELDS)):
        raise FormatError(f"{where}: has {min(twice)} twice")
    try:
        fields = value if isinstance(value, list) else [value[f] for f in FIELDS]
        dtype, shape, (begin, end) = fields
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{where}: expected dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FormatError(f"{where}: unknown dtype {dtype!r:.100}")
    pair = isinstance(fields[2], list) and _is_size(begin) and _is_size(end)
    if not pair or not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise FormatError(f"{where}: expected a shape and offsets of whole numbers")
    nbytes = _nbytes(where, dtype, shape)
    if end - begin != nbytes:
        raise FormatError(
            f"{where}: {end - begin} bytes of data, but {dtype} of shape {shape!r:.100} takes {nbytes}"
        )
    return Entry(dtype, tuple(shape), start + begin, start + end)


def _is_size(n: Any) -> bool:
    return type(n) is int and 0 <= n < _END


def _nbytes(where: str, dtype: str, shape: list[int]) -> int:
    """The bytes of a tensor. Products must fit in 64 bits from left to right, as in the library."""
    bits = 1
    for n in (*shape, BITS[dtype]):
        bits *= n
        if bits >= _END:
            raise FormatError(f"{where}: {dtype} of shape {shape!r:.100} takes more than 2^64 bits")
    if bits % 8:
        raise FormatError(f"{where}: {dtype} of shape {shape!r:.100} takes {bits} bits, no whole bytes")
    return bits // 8
