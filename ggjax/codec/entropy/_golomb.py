"""Signed whole numbers in exponential Golomb code, of which the smallest take the fewest bits.

Numbers 0, 1, -1, 2, -2, ... are counted as 0, 1, 2, 3, 4, ... The code of order k of such a count is x = count
+ 2^k in binary, of b bits, after b - 1 - k zeros.
"""

import numpy as np

ORDERS = 15
MOST_ZEROS = 16


def counted(values: np.ndarray) -> np.ndarray:
    """The count of every number, int64."""
    values = values.astype(np.int64)
    return np.where(values > 0, 2 * values - 1, -2 * values)


def lengths(counts: np.ndarray) -> np.ndarray:
    """The bits that every count takes in the code of every order, int64 (orders, counts)."""
    orders = np.arange(ORDERS)[:, None]
    # The exponent of frexp is the number of bits.
    return 2 * np.frexp((counts >> orders) + 1.0)[1].astype(np.int64) - 1 + orders


def write(counts: np.ndarray) -> tuple[int, str]:
    """(the order that takes the fewest bits, the bits)."""
    sizes = lengths(counts)
    k = int(np.argmin(sizes.sum(1)))
    pairs = zip((counts + (1 << k)).tolist(), sizes[k].tolist(), strict=True)
    return k, "".join(f"{n:0{size}b}" for n, size in pairs)


def read(bits: str, place: int, number: int, k: int) -> tuple[list[int], int]:
    """(so many numbers of order k, from a place of the bits on; the place after them).

    Raises:
      ValueError: there are not so many.
    """
    if k >= ORDERS:
        raise ValueError(f"numbers of order {k}")
    out = []
    for i in range(number):
        one = bits.find("1", place, place + MOST_ZEROS + 1)
        end = 2 * one - place + 1 + k
        if one < 0 or end > len(bits):
            raise ValueError(f"{i} numbers, expected {number}")
        count = int(bits[one:end], 2) - (1 << k)
        out.append((count + 1) >> 1 if count & 1 else -(count >> 1))
        place = end
    return out, place


def to_bytes(bits: str) -> bytes:
    """Bits from the top of every byte, zeros at the end."""
    bits += "0" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8, "big")


def of_bytes(data: bytes) -> str:
    """The bits of bytes."""
    return f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""


def check_end(bits: str, place: int) -> None:
    """Raise ValueError unless only the zeros that fill the last byte are left."""
    if "1" in bits[place:] or len(bits) - place >= 8:
        raise ValueError("bits left over")
