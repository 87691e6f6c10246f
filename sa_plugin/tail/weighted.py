"""Quantiles of weighted values.

Sorted values x_i with weights w_i, A_i the weight before x_i, W the weight of all:

    p_i = A_i / (W - w_i),   Q(q) = linear interpolation of the points (p_i, x_i) at q

Equal weights give p_i = i / (n - 1), the ordinary linear quantile; p_0 = 0 and p_{n-1} = 1 for any
weights, and p is non-decreasing. A weight is an importance, not a number of copies: doubling every
weight changes nothing. Resampled counts are copies: see `sa_plugin.statistics.resampled_quantiles`.

"Balanced" thresholds give every sample the weight 1, shared by its in-concept tokens, so that long
concept mentions do not set the threshold alone. They are no longer the paper's definition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int


def weighted_quantiles(
    values: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"],
    q: Sequence[float] | Float64[np.ndarray, " q"],
) -> Float64[np.ndarray, " q"]:
    """Quantiles of values that count by their weights.

    Args:
        values: Finite values, at least one.
        weights: Positive weights.
        q: Levels in [0, 1].

    Raises:
        ValueError: No value, or a weight that is not positive and finite.
    """
    if not len(values) or not (np.isfinite(weights).all() and (np.asarray(weights) > 0).all()):
        raise ValueError("weighted quantiles need at least one value and positive finite weights.")
    order = np.argsort(values, kind="stable")
    x, w = values[order].astype(np.float64), weights[order].astype(np.float64)
    if len(x) == 1:
        return np.full(len(q), x[0])
    before = np.concatenate([[0.0], np.cumsum(w)[:-1]])
    p = before / (before[-1] + w[-1] - w)
    p[-1] = 1.0
    return np.interp(np.asarray(q, dtype=np.float64), p, x)


def balanced_weights(sample_of: Int[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """One weight a sample, shared equally by its rows."""
    _, place, count = np.unique(sample_of, return_inverse=True, return_counts=True)
    return 1.0 / count[place]
