"""The factor by which activations grow from one layer to the next, when both carry noise.

For true activations y = c + b x, observed with independent errors of variance e_x and e_y:

    OLS               S_xy / S_xx, tends to b s^2 / (s^2 + e_x): diluted, always towards zero
    orthogonal        (D + sqrt(D^2 + 4 q S_xy^2)) / (2 S_xy), D = S_yy - q S_xx: tends to b if
      (Deming)        q = e_y / e_x is right; q = 1 minimises orthogonal distances
    deviation ratio   sign(S_xy) sqrt(S_yy / S_xx): tends to b if e_y = b^2 e_x

With an error in x of 36 % of the variance of the signal a true 1.2 is estimated as .88 by OLS. No
estimator is right for free: q is an assumption. Errors of successive layers are not independent in
a residual stream (what misreads layer l is carried into l + 1), which biases all three; a slope is
an average over the range and says nothing about pairs (`gaps_grown` does).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int


@dataclass(frozen=True)
class Slopes:
    """Three estimates of one factor.

    Attributes:
        ols: Diluted by noise in the earlier layer.
        orthogonal: Consistent if the noise ratio is right.
        deviation_ratio: Of the later to the earlier layer, with the covariance's sign.
        noise_ratio: Assumed error variance of the later layer over the earlier.
        n_tokens, n_samples: What they rest on; samples are centred apart.
    """

    ols: float
    orthogonal: float
    deviation_ratio: float
    noise_ratio: float
    n_tokens: int
    n_samples: int

    def __repr__(self) -> str:
        return (
            f"Slopes: orthogonal {self.orthogonal:.3f} (noise ratio {self.noise_ratio:g}), "
            f"deviation ratio {self.deviation_ratio:.3f}, OLS {self.ols:.3f}; "
            f"{self.n_tokens} tokens of {self.n_samples} sample{'s' * (self.n_samples > 1)}"
        )


def layer_slopes(
    before: Float[np.ndarray, " token"],
    after: Float[np.ndarray, " token"],
    sample: Int[np.ndarray, " token"] | None = None,
    noise_ratio: float = 1.0,
) -> Slopes:
    """Slope of the next layer's activations on this layer's.

    Args:
        before: Finite activations of tokens at one layer.
        after: Of the same tokens, a layer later.
        sample: Each token's sample; offsets of samples are taken out. None is one sample.
        noise_ratio: Error variance of `after` over that of `before`, positive.

    Returns:
        The estimates; NaN where `before` is constant or the two are uncorrelated.

    Raises:
        ValueError: A value is not finite, or the noise ratio is not positive.

    Example:
        >>> x = np.linspace(-1, 1, 50)
        >>> round(layer_slopes(x, 1.2 * x + 3).orthogonal, 6)
        1.2
    """
    if not 0 < noise_ratio < np.inf:
        raise ValueError(f"noise_ratio is {noise_ratio}: give a positive number, 1 if unknown.")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("activations must be finite: drop masked tokens before.")
    groups = np.zeros(len(before), dtype=np.int64)
    if sample is not None:
        groups = np.unique(sample, return_inverse=True)[1].reshape(-1)
    x, y = _centred(before, groups), _centred(after, groups)
    xx, xy, yy = float(x @ x), float(x @ y), float(y @ y)
    n_samples = len(np.unique(groups))
    if xx == 0 or xy == 0:
        return Slopes(np.nan, np.nan, np.nan, noise_ratio, len(x), n_samples)
    return Slopes(
        xy / xx,
        float(orthogonal(np.array(xx), np.array(xy), np.array(yy), noise_ratio)),
        float(np.sign(xy) * np.sqrt(yy / xx)),
        noise_ratio,
        len(x),
        n_samples,
    )


def orthogonal(
    xx: np.ndarray, xy: np.ndarray, yy: np.ndarray, noise_ratio: float = 1.0
) -> Float64[np.ndarray, "*shape"]:
    """Slope of orthogonal regression from centred sums; NaN where it is not defined."""
    excess = yy - noise_ratio * xx
    defined = (xx > 0) & (xy != 0)
    root = np.hypot(excess, 2 * noise_ratio**0.5 * xy)
    return np.asarray((excess + root) / np.where(defined, 2 * xy, np.nan), dtype=np.float64)


def _centred(
    values: Float[np.ndarray, " token"], groups: Int[np.ndarray, " token"]
) -> Float64[np.ndarray, " token"]:
    sums = np.bincount(groups, weights=values.astype(np.float64))
    return np.asarray(values - (sums / np.bincount(groups))[groups], dtype=np.float64)
