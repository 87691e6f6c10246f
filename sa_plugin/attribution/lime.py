"""LIME: the slopes of a linear model of the value, fitted near the unmasked sample.

    minimise  sum_T pi(T) (v(T) - b - w . z_T)^2 + alpha |w|^2,   importance of player i = w_i,
    pi(T) = exp(-d(T)^2 / (2 width^2)),   d(T) = 1 - sqrt(|T| / n), the cosine distance of z_T to
    the vector of ones (Ribeiro et al. 2016, arXiv 1602.04938, and the authors' package `lime`,
    whose kernel is this one with width 0.25, and whose surrogate is ridge with alpha 1).

The code for arXiv 2512.05038 fits another thing under this name: no weights pi, but columns
z_i omega_i with omega_i = exp(-|E_i - E_i0|^2 / 2 sigma^2), how far masking moved patch i's own
embedding, so its "weights" rescale features and not samples, by gradient descent. Its masks are
ours: 1000 Bernoulli ones of probability 0.5, alpha 1. `width=None` drops pi.

captum's `Lime` runs one explanation of one objective over passes of its own and weighs by distances
of embeddings; given our coalitions, kernel and ridge it gives the same slopes (tested).

What the slopes do not show: interactions, which they average over the coalitions drawn, and their
own error: two seeds differ, compare them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import Ridge

from sa_plugin.attribution.coalitions import check_values

WIDTH = 0.25


def lime(
    coalitions: Bool[np.ndarray, "coalition player"],
    values: Float[np.ndarray, "_ objective"],
    *,
    alpha: float | int = 1.0,
    width: float | None = WIDTH,
) -> Float[np.ndarray, "player objective"]:
    """Slopes of the weighted ridge regression, the intercept not penalised.

    Args:
        coalitions: Rows of `coalitions.bernoulli`.
        values: `[coalition, objective]`, what the game returned for them.
        alpha: Penalty; 0 for none.
        width: Of the kernel in cosine distance; None weighs all coalitions alike.

    Raises:
        ValueError: Values of other coalitions, a player never masked or never kept, a negative
            penalty, or a width that is not positive.

    Example:
        >>> z = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=bool)
        >>> lime(z, (z @ np.array([[2.0], [-1.0]])), alpha=0.0).round(6).ravel()
        array([ 2., -1.])
    """
    check_values(coalitions, values)
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}: give 0 or more.")
    weights = np.ones(len(coalitions)) if width is None else kernel(coalitions, width)
    model = Ridge(alpha=alpha).fit(coalitions.astype(np.float64), values, sample_weight=weights)
    slopes: Float[np.ndarray, "player objective"] = np.reshape(model.coef_, (values.shape[1], -1)).T
    return slopes


def kernel(
    coalitions: Bool[np.ndarray, "coalition player"], width: float
) -> Float[np.ndarray, " coalition"]:
    """Weight of each coalition by its cosine distance to the full one.

    Raises:
        ValueError: The width is not positive.
    """
    if not width > 0:
        raise ValueError(f"width is {width}: give a positive number, or None for no kernel.")
    distance = 1 - np.sqrt(coalitions.mean(1))
    return np.asarray(np.exp(-(distance**2) / (2 * width**2)))
