"""What the metadata says of one tensor, read: everything in it is checked before memory is set aside for it."""

import itertools
import math
from typing import Any

import numpy as np

from ggjax.codec._coded import Meta, Part
from ggjax.codec._grid import Grid
from ggjax.codec._layout import layout_of, number_of_chunks, side_lengths
from ggjax.codec.container._body import PART, problem_of
from ggjax.codec.container._dtypes import BITS, DTYPES, is_count, is_shape
from ggjax.codec.container._header import Entry
from ggjax.codec.container._metadata import Piece, Shape, Stored
from ggjax.codec.entropy import _lanes, _rans
from ggjax.codec.entropy._coders import CODERS
from ggjax.codec.entropy._tokens import BINS
from ggjax.codec.quantize._quantizers import QUANTIZERS

MAX_PARTS = 256
KNOWN = frozenset(
    "axis binned bytes coder crc32 dtype exceptions full grid leaf leaves needs params parts quantizer "
    "sections shape start".split()
)

SECTIONS = ("side", "classes", "exceptions", "steps")
"""The sections before the chunks, in their order; "side" is that of version 1, for the two others."""


class Wrong(ValueError):
    """What a description must not say."""


def need(condition: bool, message: str) -> None:
    """Raise ``Wrong`` unless it is so."""
    if not condition:
        raise Wrong(message)


def read(name: str, t: Any, entry: Entry, tables: int) -> Stored:
    """What a description says of a tensor.

    Args:
      name: of the tensor.
      t: its description, as JSON gives it.
      entry: the tensor in the header.
      tables: how many the file has.

    Raises:
      Wrong: it cannot be.
    """
    need(isinstance(t, dict), "expected an object")
    leaves, places = _leaves(t["leaves"]) if "leaves" in t else ((), ())
    quantizer = t.get("quantizer", "")
    default = [sum(math.prod(s) for _, s in leaves)] if leaves else list(entry.shape)
    dtype, shape = t.get("dtype", entry.dtype), t.get("shape", default)
    need(isinstance(quantizer, str), f"quantizer must be a name, got {quantizer!r:.50}")
    need(isinstance(dtype, str) and dtype in BITS, f"unknown dtype {dtype!r:.50}")
    needs, problem = _problem(t, quantizer)
    as_it_is = not t.keys() & {"quantizer", "leaves", "shape", "start"}  # and so of any shape and dtype
    need(as_it_is or is_shape(shape), f"no array has the shape {shape!r:.100}")
    need(as_it_is or dtype in DTYPES or bool(problem), f"there are no arrays of {dtype}")
    start, full, leaf = t.get("start"), t.get("full", shape), t.get("leaf", name)
    _check_block(name, shape, leaf, start, full)
    need(not leaves or (start is None and shape == default), "its leaves do not fill it")
    place = leaf, None if start is None else tuple(start), tuple(full), leaves, places, quantizer, needs
    if problem:
        return Stored(dtype, tuple(shape), None, (), (), *place, problem)
    odd = sorted(t.keys() - KNOWN)
    need(not odd, f"unknown key {odd[0] if odd else ''!r:.50}")
    sections = _sections(t.get("sections", {}))
    if quantizer:
        need("shape" in t or bool(leaves), "coded, so expected a shape")
        meta = _meta(t, dtype, tuple(shape), tables)
        number = number_of_chunks(meta)
        chunks = _chunks(t, entry.nbytes - sum(p.nbytes for p in sections.values()), number)
        _check_sections(meta, sections)
        _check_chunks(meta, chunks)
        coded = entry.dtype == "U8" and len(entry.shape) == 1
        need(coded, f"coded, so expected U8 of one axis, got {entry.dtype} {entry.shape}")
    else:
        meta, chunks = None, _chunks(t, entry.nbytes, 1)
        need(
            not sections and not t.keys() & {"parts", "params", "axis", "coder", "grid", "exceptions"},
            "kept as it is, not coded",
        )
        same = (entry.dtype, entry.shape) == (dtype, tuple(shape))
        need(same, f"the header says {entry.dtype} {entry.shape}, the metadata {dtype} {tuple(shape)}")
    total = sum(p.nbytes for p in (*sections.values(), *chunks))
    need(total == entry.nbytes, f"its chunks take {total} bytes, the header gives it {entry.nbytes}")
    return Stored(dtype, tuple(shape), meta, tuple(sections.values()), chunks, *place)


def _problem(t: dict[str, Any], quantizer: str) -> tuple[tuple[str, ...], str]:
    """(what the tensor needs of a reader, why this one cannot read it or nothing)."""
    needs, coder = t.get("needs", []), t.get("coder", "rans")
    need(isinstance(needs, list) and all(isinstance(n, str) for n in needs), "needs must be a list of names")
    need(isinstance(coder, str), f"coder must be a name, got {coder!r:.50}")
    return tuple(needs), problem_of(quantizer, coder, needs)


def _check_block(name: str, shape: list[int], leaf: Any, start: Any, full: Any) -> None:
    need(isinstance(leaf, str), "leaf must be a name")
    if start is None:
        need(full == shape and leaf == name, "a block needs a start")
        return
    need(is_shape(full) and len(full) == len(shape), f"full must be a shape like {shape}")
    inside = isinstance(start, list) and len(start) == len(shape) and all(map(is_count, start))
    inside = inside and all(s + n <= f for s, n, f in zip(start, shape, full, strict=True))
    need(inside, f"start {start!r:.100} does not lie in {full!r:.100}")


def _leaves(t: Any) -> tuple[tuple[tuple[str, Shape], ...], tuple[int, ...]]:
    """(names and shapes, places) of small leaves."""
    good = isinstance(t, dict) and t.keys() == {"names", "shapes", "gaps"}
    good = good and all(isinstance(column, list) for column in t.values())
    need(good and len({*map(len, t.values())}) == 1, "leaves must have lists of names, shapes and gaps")
    names, shapes, gaps = t["names"], t["shapes"], t["gaps"]
    need(bool(names) and all(isinstance(n, str) for n in names), "leaves must have names")
    need(all(map(is_shape, shapes)), "leaves must have shapes that arrays can have")
    need(all(map(is_count, gaps)), "leaves must have gaps that are numbers")
    places = tuple(i + place for i, place in enumerate(itertools.accumulate(gaps)))
    return tuple((n, tuple(s)) for n, s in zip(names, shapes, strict=True)), places


def _is_piece(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(map(is_count, x))


def _sections(t: Any) -> dict[str, Piece]:
    need(isinstance(t, dict) and all(map(_is_piece, t.values())), "a section must be a [bytes, crc32] pair")
    odd = sorted(t.keys() - set(SECTIONS))
    need(not odd, f"unknown section {odd[0] if odd else ''!r:.50}")
    return {n: Piece(*t[n]) for n in SECTIONS if n in t}


def _chunks(t: dict[str, Any], room: int, number: int) -> tuple[Piece, ...]:
    crcs: Any = t.get("crc32")
    need(isinstance(crcs, list) and all(map(is_count, crcs)), "crc32 must be a list of numbers")
    need(len(crcs) == number, f"{len(crcs)} chunks, expected {number}")
    sizes = t.get("bytes", [room])
    good = isinstance(sizes, list) and len(sizes) == number and all(map(is_count, sizes))
    need(good, f"bytes must be a list of {number} sizes")
    return tuple(Piece(*p) for p in zip(sizes, crcs, strict=True))


def _grid_of(t: Any) -> Grid:
    good = isinstance(t, dict) and t.keys() == {"rows", "columns", "parts"}
    good = good and all(
        isinstance(c, list) and 1 <= len(c) <= MAX_PARTS and all(map(is_count, c)) for c in t.values()
    )
    need(good, f"a grid must have lists of up to {MAX_PARTS} numbers: rows, columns and parts")
    grid = Grid(*(tuple(t[n]) for n in Grid._fields))
    need(min(grid.rows + grid.columns) >= 1, "a class without rows or columns")
    need(
        len(grid.parts) == len(grid.rows) * len(grid.columns),
        "a grid must have a part for every pair of classes",
    )
    need(max(grid.parts) < len({*grid.parts}), "a part of a grid without weights")
    return grid


def _parts(t: Any, size: int, grid: Grid | None) -> tuple[Part, ...]:
    good = isinstance(t, dict) and t.keys() <= PART.keys() | {"atoms"}
    need(good, f"parts must have lists of {', '.join(PART)}")
    need(all(isinstance(c, list) and 1 <= len(c) <= MAX_PARTS for c in t.values()), "parts must be lists")
    sizes = grid.sizes if grid else []
    number = len(sizes) or len(next(iter(t.values()), [0]))
    defaults = PART | {"size": size}
    columns = {n: t.get(n, [default] * number) for n, default in defaults.items()}
    if grid:
        need("size" not in t, "the grid says the sizes of its parts")
        columns["size"] = sizes
    atoms = t.get("atoms", [[]] * number)
    same = all(len(c) == number for c in (atoms, *columns.values()))
    need(same, "lists of parts of different lengths")
    need(all(map(_is_key, columns["base"])), "a part begins at no key")
    need(all(is_count(v) for n, c in columns.items() if n != "base" for v in c), "a part is no number")
    need(all(map(_are_atoms, atoms)), f"atoms must be up to {BINS - 1} different keys")
    keys = (tuple(a % (1 << 32) for a in own) for own in atoms)
    parts = (Part(n, b % (1 << 32), *rest) for n, b, *rest in zip(*columns.values(), strict=True))
    return tuple(p._replace(atoms=own) for p, own in zip(parts, keys, strict=True))


def _is_key(x: Any) -> bool:
    return type(x) is int and -(1 << 31) <= x < 1 << 31


def _are_atoms(x: Any) -> bool:
    return isinstance(x, list) and len(x) < BINS and all(map(_is_key, x)) and len(set(x)) == len(x)


def _meta(t: dict[str, Any], dtype: str, shape: Shape, tables: int) -> Meta:
    kind, coder, axis = t["quantizer"], t.get("coder", "rans"), t.get("axis")
    quantizer, name = QUANTIZERS[kind], str(np.dtype(DTYPES[dtype]))
    need(name in quantizer.dtypes, f"no {kind} of {dtype}")
    grid = _grid_of(t["grid"]) if "grid" in t else None
    parts = _parts(t.get("parts", {}), math.prod(shape), grid)
    tables = tables if CODERS[coder].has_tables else 1
    for i, p in enumerate(parts):
        good = p.size >= 1 and p.shift < 32 and p.table < tables and p.exceptions <= p.size
        need(good and p.zeros <= quantizer.most_zeros(name), f"part {i} is out of range: {list(p)}")
    need(sum(p.size for p in parts) == math.prod(shape), "its parts do not fill its shape")
    need((grid is not None) == (kind == "scaled"), "a grid is of the quantizer scaled, which has one")
    if grid is not None:
        need(axis is None, "an axis and a grid")
    elif axis is None:
        need(len(parts) == 1, f"{len(parts)} parts without an axis")
    else:
        good = type(axis) is int and axis in (0, -1) and len(shape) >= 2 and len(parts) > 1
        need(good, f"bad axis {axis!r:.50} of {len(parts)} parts")
    params = t.get("params", {})
    need(isinstance(params, dict), "params must be an object")
    try:
        read = quantizer.read(params, name, shape)
    except ValueError as e:
        raise Wrong(str(e)) from None
    if grid is not None:
        want = len(read.limits) * read.rows, read.columns
        need(grid.shape == want, f"a grid of {grid.shape[0]} rows and {grid.shape[1]} columns, expected {want}")
    keys = (quantizer.keys(read, name, p.zeros) for p in parts)
    good = all(a < end for p, end in zip(parts, keys, strict=True) for a in p.atoms)
    need(good, "an atom is no key that a weight has")
    beyond = _beyond(t.get("exceptions", []), parts)
    return Meta(shape, name, kind, read, parts, axis, coder, grid, beyond, _binned(t, parts))


def _binned(t: dict[str, Any], parts: tuple[Part, ...]) -> tuple[int, ...]:
    """How many tokens of each chunk have raw bits; the file tells it where there are atoms, and only there."""
    told = ["atoms" in t.get("needs", []), "atoms" in t.get("parts", {}), "binned" in t]
    need(len(set(told)) == 1, "atoms need a list of them, a list of binned tokens, and to be needed")
    found = t.get("binned", [])
    need(isinstance(found, list) and all(map(is_count, found)), "binned must be a list of numbers")
    number = sum(_lanes.number_of_chunks(p.size) for p in parts)
    need(not told[0] or len(found) == number, f"binned tokens of {len(found)} chunks, expected {number}")
    sizes = ((p, n) for p in parts for n in _lanes.chunk_sizes(p.size)) if found else ()
    for i, (n, (p, size)) in enumerate(zip(found, sizes, strict=False)):
        good = n <= size if p.atoms else n == size
        need(good, f"chunk {i} has {n} binned tokens, expected {'up to ' if p.atoms else ''}{size}")
    return tuple(found)


def _beyond(t: Any, parts: tuple[Part, ...]) -> tuple[int, ...]:
    """How many exceptions each chunk has, where the file tells it."""
    need(isinstance(t, list) and all(map(is_count, t)), "exceptions must be a list of numbers")
    end, number = 0, sum(_lanes.number_of_chunks(p.size) for p in parts)
    need(not t or len(t) == number, f"exceptions of {len(t)} chunks, expected {number}")
    for i, p in enumerate(parts if t else ()):
        begin, end = end, end + _lanes.number_of_chunks(p.size)
        found = sum(t[begin:end])
        need(found == p.exceptions, f"the chunks of part {i} have {found} exceptions, expected {p.exceptions}")
    return tuple(t)


def _check_sections(meta: Meta, sections: dict[str, Piece]) -> None:
    """They have exactly the bytes of their lists; steps have at least a bit each."""
    class_bytes, exceptions = side_lengths(meta)
    steps = sections["steps"].nbytes if "steps" in sections else 0
    need((steps >= 4 + meta.side / 8) if meta.side else not steps, f"{steps} bytes of steps")
    want = {"classes": class_bytes, "exceptions": 4 * exceptions, "steps": steps}
    if "side" in sections:
        want = {"side": sum(want.values())}
    have = {n: p.nbytes for n, p in sections.items() if p.nbytes}
    want = {n: size for n, size in want.items() if size}
    need(have == want, f"sections of {have} bytes, expected {want}")


def _check_chunks(meta: Meta, chunks: tuple[Piece, ...]) -> None:
    """They have at least the bytes that their tokens take."""
    for i, (place, c) in enumerate(zip(layout_of(meta).chunks, chunks, strict=True)):
        lanes, raw = (s.stop - s.start for s in (place.states, place.raw))
        words = c.nbytes - raw - 6 * lanes  # a state and a count take 6 bytes
        if CODERS[meta.coder].has_tables:
            good = 0 <= words <= 2 * lanes * _rans.WORDS and words % 2 == 0
        else:
            good = words > 0
        need(good, f"chunk {i} of {c.nbytes} bytes cannot hold {place.size} tokens")
