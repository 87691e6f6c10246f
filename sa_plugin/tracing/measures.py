"""How far a concept's tail stands out at one layer.

`in` are scores of tokens labelled with the concept; `out` scores of the tokens of negative samples
(or of all unlabelled tokens); tokens whose label is unknown are in neither; q a high quantile of `out`
fixed beforehand; tau the threshold fixed beforehand at delta.

| measure | is |
|---|---|
| overlap | sum_b min(P_in(b), P_out(b)) over 50 bins that span in and out jointly |
| auroc | P(in > out) + P(in = out) / 2 over pairs of tokens |
| in_mass_at_fpr | P(in > q), a true-positive rate at the false-positive rate `realised_fpr` |
| realised_fpr | P(out > q); where q was fixed on another split it is not the .005 asked for |
| coverage, negative_coverage | share of positive (negative) samples with a token above q |
| coverage_at_maxima, negative_coverage_at_maxima | above a quantile of negative samples' maxima |
| tail_coverage, negative_tail_coverage | share of samples with a token at or above tau |
| precision | P(y = 1 given score >= tau) over all known tokens; NaN when none reaches tau |
| tail_gap | (Q_{1-delta}(in) - Q_.995(negatives)) / sd(negatives) |
| cohens_d | (mean in - mean out) / sqrt((var in + var out) / 2) |
| skewness_*, l_skewness_* | see `sa_plugin.statistics.shape` |
| mean_*, sd_* | of scores |

Sources: SuperActivators (arXiv 2512.05038) and its code, which takes the bins of the overlap from
`out` alone and so drops just the tail.

What they do not show. Coverage of positives alone means nothing: long negative samples reach q by
chance, hence the pairs. AUROC, overlap and d describe the bulk; a tail of 2 % hardly moves them.
The overlap of finite samples lies below that of their laws (with 300 tokens a group, about .8 where
the laws are the same); its interval covers sampling spread, not that bias.
The .995 quantile of maxima is near the largest with fewer than some 400 negative samples.
In-mass is no precision: with few positives most tokens above q may still be negative. A vector is
fitted anew at each layer, so scores of two layers share no unit; compare the measures without unit.
Tokens of one sample are not independent: intervals resample source documents.

Every function returns one value a column; column 0 is the data as they are, the others a resample each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.ranking import resampled_auroc
from sa_plugin.statistics.shape import resampled_l_skewness, resampled_quantiles, skewness_of_sums

OVERLAP_BINS = 50
TAIL_LEVEL = 0.995
ByColumn = Float64[np.ndarray, " column"]
"""One value on the data (column 0) and one a resample."""


class Cut(NamedTuple):
    """Scores fixed before measuring, of one concept at one layer.

    Attributes:
        threshold: tau.
        background: q over tokens.
        background_of_maxima: q over the maxima of negative samples.
    """

    threshold: float
    background: float
    background_of_maxima: float


@dataclass(frozen=True, eq=False)
class ScoreGroup:
    """Scores of some tokens or samples, with the draws over them."""

    values: Float[np.ndarray, " row"]
    resamples: Resamples

    def sums(self, weights: Float[np.ndarray, " row"] | Bool[np.ndarray, " row"]) -> ByColumn:
        """Sum of something over the rows of each draw."""
        r = self.resamples
        by_document = np.bincount(r.document, weights=weights, minlength=r.n_documents)
        drawn: np.ndarray = r.weights @ by_document.astype(np.float64)
        return drawn

    def share(self, chosen: Bool[np.ndarray, " row"]) -> ByColumn:
        """Share of rows that are chosen."""
        return ratio(self.sums(chosen), self.sums(np.ones(len(chosen))), empty=np.nan)


@dataclass(frozen=True, eq=False)
class ConceptScores:
    """What is measured of one concept at one layer.

    Attributes:
        inside, outside, negatives: Scores of in-concept tokens, of out-of-concept tokens, and of
            the tokens of negative samples.
        tokens, labels: Scores and labels of all tokens whose label is known.
        positive_maxima, negative_maxima: Highest score of each positive and negative sample.
        cut: Fixed beforehand.
        frozen_sd: Deviation of the negatives' scores to divide the gap by, or None for their own.
    """

    inside: ScoreGroup
    outside: ScoreGroup
    negatives: ScoreGroup
    tokens: ScoreGroup
    labels: Bool[np.ndarray, " token"]
    positive_maxima: ScoreGroup
    negative_maxima: ScoreGroup
    cut: Cut
    frozen_sd: float | None = None


def measures_of(
    cell: ConceptScores, delta: float, quantile_draws: int
) -> dict[str, Float64[np.ndarray, " _column"]]:
    """Every measure of a cell, on the data and on every draw.

    Args:
        cell: Scores and cuts of one concept at one layer.
        delta: Share of the in-concept tokens that count as tail.
        quantile_draws: Draws for the L-skewness, whose cost is tokens times draws.
    """
    inside, outside = _moments(cell.inside), _moments(cell.outside)
    pooled = np.sqrt((inside["sd"] ** 2 + outside["sd"] ** 2) / 2)
    return {
        "overlap": overlap(cell.inside, cell.outside),
        "auroc": _auroc(cell.inside, cell.outside),
        "in_mass_at_fpr": cell.inside.share(cell.inside.values > cell.cut.background),
        "realised_fpr": cell.outside.share(cell.outside.values > cell.cut.background),
        **_coverage(cell),
        "precision": _precision(cell),
        "tail_gap": _tail_gap(cell, delta),
        "cohens_d": ratio(inside["mean"] - outside["mean"], pooled, empty=np.nan),
        **{f"{name}_in": drawn for name, drawn in inside.items()},
        **{f"{name}_out": drawn for name, drawn in outside.items()},
        "l_skewness_in": _l_skewness(cell.inside, quantile_draws),
        "l_skewness_out": _l_skewness(cell.outside, quantile_draws),
    }


def joint_edges(
    inside: Float[np.ndarray, " in_row"], outside: Float[np.ndarray, " out_row"], bins: int = OVERLAP_BINS
) -> Float64[np.ndarray, " edge"]:
    """Edges of equal bins that span both groups."""
    low = float(min(inside.min(), outside.min()))
    high = float(max(inside.max(), outside.max()))
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


def bin_of(values: Float[np.ndarray, " row"], edges: Float64[np.ndarray, " edge"]) -> Int[np.ndarray, " row"]:
    """Bin of each value; the last bin holds its right edge, as in `numpy.histogram`."""
    place: np.ndarray = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    inside: np.ndarray = np.minimum(place, len(edges) - 2)
    return inside


def overlap(inside: ScoreGroup, outside: ScoreGroup, bins: int = OVERLAP_BINS) -> ByColumn:
    """Histogram intersection with joint edges, those of the data in every draw.

    Two samples of one law do not overlap fully, and resamples, whose tokens repeat, still less: the
    plain percentile interval may miss the estimate. The draws are shifted to have it as their mean.
    """
    if not len(inside.values) or not len(outside.values):
        return _undefined(inside)
    edges = joint_edges(inside.values, outside.values, bins)
    shares = [_binned(group, edges) for group in (inside, outside)]
    drawn: np.ndarray = np.minimum(*shares).sum(axis=1)
    # The resamples' mean lies below the data's own value: the bias is taken off, the spread stays.
    if len(drawn) > 1 and not np.isnan(drawn[1:]).all():
        drawn[1:] += drawn[0] - np.nanmean(drawn[1:])
    return drawn


def _binned(group: ScoreGroup, edges: Float64[np.ndarray, " edge"]) -> Float64[np.ndarray, "draw bin"]:
    bins, r = len(edges) - 1, group.resamples
    # Counts by document first: every resample is then one row of a matrix product.
    cell = r.document * bins + bin_of(group.values, edges)
    counts = np.bincount(cell, minlength=r.n_documents * bins).reshape(-1, bins)
    drawn = r.weights.astype(np.float64) @ counts.astype(np.float64)
    return ratio(drawn, drawn.sum(axis=1, keepdims=True), empty=np.nan)


def _auroc(inside: ScoreGroup, outside: ScoreGroup) -> ByColumn:
    """Chance that an in-concept token scores above an out-of-concept one."""
    scores = np.concatenate([inside.values, outside.values])
    labels = np.arange(len(scores)) < len(inside.values)
    a, b = inside.resamples, outside.resamples
    # Both groups come from the same draws of documents, so their weights are one matrix.
    both = replace(a, document=np.concatenate([a.document, b.document]))
    return resampled_auroc(scores, labels, both) if len(scores) else _undefined(inside)


def _precision(cell: ConceptScores) -> ByColumn:
    """Share of tokens at or above the threshold that are labelled."""
    fired = cell.tokens.values >= cell.cut.threshold
    return ratio(cell.tokens.sums(fired & cell.labels), cell.tokens.sums(fired), empty=np.nan)


def _tail_gap(cell: ConceptScores, delta: float) -> ByColumn:
    """Distance of the in-concept tail from the negatives' tail, in deviations of the negatives."""
    tail = resampled_quantiles(cell.inside.values, [1 - delta], cell.inside.resamples)[0]
    rest = resampled_quantiles(cell.negatives.values, [TAIL_LEVEL], cell.negatives.resamples)[0]
    sd = _moments(cell.negatives)["sd"] if cell.frozen_sd is None else np.asarray(cell.frozen_sd)
    return ratio(tail - rest, np.broadcast_to(sd, tail.shape), empty=np.nan)


def _moments(group: ScoreGroup) -> dict[str, ByColumn]:
    """Mean, standard deviation (divided by n) and skewness of every draw."""
    if not len(group.values):
        return dict.fromkeys(("mean", "sd", "skewness"), _undefined(group))
    # Sums of powers cancel badly far from zero; means and moments are shifted back afterwards.
    centre = float(group.values.mean(dtype=np.float64))
    x = group.values.astype(np.float64) - centre
    n, first, second, third = (group.sums(x**k) for k in range(4))
    mean = ratio(first, n, empty=np.nan)
    variance = np.maximum(ratio(second, n, empty=np.nan) - mean**2, 0.0)
    skew = skewness_of_sums(n, first, second, third)
    return {"mean": mean + centre, "sd": np.sqrt(variance), "skewness": skew}


def _l_skewness(group: ScoreGroup, draws: int) -> Float64[np.ndarray, " _column"]:
    return resampled_l_skewness(group.values, group.resamples.first(1 + draws))


def _coverage(cell: ConceptScores) -> dict[str, ByColumn]:
    above: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "coverage": lambda top: top > cell.cut.background,
        "coverage_at_maxima": lambda top: top > cell.cut.background_of_maxima,
        "tail_coverage": lambda top: top >= cell.cut.threshold,
    }
    shares = {}
    for name, reached in above.items():
        for prefix, maxima in (("", cell.positive_maxima), ("negative_", cell.negative_maxima)):
            shares[prefix + name] = maxima.share(reached(maxima.values))
    return shares


def _undefined(group: ScoreGroup) -> ByColumn:
    return np.full(group.resamples.draws, np.nan)
