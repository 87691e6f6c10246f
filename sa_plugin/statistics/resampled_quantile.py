"""Quantiles of every bootstrap draw, without sorting or copying a draw.

A draw holds w_d copies of every value of document d, N in all. Its quantile is the ordinary one
(linear interpolation, type 7) of those N values. Values are sorted once and cut into blocks; a
matrix product gives the copies in each block, hence the block of a wanted rank, and only that
block's values are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.tail.interpolation import interpolate

_BLOCK = 64


def resampled_quantiles(
    values: Float[np.ndarray, " row"], q: Sequence[float], resamples: Resamples
) -> Float64[np.ndarray, "q draw"]:
    """Quantiles of every draw.

    Args:
        values: Finite values.
        q: Levels in [0, 1].
        resamples: Draws over the same rows.

    Returns:
        NaN for a draw without values.

    Raises:
        ValueError: A level lies outside [0, 1].
    """
    if not all(0 <= level <= 1 for level in q):
        raise ValueError(f"quantile levels {list(q)} must lie in [0, 1].")
    result = np.full((len(q), resamples.draws), np.nan)
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


def _block_ends(
    home: Int64[np.ndarray, " row"], resamples: Resamples
) -> Float64[np.ndarray, "draw block"]:
    """Copies at or before the end of each block of sorted values, in every draw."""
    blocks, documents = -(-len(home) // _BLOCK), resamples.n_documents
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
    block = (ends[drawn] <= rank[:, None]).sum(axis=1)
    before = np.where(block > 0, ends[drawn, block - 1], 0.0)
    place = block[:, None] * _BLOCK + np.arange(_BLOCK)
    weights = resamples.weights[drawn[:, None], home[np.minimum(place, len(home) - 1)]]
    upto = before[:, None] + np.cumsum(weights, axis=1)
    found: np.ndarray = block * _BLOCK + (upto <= rank[:, None]).sum(axis=1)
    return found
