"""RISE: the mean value of the coalitions that keep a player.

    importance of player i = sum_T v(T) z_Ti / sum_T z_Ti   (Petsiuk et al. 2018, arXiv 1806.07421),

with masks at the resolution of the players, neither upsampled nor shifted, as in the code for
arXiv 2512.05038, which normalises by mask counts too (the paper: by their expected number N p).

captum has no RISE. What the number does not show: a sign. It is a mean value, not a difference: a
player of no effect gets the mean of all coalitions, so only differences between players tell. With
`keep` near 0 or 1, or few coalitions, the noise of the other players dominates.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.attribution.coalitions import check_values


def rise(
    coalitions: Bool[np.ndarray, "coalition player"],
    values: Float[np.ndarray, "_ objective"],
) -> Float[np.ndarray, "player objective"]:
    """Mean value of the coalitions that keep each player.

    Args:
        coalitions: Rows of `coalitions.bernoulli`.
        values: `[coalition, objective]`, what the game returned for them.

    Raises:
        ValueError: Values of other coalitions, or a player never masked or never kept.

    Example:
        >>> rise(np.array([[True, False], [False, True]]), np.array([[3.0], [5.0]])).ravel()
        array([3., 5.])
    """
    check_values(coalitions, values)
    z = coalitions.astype(np.float64)
    mean: Float[np.ndarray, "player objective"] = (z.T @ values) / z.sum(0)[:, None]
    return mean
