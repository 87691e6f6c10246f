"""Unsigned integers that order as floats do.

IEEE 754 numbers of one sign order by their bits; negative ones in reverse. Flipping the sign bit of
positive and every bit of negative numbers gives keys that order as the numbers do. Both zeros get
one key. 16-bit formats take the high half of a 32-bit key, and the low half of their sign (0 or
65,535), so that one code serves all: bfloat16 is the high half of float32.
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from jaxtyping import Float64, Shaped, UInt32

from sa_plugin.tail.counts import check_finite

Format = Literal["float32", "float16", "bfloat16"]
BINS = 1 << 16
_SIGN = np.uint32(1 << 31)


def format_of(values: Shaped[np.ndarray, "*shape"], expected: Format | None = None) -> Format:
    """The number format of an array, checked against what is expected.

    Raises:
        ValueError: It is none of float32, float16 and uint16 (the bits of bfloat16), or another
            than expected.
    """
    known = {"float32": "float32", "float16": "float16"}
    found = "bfloat16" if expected == "bfloat16" else known.get(values.dtype.name, "")
    if not found or (found == "bfloat16" and values.dtype != np.uint16):
        raise ValueError(
            f"values are {values.dtype}: streams are exact for float32, float16, and bfloat16 "
            "given as uint16 bit patterns with format='bfloat16'. Cast with astype(np.float32)."
        )
    if expected is not None and found != expected:
        raise ValueError(f"values are {found}, the histogram holds {expected}.")
    return cast(Format, found)


def to_keys(
    values: Shaped[np.ndarray, "*shape"], format: Format = "float32"
) -> UInt32[np.ndarray, "*shape"]:
    """Keys of numbers."""
    if format == "float32":
        bits: np.ndarray = np.ascontiguousarray(values).view(np.uint32)
    else:
        bits = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << np.uint32(16)
    bits = np.where(bits == _SIGN, np.uint32(0), bits)
    negative: np.ndarray = (bits.view(np.int32) >> 31).view(np.uint32)
    keys: np.ndarray = bits ^ (negative | _SIGN)
    return keys


def to_values(
    keys: UInt32[np.ndarray, "*shape"], format: Format = "float32"
) -> Float64[np.ndarray, "*shape"]:
    """Numbers of keys, in float64."""
    negative: np.ndarray = ~(keys.view(np.int32) >> 31).view(np.uint32)
    bits: np.ndarray = keys ^ (negative | _SIGN)
    if format == "float16":
        values: np.ndarray = (bits >> np.uint32(16)).astype(np.uint16).view(np.float16)
    else:
        values = bits.view(np.float32)
    return values.astype(np.float64)


def check_finite_bits(values: Shaped[np.ndarray, "*shape"], format: Format) -> None:
    """Refuse NaN and Inf in any format.

    Raises:
        ValueError: With the number of each.
    """
    if format == "bfloat16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    check_finite(values)


def has_low_bits(keys: UInt32[np.ndarray, " value"]) -> bool:
    """Whether any number needs more than the high 16 bits."""
    low = keys & np.uint32(0xFFFF)
    sign = np.where(keys >> np.uint32(31), np.uint32(0), np.uint32(0xFFFF))
    return bool((low != sign).any())
