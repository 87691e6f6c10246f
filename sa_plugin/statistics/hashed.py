"""Draws that depend on names alone: the same on every worker, whatever else is read and in which order.

A name and a seed give 64 bits (BLAKE2b), which further numbers are mixed into (the finaliser of
SplitMix64, Steele, Lea and Flood 2014). Read as a number in [0, 1) they divide documents over splits;
the smallest so many of a class are a sample of it without replacement, and the sample of a union is
among the samples of its parts.

What it does not show: two documents of one name draw the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def name_keys(names: Iterable[str], seed: int) -> UInt64[np.ndarray, " name"]:
    """64 bits of each name and a seed."""
    digests = (
        hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for name in names
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def mixed(
    keys: UInt64[np.ndarray, "*shape"], number: int | Int[np.ndarray, "*shape"]
) -> UInt64[np.ndarray, "*shape"]:
    """Keys with a number mixed in, one each or one for all."""
    # Multiplications wrap around at 64 bits, which is what is meant.
    with np.errstate(over="ignore"):
        x = keys + (np.asarray(number).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def uniform(keys: UInt64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Keys as numbers in [0, 1), evenly spread."""
    # The high 53 bits, which a float64 holds without rounding up to 1.
    numbers: np.ndarray = (keys >> np.uint64(11)) * 2.0**-53
    return numbers
