"""What a layer did to the gaps between tokens: grown, shrunk, flipped.

    ratio of a pair = (a_i' - a_j') / (a_i - a_j):   shrunk below 1, flipped below 0

Where all queries see the same keys, aligned heads shrink no gap (T1 of `theory.predictions`, OUR
reconstruction). Under a causal mask i and j average over different keys, and T1 fails. For a pair
i > j the common prefix restores it: each query's attention on keys 0 ... j alone, renormalised,

    u_i|j = sum_{k <= j} alpha_ik w_k / sum_{k <= j} alpha_ik,   w_k what the head writes from k
    (a_i + u_i|j) - (a_j + u_j|j)  against  a_i - a_j

Restricted and renormalised, a softmax is the softmax over the prefix, so T1 holds for it exactly.
It says how the heads' reading and writing act on equal keys: a counterfactual, not what the causal
model did with the pair (`check_gaps` says that). Shares over pairs are not independent
observations: n tokens make n (n - 1) / 2 of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from ideal_model.dynamics import as_activations

RESOLUTION = 1e-6


@dataclass(frozen=True)
class GapCheck:
    """What became of the gaps between pairs of tokens.

    Attributes:
        pairs: Pairs compared.
        smallest_ratio: Of gap after to gap before; NaN without pairs.
        shrunk: Share of pairs of which the gap shrank (ratio under 1), flipped ones included.
        flipped: Share of pairs that changed order.
        left_out: Pairs tied within the resolution, or without attention on their common prefix.
    """

    pairs: int
    smallest_ratio: float
    shrunk: float
    flipped: float
    left_out: int

    def __repr__(self) -> str:
        return (
            f"GapCheck: {self.pairs} pairs, smallest ratio {self.smallest_ratio:.6f}, "
            f"{100 * self.shrunk:.1f} % shrunk, {100 * self.flipped:.1f} % flipped, "
            f"{self.left_out} left out"
        )

    @property
    def kendall(self) -> float:
        """Kendall's tau between before and after, over the pairs compared."""
        return 1 - 2 * self.flipped


def check_gaps(
    before: Float[np.ndarray, " token"], after: Float[np.ndarray, " token"], resolution: float = RESOLUTION
) -> GapCheck:
    """What became of every pair's gap, tokens that saw the same keys.

    Args:
        before: Activations of the tokens of one sample.
        after: Of the same tokens, a layer later.
        resolution: Gaps up to this times the largest activation are ties, and a ratio shrank
            below 1 - resolution. The square root of the values' rounding is apt: 1e-6 for
            float64, 1e-3 for activations measured in float32.
    """
    before, after = as_activations(before), as_activations(after)
    rows, columns = np.tril_indices(len(before), -1)
    gaps, later = before[rows] - before[columns], after[rows] - after[columns]
    return _compare(gaps, later, float(np.abs([before, after]).max()), resolution)


def check_prefix_gaps(
    before: Float[np.ndarray, " token"],
    pattern: Float[np.ndarray, "head query key"],
    writes: Float[np.ndarray, "head key"],
    resolution: float = RESOLUTION,
) -> GapCheck:
    """The same under a causal mask: both queries restricted to their common prefix.

    Token i of a pair i > j gets the update it would have had from keys 0 ... j alone, its own
    attention on them renormalised.

    Args:
        before: Activations that the layer reads.
        pattern: Causal attention. Columns set to zero (sinks) are left out by renormalising.
        writes: What each head writes of the concept for a unit of attention on a key: gamma a_j
            in the idealised model, v . W_O W_V h_j in a real one.
        resolution: As for `check_gaps`.

    Raises:
        ValueError: The pattern looks ahead.
    """
    before = as_activations(before)
    updates = common_prefix_updates(pattern, writes)
    rows, columns = np.tril_indices(len(before), -1)
    later = before[rows] + updates[rows, columns]
    later -= before[columns] + updates[columns, columns]
    scale = max(float(np.abs(before).max()), float(np.abs(before + np.diag(updates)).max()))
    return _compare(before[rows] - before[columns], later, scale, resolution)


def common_prefix_updates(
    pattern: Float[np.ndarray, "head query key"], writes: Float[np.ndarray, "head key"]
) -> Float64[np.ndarray, "query last"]:
    """Each query's update from the keys up to `last` alone, attention renormalised on them.

    NaN where last > query (never seen), and where the prefix holds so little attention that the
    pattern's number format no longer resolves it.

    Raises:
        ValueError: The pattern looks ahead.
    """
    ahead = np.triu(np.ones(pattern.shape[1:], dtype=bool), 1)
    if (pattern[:, ahead] != 0).any():
        raise ValueError(
            "the pattern attends to later tokens: a common prefix is for causal attention; "
            "for tokens that all see the same keys use check_gaps."
        )
    # Below this, weights that matter are denormal and have lost digits.
    resolved = np.finfo(pattern.dtype).tiny / np.finfo(pattern.dtype).eps
    total = np.zeros(pattern.shape[1:])
    for weights, write in zip(pattern.astype(np.float64), writes, strict=True):
        mass = np.cumsum(weights, axis=1)
        seen = np.cumsum(weights * write, axis=1)
        total += np.divide(seen, mass, out=np.full_like(mass, np.nan), where=mass > resolved)
    total[ahead] = np.nan
    return total


def _compare(
    gaps: Float64[np.ndarray, " pair"], later: Float64[np.ndarray, " pair"], scale: float, resolution: float
) -> GapCheck:
    used = (np.abs(gaps) > resolution * scale) & np.isfinite(later)
    ratios = later[used] / gaps[used]
    left_out = int(len(gaps) - len(ratios))
    if not len(ratios):
        return GapCheck(0, np.nan, np.nan, np.nan, left_out)
    shrunk, flipped = np.mean(ratios < 1 - resolution), np.mean(ratios < 0)
    return GapCheck(len(ratios), float(ratios.min()), float(shrunk), float(flipped), left_out)
