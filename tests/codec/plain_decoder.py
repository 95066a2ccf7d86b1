"""A decoder of compressed checkpoints in plain NumPy, written from ``ggjax/codec/FORMAT.md`` alone.

It imports nothing of the package: where both give the same bits, the specification says all that is needed. The
numbers in brackets are its sections. The machine must be little-endian.
"""

import base64
import json
import math
import zlib
from pathlib import Path

import numpy as np

from tests.codec.plain_keys import CHUNK_TOKENS, PART_COLUMNS, decode_keys, parts_of
from tests.codec.plain_scaled import largest_of, scaled_weights
from tests.codec.plain_streams import check, packed_size, read_steps, read_table, unpack

_NAMES = (
    "BOOL=bool U8=uint8 I8=int8 U16=uint16 I16=int16 U32=uint32 I32=int32 U64=uint64 I64=int64 F16=float16 "
    "BF16=bfloat16 F32=float32 F64=float64 C64=complex64 F8_E4M3=float8_e4m3fn F8_E5M2=float8_e5m2 "
    "F8_E8M0=float8_e8m0fnu"
)
DTYPES = dict(pair.split("=") for pair in _NAMES.split())
RF8_FRACTIONS = np.array([-1 / 4, -1 / 8, -1 / 16, 0, 1 / 16, 1 / 8, 1 / 4, 1 / 2], np.float32)


def decode_file(path) -> dict[str, np.ndarray]:
    """Every leaf of a file, or of all the files of an index, by its name."""
    path = Path(path)
    files, weight_map = [path], {}
    if path.name.endswith(".safetensors.index.json"):
        weight_map = json.loads(path.read_text())["weight_map"]
        files = [path.parent / file for file in sorted(set(weight_map.values()))]
    leaves, blocks = {}, {}
    for file in files:
        for name, description, weights in decode_tensors(file.read_bytes()):
            if weight_map.get(name, file.name) != file.name:  # [7]
                continue
            if "leaf" in description:
                start = description["start"]
                check(name == f"{description['leaf']}@{','.join(map(str, start))}", f"{name}: name of a block")
                key = description["leaf"], tuple(description["full"]), weights.dtype
                blocks.setdefault(key, []).append((start, weights))
                continue
            for leaf, array in (
                small_leaves(description, weights) if "leaves" in description else [(name, weights)]
            ):
                check(leaf not in leaves, f"{leaf}: twice")
                leaves[leaf] = array
    for (name, full, _), parts in blocks.items():
        check(name not in leaves, f"{name}: twice")
        leaves[name] = join_blocks(name, full, parts)
    return leaves


def small_leaves(description, weights):
    """[7] The leaves that stand one after another in a tensor."""
    names, shapes = description["leaves"]["names"], description["leaves"]["shapes"]
    sizes = [math.prod(shape) for shape in shapes]
    check(len(names) == len(shapes) and weights.shape == (sum(sizes),), "small leaves fill their tensor")
    pieces = np.split(weights, np.cumsum(sizes)[:-1])
    return [(name, x.reshape(shape)) for name, shape, x in zip(names, shapes, pieces, strict=True)]


def join_blocks(name, full, blocks):
    """[7] The blocks must fill the leaf: as many elements as it has, and none written twice."""
    check(sum(weights.size for _, weights in blocks) == math.prod(full), f"{name}: the blocks do not fill it")
    leaf, written = np.empty(full, blocks[0][1].dtype), np.zeros(full, bool)
    for start, weights in blocks:
        check(len(start) == weights.ndim == len(full), f"{name}: number of axes of a block")
        place = tuple(slice(a, a + n) for a, n in zip(start, weights.shape, strict=True))
        check(min(start) >= 0 and leaf[place].shape == weights.shape, f"{name}: a block lies outside")
        check(not written[place].any(), f"{name}: blocks overlap")
        leaf[place], written[place] = weights, True
    return leaf


def decode_tensors(file):
    """[1, 8] The name, the description and the weights of every tensor of a file."""
    size = int.from_bytes(file[:8], "little")
    check(len(file) >= 8 + size, "the header is cut off")
    header = json.loads(file[8 : 8 + size])
    metadata = read_metadata(header.pop("__metadata__", {}))
    check(header.keys() == metadata["tensors"].keys(), "metadata and header name different tensors")
    tables = [read_table(base64.b64decode(table, validate=True)) for table in metadata["tables"]]
    entry_keys = {"dtype", "shape", "data_offsets"}
    check(all(entry.keys() == entry_keys for entry in header.values()), "header: entries")
    data, end = memoryview(file)[8 + size :], 0
    for _, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        check(entry["data_offsets"][0] == end <= entry["data_offsets"][1], "header: gap or overlap")
        end = entry["data_offsets"][1]
    check(end == len(data), "header: the offsets do not end where the file does")
    for name, entry in header.items():
        description = metadata["tensors"][name]
        tensor = np.frombuffer(data[slice(*entry["data_offsets"])], np.uint8)
        try:
            yield name, description, decode_tensor(tensor, entry, description, tables)
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{name}: {error}") from error


def read_metadata(entries):
    """[1] The metadata, as version 2 has it."""
    check(entries.keys() == {"ggjax"}, "metadata: entries")
    text = entries["ggjax"]
    check(text.isascii() and text.startswith('{"crc32":"'), "metadata: beginning")
    crc = zlib.crc32((text[:10] + "00000000" + text[18:]).encode("ascii"))
    check(text[10:18] == f"{crc:08x}", "metadata: CRC")
    metadata = json.loads(text)
    check(metadata["version"] in (1, 2), "metadata: version")
    if metadata["version"] == 1:
        metadata["tensors"] = {name: from_version_1(t) for name, t in metadata["tensors"].items()}
        return metadata
    size = metadata["size"]
    packed = base64.b64decode(metadata["deflated"], validate=True)
    check(size <= 64 * len(packed) + 65536, "metadata: size")
    inflate = zlib.decompressobj()
    inner = inflate.decompress(packed, size + 1)
    check(len(inner) == size and inflate.eof and not inflate.unused_data, "metadata: size")
    return json.loads(inner)


def from_version_1(old):
    """[9] What version 2 says of a tensor, from what version 1 says."""
    new = {key: value for key, value in old.items() if key in "dtype shape axis coder leaf start full".split()}
    new["bytes"], new["crc32"] = [size for size, _ in old["chunks"]], [crc for _, crc in old["chunks"]]
    if "kind" in old:
        columns = zip(*old["parts"], strict=True)
        new["parts"] = dict(zip(PART_COLUMNS, map(list, columns), strict=True))
        new["quantizer"], new["sections"] = old["kind"], {"side": old.get("side", [0, 0])}
        new["params"] = {key: old[key] for key in ("step", "centroids", "exponent") if key in old}
    return new


def decode_tensor(data, entry, description, tables):
    """[1, 8] Cut the bytes of a tensor into its sections, check these, and decode them."""
    check(set(description.get("needs", [])) <= {"atoms"}, "needs what this decoder does not know")
    sections = description.get("sections", {})
    before = [sections[name] for name in ("side", "classes", "exceptions", "steps") if name in sections]
    check(len(before) == len(sections), "names of sections")
    rest = data.size - sum(size for size, _ in before)
    chunks = zip(description.get("bytes", [rest]), description["crc32"], strict=True)
    pieces, start = [], 0
    for size, crc in [*before, *chunks]:
        pieces.append(data[start : start + size])
        check(pieces[-1].size == size and zlib.crc32(pieces[-1]) == crc, "CRC of a section or chunk")
        start += size
    check(start == data.size, "sizes of sections and chunks")
    side = np.concatenate([np.zeros(0, np.uint8), *pieces[: len(before)]])
    if "quantizer" not in description:
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
        check(description.get("dtype", entry["dtype"]) == entry["dtype"], "header and metadata differ")
        check(description.get("shape", shape) == shape, "header and metadata differ")
        check(len(pieces) == 1, "a tensor that is kept as it is has one chunk")
        check(data.size == math.prod(shape) * dtype.itemsize, "size of a tensor that is kept as it is")
        return data.view(dtype).reshape(shape).copy()
    check([entry["dtype"], entry["shape"]] == ["U8", [data.size]], "header of a coded tensor")
    return decode_sections(side, pieces[len(before) :], description, tables)


def decode_sections(side, chunks, description, tables):
    """[2] The weights of a coded tensor."""
    dtype, axis = np.dtype(DTYPES[description["dtype"]]), description.get("axis")
    shape = description.get("shape")
    if "leaves" in description:
        shape = [sum(math.prod(shape) for shape in description["leaves"]["shapes"])]
    parts = parts_of(description.get("parts", {}), math.prod(shape))
    if description["quantizer"] == "scaled":
        return decode_scaled(side, chunks, description, tables, shape, dtype)
    rows, class_bytes = 1, 0
    if axis is not None:
        rows, class_bits = shape[axis], (len(parts) - 1).bit_length()
        class_bytes = packed_size(rows, class_bits)
    check((axis is None) == (len(parts) == 1) and axis in (None, 0, -1), "axis")
    check(side.size == class_bytes + 4 * sum(part[5] for part in parts), "size of classes and exceptions")
    check(sum(part[0] for part in parts) == math.prod(shape), "parts do not fill the shape")
    check(len(chunks) == sum(-(-part[0] // CHUNK_TOKENS) for part in parts), "number of chunks")
    exceptions = side[class_bytes:].view("<u4")
    classes = np.zeros(1, np.uint32) if axis is None else unpack(side[:class_bytes], rows, class_bits)
    check(classes.max(initial=0) < len(parts), "class of a row")
    weights_of_parts = []
    keys_of_parts = decode_keys(parts, chunks, exceptions, description, tables)
    for k, (part, keys) in enumerate(zip(parts, keys_of_parts, strict=True)):
        check(part[0] * rows == np.count_nonzero(classes == k) * math.prod(shape), "size of a part")
        weights_of_parts.append(keys_to_weights(keys, part[3], dtype, description))

    if axis is None:
        return weights_of_parts[0].reshape(shape)
    weights = np.empty(shape, dtype)
    weights_by_row = weights.reshape(rows, -1) if axis == 0 else weights.reshape(-1, rows).T
    for k, part in enumerate(weights_of_parts):
        weights_by_row[classes == k] = part.reshape(-1, weights_by_row.shape[1])
    return weights


def decode_scaled(side, chunks, description, tables, shape, dtype):
    """[2, 3] The weights of a tensor whose rows and columns have steps."""
    params, grid = description["params"], description["grid"]
    b, m = len(params["limits"]), params["rows"]
    n = math.prod(shape) // (b * m)
    counts = grid["rows"], grid["columns"]
    check((sum(counts[0]), sum(counts[1])) == (b * m, n) and b * m * n == math.prod(shape), "size of a grid")
    pairs = [(i, j) for i in range(len(counts[0])) for j in range(len(counts[1]))]
    check(len(grid["parts"]) == len(pairs), "pairs of a grid")
    sizes = [0] * (max(grid["parts"]) + 1)
    for (i, j), part in zip(pairs, grid["parts"], strict=True):
        sizes[part] += counts[0][i] * counts[1][j]
    columns = description.get("parts", {}) | {"size": sizes}
    parts = parts_of(columns, 0)
    classes = []
    for number, count in zip((b * m, n), counts, strict=True):
        bits = (len(count) - 1).bit_length()
        packed, side = np.split(side, [packed_size(number, bits)])
        classes.append(unpack(packed, number, bits))
        check(np.bincount(classes[-1], minlength=len(count)).tolist() == count, "members of a class")
    exceptions, side = np.split(side, [4 * sum(part[5] for part in parts)])
    keys = list(decode_keys(parts, chunks, exceptions.view("<u4"), description, tables))
    levels = np.empty((b * m, n), np.int32)
    for (i, j), part in zip(pairs, grid["parts"], strict=True):
        place = np.ix_(classes[0] == i, classes[1] == j)
        own, keys[part] = np.split(keys[part], [levels[place].size])
        levels[place] = own.view(np.int32).reshape(levels[place].shape)
    return scaled_weights(levels, read_steps(side, b * m, b * n), params, shape, dtype)


def keys_to_weights(keys, zeros, dtype, description):
    """[3] The weights of a part."""
    kind, params = description["quantizer"], description.get("params", {})
    if kind == "uniform":
        levels = keys.view(np.int32)
        with np.errstate(over="ignore", under="ignore"):
            numbers = levels.astype(np.float32)
            if "centroids" in params:
                centroids = np.array([0, *params["centroids"]], np.float32)
                index = np.minimum(np.abs(levels.astype(np.int64)), centroids.size - 1)
                numbers = numbers + np.sign(numbers) * centroids[index]
            largest = largest_of(dtype)
            return np.clip(numbers * np.float32(params["step"]), -largest, largest).astype(dtype)
    if kind == "lossless":
        bits = 8 * dtype.itemsize
        check(int(keys.max()) < 1 << (bits - zeros), "a key of more bits than the weights have")
        patterns = ((keys & 1) << (bits - 1)) | ((keys >> 1) << zeros)
        return patterns.astype(f"<u{dtype.itemsize}").view(dtype)
    if kind == "dictionary":
        patterns = np.array(params["values"], np.uint64).astype(f"<u{dtype.itemsize}")
        check(int(keys.max()) < patterns.size, "a key beyond the dictionary")
        return patterns[keys].view(dtype)
    check(kind == "rf8", "kind")
    magnitude, negative = (keys + 1) >> 1, (keys + 1) & 1
    check(magnitude.max(initial=0) < 128, "a code of more than 8 bits")
    exponent = params["exponent"]
    check(-125 <= exponent <= 113, "exponent")
    with np.errstate(over="ignore", under="ignore"):
        values = np.ldexp(1 + RF8_FRACTIONS[magnitude & 7], (magnitude >> 3).astype(np.int32) + exponent)
        return np.where(keys == 0, np.float32(0), np.where(negative, -values, values)).astype(dtype)
