"""An estimate with its percentile interval.

    [Q_{alpha/2}, Q_{1-alpha/2}] of the resampled statistic,  alpha = 1 - level

The interval reflects the draw of the resampled units (source documents), with everything fitted
before held fixed: vectors, thresholds, layers, deltas. It says nothing about another train or
calibration split. Percentile intervals are not bias-corrected, and undercover with few units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


@dataclass(frozen=True)
class Interval:
    """A number with the range that resampling leaves it.

    Attributes:
        estimate: On the data as they are.
        low, high: Percentile bounds.
        level: Share of draws between them.
        draws: Draws with a defined statistic.
        unit: What was resampled.
        n_units: How many of them.
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95
    draws: int = 1000
    unit: str = "documents"
    n_units: int = 0

    def __repr__(self) -> str:
        return (
            f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}] ({100 * self.level:g} %, "
            f"{self.draws} draws of {self.n_units} {self.unit})"
        )

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside, as a paired difference must show."""
        return self.low > 0 or self.high < 0


def percentile_bounds(
    drawn: Float[np.ndarray, "*shape draw"], level: float = 0.95
) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
    """Percentile bounds over draws, the last axis.

    Draws with an undefined statistic (NaN, a class that no drawn document has) are left out; all
    undefined gives NaN.

    Raises:
        ValueError: The level lies outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, such as 0.95.")
    edges = [(1 - level) / 2, (1 + level) / 2]
    undefined = np.isnan(drawn)
    if not undefined.any():
        low, high = np.quantile(drawn, edges, axis=-1)
        return np.asarray(low), np.asarray(high)
    bounds = np.full((*drawn.shape[:-1], 2), np.nan)
    for at in np.ndindex(drawn.shape[:-1]):
        kept = drawn[at][~undefined[at]]
        if len(kept):
            bounds[at] = np.quantile(kept, edges)
    return np.asarray(bounds[..., 0]), np.asarray(bounds[..., 1])


def interval(
    estimate: float | np.floating,
    drawn: Float[np.ndarray, " draw"],
    *,
    n_units: int,
    level: float = 0.95,
    unit: str = "documents",
) -> Interval:
    """The percentile interval of one statistic.

    Example:
        >>> interval(0.5, np.linspace(0, 1, 1001), n_units=30, level=0.9)
        0.500 [0.050, 0.950] (90 %, 1001 draws of 30 documents)
    """
    low, high = percentile_bounds(np.asarray(drawn, dtype=np.float64), level)
    draws = int(np.isfinite(drawn).sum())
    return Interval(float(estimate), float(low), float(high), level, draws, unit, n_units)
