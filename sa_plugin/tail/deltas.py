"""The grid of deltas: shares of a concept's in-concept tokens that count as its tail.

Source: the SuperActivators code (arXiv 2512.05038), twelve values; the paper's own plots leave
out .5 and .7. A delta chosen at the edge of a grid says that the optimum may lie beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

DELTAS: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def tail_levels(deltas: Sequence[float]) -> Float64[np.ndarray, " delta"]:
    """The quantile level `1 - delta` of each delta.

    Raises:
        ValueError: There is no delta, or one lies outside (0, 1].
    """
    values = np.asarray(deltas, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"deltas {deltas!r} must be a sequence of one or more numbers in (0, 1].")
    wrong = [d for d in values.tolist() if not (0 < d <= 1) or math.isnan(d)]
    if wrong:
        raise ValueError(f"delta {wrong[0]} is outside (0, 1]: it is the share of tokens kept.")
    return 1.0 - values
