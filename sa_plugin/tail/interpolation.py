"""Where a quantile lies between two order statistics, and its value, to the bit of numpy.

Quantile q of n sorted values x_0 <= ... <= x_{n-1}, linear interpolation (Hyndman-Fan type 7):

    p = (n - 1) q,   k = floor(p),   t = p - k,   Q = x_k + t (x_{k+1} - x_k)

Floating point makes that formula miss x_{k+1} at t near 1, so numpy computes
`x_{k+1} - (1 - t) (x_{k+1} - x_k)` for t >= 1/2. The same branches here, in float64, give the same
bits as `numpy.quantile` on float64-cast values (a negative zero is returned as zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64


class Position(NamedTuple):
    """Ranks below and above each quantile and the share of the way between them."""

    below: Int64[np.ndarray, " q"]
    above: Int64[np.ndarray, " q"]
    t: Float64[np.ndarray, " q"]


def positions(n: int, q: Sequence[float] | Float64[np.ndarray, " q"]) -> Position:
    """Where the quantiles of `n >= 1` sorted values lie.

    Raises:
        ValueError: There is no value, or a level lies outside [0, 1].
    """
    levels = np.asarray(q, dtype=np.float64)
    if n < 1:
        raise ValueError("a quantile of no values is undefined: give at least one value.")
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"quantile levels {levels.tolist()} must lie in [0, 1].")
    virtual = (n - 1) * levels
    below = np.floor(virtual).astype(np.int64)
    above = np.minimum(below + 1, n - 1)
    return Position(below, above, virtual - below)


def interpolate(
    lower: Float64[np.ndarray, "*shape"],
    upper: Float64[np.ndarray, "*shape"],
    t: Float64[np.ndarray, "*#shape"],
) -> Float64[np.ndarray, "*shape"]:
    """The value a share `t` of the way from `lower` to `upper`, rounded as numpy rounds it."""
    difference = upper - lower
    early = lower + difference * t
    late = upper - difference * (1 - t)
    result: np.ndarray = np.where(t >= 0.5, late, early) + 0.0
    return result
