"""The shape of a distribution for every weighting of documents: quantiles, skewness and L-skewness.

    skewness = m_3 / m_2^{3/2},   m_k = mean (x - mean)^k                    (0 for symmetric laws)
    L-skewness = l_3 / l_2 in (-1, 1),   l_2 = 2 b_1 - b_0,   l_3 = 6 b_2 - 6 b_1 + b_0
    b_0 = mean x,   b_1 = sum_r r x_(r) / (n (n - 1)),
    b_2 = sum_r r (r - 1) x_(r) / (n (n - 1) (n - 2)),   r = 0 ... n - 1 over sorted x

(Hosking 1990, unbiased probability-weighted moments.) The third moment is ruled by a few extreme
tokens, so its sampling error is large just where tails are heavy; L-skewness is linear in the
values and bounded. Neither says which tail is reliable: a long tail of out-of-concept tokens is
skewed too. NaN for a constant, or below three values.

A column holds w_d copies of every value of document d, N in all, and none is sorted or copied: its
quantile is the ordinary one (linear interpolation, type 7) of those N values. Values are sorted once
and cut into blocks; a matrix product gives the copies in each block, hence the block of a wanted
rank, and only that block's values are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.typing import ArrayLike

from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.quantile import interpolate

# Values a block: a rank is found by one comparison a block and one a value of its block.
_BLOCK = 64


def resampled_quantiles(
    values: Float[np.ndarray, " row"], q: Sequence[float], resamples: Resamples
) -> Float64[np.ndarray, "q draw"]:
    """Quantiles in every column.

    Args:
        values: Finite values.
        q: Levels in [0, 1].
        resamples: Weights over the same rows.

    Returns:
        NaN for a column without values.

    Raises:
        ValueError: A level lies outside [0, 1].
    """
    if not all(0 <= level <= 1 for level in q):
        raise ValueError(f"quantile levels {list(q)} must lie in [0, 1].")
    result = np.full((len(q), resamples.columns), np.nan)
    if not len(values):
        return result
    order = np.argsort(values, kind="stable")
    x, home = values[order].astype(np.float64), resamples.document[order]
    ends = _block_ends(home, resamples)
    drawn = np.flatnonzero(ends[:, -1] > 0)
    for k, level in enumerate(q):
        virtual = (ends[drawn, -1] - 1) * level
        below = np.floor(virtual)
        above = np.minimum(below + 1, ends[drawn, -1] - 1)
        lower, upper = (x[_find(r, ends, drawn, home, resamples)] for r in (below, above))
        result[k, drawn] = interpolate(lower, upper, virtual - below)
    return result


def _block_ends(home: Int64[np.ndarray, " row"], resamples: Resamples) -> Float64[np.ndarray, "draw block"]:
    """Copies at or before the end of each block of sorted values, in every draw."""
    blocks, documents = -(-len(home) // _BLOCK), resamples.units
    # One flat index for (block, document), so that a single count fills the whole table.
    cell = np.arange(len(home)) // _BLOCK * documents + home
    counts = np.bincount(cell, minlength=blocks * documents).reshape(blocks, documents)
    return np.cumsum(resamples.weights.astype(np.float64) @ counts.T.astype(np.float64), axis=1)


def _find(
    rank: Float64[np.ndarray, " drawn"],
    ends: Float64[np.ndarray, "draw block"],
    drawn: Int64[np.ndarray, " drawn"],
    home: Int64[np.ndarray, " row"],
    resamples: Resamples,
) -> Int64[np.ndarray, " drawn"]:
    """Place among the sorted values of a rank among the copies of each draw."""
    # Ranks start at zero: the block of a rank is the first that ends beyond it.
    block = (ends[drawn] <= rank[:, None]).sum(axis=1)
    before = np.where(block > 0, ends[drawn, block - 1], 0.0)
    place = block[:, None] * _BLOCK + np.arange(_BLOCK)
    weights = resamples.weights[drawn[:, None], home[np.minimum(place, len(home) - 1)]]
    upto = before[:, None] + np.cumsum(weights, axis=1)
    found: np.ndarray = block * _BLOCK + (upto <= rank[:, None]).sum(axis=1)
    return found


# Draws at a time: a table [row, draw] of running counts stays small.
_DRAWS = 16


def skewness(values: Float[np.ndarray, " row"]) -> float:
    """Skewness by moments, equal to `scipy.stats.skew`."""
    if len(values) < 3:
        return float("nan")
    x = values.astype(np.float64)
    return float(skewness_of_sums(*power_sums(x - x.mean())))


def power_sums(values: Float64[np.ndarray, " row"]) -> Float64[np.ndarray, " power"]:
    """Sums of the powers 0 to 3."""
    return np.array([np.sum(values**k) for k in range(4)])


def skewness_of_sums(
    n: ArrayLike, first: ArrayLike, second: ArrayLike, third: ArrayLike
) -> Float64[np.ndarray, "*shape"]:
    """Skewness from sums of powers of values that are already centred near their mean."""
    mean, square, cube = (ratio(s, n, empty=np.nan) for s in (first, second, third))
    variance = square - mean**2
    # A constant leaves a variance of rounding alone: zero spread makes the quotient undefined.
    spread = np.where(variance > 1e-12 * square, variance, 0.0) ** 1.5
    return ratio(cube - 3 * mean * square + 2 * mean**3, spread, empty=np.nan)


def l_skewness(values: Float[np.ndarray, " row"]) -> float:
    """L-skewness; NaN for a constant or below three values."""
    x = np.sort(values).astype(np.float64)
    return float(_l_skewness(x, np.arange(1.0, len(x) + 1)[:, None])[0])


def resampled_l_skewness(
    values: Float[np.ndarray, " row"], resamples: Resamples
) -> Float64[np.ndarray, " draw"]:
    """L-skewness in every column, values counted as often as their document.

    Args:
        values: Finite values.
        resamples: Weights over the same rows.
    """
    order = np.argsort(values, kind="stable")
    x, home = values[order].astype(np.float64), resamples.document[order]
    weights = np.ascontiguousarray(resamples.weights.T, dtype=np.float64)
    return np.concatenate(
        [
            _l_skewness(x, np.cumsum(weights[:, a : a + _DRAWS].take(home, axis=0), axis=0))
            for a in range(0, resamples.columns, _DRAWS)
        ]
    )


def _l_skewness(
    ordered: Float64[np.ndarray, " row"], upto: Float64[np.ndarray, "row draw"]
) -> Float64[np.ndarray, " draw"]:
    """L-skewness of sorted values, given how many copies lie at or before each.

    sum_r r x_(r) over copies is a difference of m (m - 1) / 2 at the ends of each run of copies;
    summed by parts it needs only those ends.
    """
    if len(ordered) < 3:
        return np.full(upto.shape[1], np.nan)
    # Centred, or the differences of large sums below would lose all their digits.
    x = ordered - ordered.mean()
    step = np.append(x[:-1] - x[1:], x[-1])
    n = upto[-1].copy()
    b0 = ratio(step @ upto, n, empty=np.nan)
    pairs = upto * (upto - 1)
    b1 = ratio(step @ pairs / 2, n * (n - 1), empty=np.nan)
    # In place: m (m - 1) (m - 2) from m (m - 1), without a third table of this size.
    upto -= 2
    pairs *= upto
    b2 = ratio(step @ pairs / 3, n * (n - 1) * (n - 2), empty=np.nan)
    scale, shape = 2 * b1 - b0, 6 * b2 - 6 * b1 + b0
    return ratio(shape, np.where(scale > 1e-12 * (x[-1] - x[0]), scale, 0.0), empty=np.nan)
