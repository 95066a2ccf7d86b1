"""The streams of ``plain_decoder``: tables, tokens and packed numbers, from ``FORMAT.md`` alone.

The numbers in brackets are its sections.
"""

import numpy as np

PROBABILITY_BITS = 14
LANE_TOKENS = 8192
FINAL_STATE = 2**16


def check(condition, what):
    if not condition:
        raise ValueError(what)


def read_table(data):
    """[4] The frequencies of the 256 tokens."""
    first, last, order = data[:3]
    bits = "".join(f"{byte:08b}" for byte in data[3:])
    differences, rest = read_golomb(bits, last - first + 1, order)
    check(len(rest) < 8 and "1" not in rest, "end of a table")
    frequencies = np.zeros(256, np.int64)
    frequencies[first : last + 1] = np.cumsum(differences)
    check(frequencies.min() >= 0 and frequencies.sum() == 2**PROBABILITY_BITS, "frequencies of a table")
    return frequencies


def read_golomb(bits, count, order):
    """[4] So many numbers, and the bits after them."""
    numbers, start = [], 0
    for _ in range(count):
        zeros = bits.index("1", start) - start
        end = start + 2 * zeros + 1 + order
        number = int(bits[start + zeros : end], 2) - 2**order
        numbers.append((number + 1) // 2 if number % 2 else -number // 2)
        start = end
    check(start <= len(bits), "numbers are cut off")
    return numbers, bits[start:]


def read_steps(data, rows, columns):
    """[3] The steps of rows and columns of the quantizer scaled."""
    bits = "".join(f"{byte:08b}" for byte in data[4:])
    first, rest = read_golomb(bits, rows, int(data[1]))
    second, rest = read_golomb(rest, columns, int(data[3]))
    check(len(rest) < 8 and "1" not in rest, "end of the steps")
    centres = data[[0, 2]].view(np.int8).astype(np.int64)
    return np.concatenate([np.array(first) + centres[0], np.array(second) + centres[1]])


def decode_rans(data, count, frequencies):
    """[5] The tokens of a chunk: one step decodes one token of every lane."""
    lanes = min(32, -(-count // LANE_TOKENS))
    check(data.size >= 6 * lanes, "size of a chunk")
    states = data[: 4 * lanes].view("<u4").astype(np.uint32)
    ends = np.cumsum(data[4 * lanes : 6 * lanes].view("<u2"), dtype=np.int64)
    check(data.size == 6 * lanes + 2 * ends[-1], "size of a chunk")
    words = np.append(data[6 * lanes :].view("<u2").astype(np.uint32), np.uint32(0))
    positions = np.append(0, ends[:-1])

    token_of = np.repeat(np.arange(256, dtype=np.uint8), frequencies)  # by slot, as the two below
    frequency_of = frequencies[token_of].astype(np.uint32)
    first_slot = np.cumsum(frequencies) - frequencies
    remainder_of = (np.arange(token_of.size) - first_slot[token_of]).astype(np.uint32)
    tokens = np.empty(count, np.uint8)
    for i in range(0, count, lanes):
        x = states[: count - i]
        slots = x & (2**PROBABILITY_BITS - 1)
        tokens[i : i + lanes] = token_of[slots]
        x[:] = frequency_of[slots] * (x >> PROBABILITY_BITS) + remainder_of[slots]
        low = np.flatnonzero(x < FINAL_STATE)
        x[low] = (x[low] << 16) | words.take(positions[low], mode="clip")
        positions[low] += 1
    check((states == FINAL_STATE).all() and (positions == ends).all(), "end of a lane")
    return tokens


def decode_zstd(data, count, _):
    """[5] The tokens of a chunk that is one Zstandard frame."""
    import zstandard

    decoder = zstandard.ZstdDecompressor().decompressobj()
    frame = data.tobytes()
    check(zstandard.frame_content_size(frame) in (-1, count), "size of a Zstandard frame")
    tokens = np.frombuffer(decoder.decompress(frame), np.uint8)
    check(decoder.eof and not decoder.unused_data and tokens.size == count, "Zstandard frame")
    return tokens


def packed_size(count, width):
    return -(-count // 16) * 16 * width // 8


def unpack(data, count, width):
    """[6] Numbers of a width in bits."""
    padded = -(-count // 16) * 16
    numbers, done = np.zeros(padded, np.uint32), 0
    for bits in (16, 8, 4, 2, 1):
        if width & bits:
            plane, data = np.split(data, [padded * bits // 8])
            if bits == 16:
                plane = plane.view("<u2")
            else:
                plane = np.concatenate([(plane >> i) & (2**bits - 1) for i in range(0, 8, bits)])
            numbers |= plane.astype(np.uint32) << done
            done += bits
    return numbers[:count]
