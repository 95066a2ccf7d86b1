"""The keys of ``plain_decoder``: parts, windows and atoms, from ``FORMAT.md`` alone.

The numbers in brackets are its sections.
"""

import numpy as np

from tests.codec.plain_streams import check, decode_rans, decode_zstd, packed_size, unpack

PART_COLUMNS = ("size", "base", "shift", "zeros", "table", "exceptions")
CHUNK_TOKENS = 2**18


def parts_of(columns, size):
    """[2] (n, base, shift, zeros, table, exceptions) of every part."""
    number = max(map(len, columns.values()), default=1)
    defaults = [size, 0, 0, 0, 0, 0]
    lists = [columns.get(k, [default] * number) for k, default in zip(PART_COLUMNS, defaults, strict=True)]
    return list(zip(*lists, strict=True))


def decode_keys(parts, chunks, exceptions, description, tables):
    """[2, 5] The keys of every part."""
    decode_tokens = {"rans": decode_rans, "zstd": decode_zstd}[description.get("coder", "rans")]
    stated = description.get("exceptions", [None] * len(chunks))
    atoms_of_parts = description.get("parts", {}).get("atoms", [[] for _ in parts])
    binned = description.get("binned")
    told = [
        "atoms" in description.get("needs", []),
        "atoms" in description.get("parts", {}),
        binned is not None,
    ]
    check(len(set(told)) == 1, "what a tensor with atoms says")
    binned = iter(binned) if binned else None
    for (n, base, shift, _, table, exception_count), atoms in zip(parts, atoms_of_parts, strict=True):
        tokens, raw = [], []
        for chunk in range(0, n, CHUNK_TOKENS):
            data, count = chunks.pop(0), min(CHUNK_TOKENS, n - chunk)
            with_raw = next(binned) if binned else count
            coded_size = data.size - packed_size(with_raw, shift)
            check(coded_size >= 0, "size of a chunk")
            tokens.append(decode_tokens(data[:coded_size], count, tables[table] if tables else None))
            raw.append(np.zeros(count, np.uint32))
            has_raw = tokens[-1] > len(atoms) if atoms else np.ones(count, bool)
            check(np.count_nonzero(has_raw) == with_raw, "binned tokens of a chunk")
            raw[-1][has_raw] = unpack(data[coded_size:], with_raw, shift)
            check(
                stated[-1 - len(chunks)] in (None, np.count_nonzero(tokens[-1] == 0)), "exceptions of a chunk"
            )
        own_exceptions, exceptions = np.split(exceptions, [exception_count])
        yield tokens_to_keys(np.concatenate(tokens), np.concatenate(raw), base, shift, atoms, own_exceptions)


def tokens_to_keys(tokens, raw, base, shift, atoms, exceptions):
    """[2] The keys of a part, modulo 2^32."""
    check(len(atoms) == len(set(atoms)) <= 254, "atoms")
    bins = tokens.astype(np.int64) - 1 - len(atoms)
    keys = ((base + (bins << shift) + raw) & 0xFFFFFFFF).astype(np.uint32)
    for i, atom in enumerate(atoms):
        keys[tokens == i + 1] = atom & 0xFFFFFFFF
    check(np.count_nonzero(tokens == 0) == exceptions.size, "number of exceptions")
    keys[tokens == 0] = exceptions
    return keys
