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
the laws are the same); its interval covers sampling spread, not that bias, and misses the truth often.
The .995 quantile of maxima is near the largest with fewer than some 400 negative samples.
In-mass is no precision: with few positives most tokens above q may still be negative. A vector is
fitted anew at each layer, so scores of two layers share no unit; compare the measures without unit.
Tokens of one sample are not independent: intervals leave out source documents, and bootstrap draws of
documents stand behind the tail gap, whose quantiles are not smooth.

A measure is carried by the documents that have rows of its group, one of two groups by those of which
there are fewer. Functions of columns return one value a column; column 0 is the data as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin._face import face_methods
from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.confusion import exceeds, ratio, reaches
from sa_plugin.statistics.drawn import Drawn, scarcer
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.ranking import resampled_auroc
from sa_plugin.statistics.shape import resampled_l_skewness, resampled_quantiles, skewness_of_sums

OVERLAP_BINS = 50
TAIL_LEVEL = 0.995
TAILS = ("tail_gap", "coverage", "negative_coverage", "overlap")
"""What is measured along other vectors than a layer's own."""
ByColumn = Float64[np.ndarray, " column"]
"""One value on the data (column 0) and one for each document that is left out."""


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


@face_methods
@dataclass(frozen=True, eq=False)
class ScoreGroup:
    """Scores of some tokens or samples, with the weights of their documents."""

    values: Float[np.ndarray, " row"]
    resamples: Resamples

    def sums(self, weights: Float[np.ndarray, " row"] | Bool[np.ndarray, " row"]) -> ByColumn:
        """Sum of something over the rows of each column."""
        r = self.resamples
        by_document = np.bincount(r.document, weights=weights, minlength=r.units)
        drawn: np.ndarray = r.weights @ by_document.astype(np.float64)
        return drawn

    @cached_property
    def rows(self) -> Float64[np.ndarray, " document"]:
        """Number of rows of each document."""
        return self.resamples.rows()

    def share(self, chosen: Bool[np.ndarray, " row"]) -> Drawn:
        """Share of rows that are chosen."""
        share = ratio(self.sums(chosen), self.sums(np.ones(len(chosen))), empty=np.nan)
        return self.drawn(share, "share")

    def drawn(self, values: ByColumn, kind: Kind, other: ScoreGroup | None = None) -> Drawn:
        """A statistic of this group, or of this and another."""
        carried = self.rows if other is None else scarcer(self.rows, other.rows)
        return self.resamples.drawn(values, kind, carried)


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


def measures_of(cell: ConceptScores, delta: float) -> dict[str, Drawn]:
    """Every measure of a cell, with its columns.

    Args:
        cell: Scores and cuts of one concept at one layer.
        delta: Share of the in-concept tokens that count as tail.
    """
    a, b = cell.inside, cell.outside
    inside, outside = _moments(a), _moments(b)
    pooled = np.sqrt((inside["sd"] ** 2 + outside["sd"] ** 2) / 2)
    return {
        "overlap": a.drawn(overlap(a, b), "share", b),
        "auroc": a.drawn(_auroc(a, b), "share", b),
        "in_mass_at_fpr": a.share(exceeds(a.values, cell.cut.background)),
        "realised_fpr": b.share(exceeds(b.values, cell.cut.background)),
        **_coverage(cell),
        "precision": _precision(cell),
        "tail_gap": _tail_gap(cell, delta),
        "cohens_d": a.drawn(ratio(inside["mean"] - outside["mean"], pooled, empty=np.nan), "mean", b),
        **{f"{name}_in": a.drawn(values, "mean") for name, values in inside.items()},
        **{f"{name}_out": b.drawn(values, "mean") for name, values in outside.items()},
        "l_skewness_in": a.drawn(resampled_l_skewness(a.values, a.resamples), "difference"),
        "l_skewness_out": b.drawn(resampled_l_skewness(b.values, b.resamples), "difference"),
    }


def tails_of(cell: ConceptScores, delta: float) -> dict[str, Drawn]:
    """The measures of `TAILS` alone, with their columns.

    Args:
        cell: Scores and cuts of one concept at one layer.
        delta: Share of the in-concept tokens that count as tail.
    """
    a, b, coverage = cell.inside, cell.outside, _coverage(cell)
    found = {"tail_gap": _tail_gap(cell, delta), "overlap": a.drawn(overlap(a, b), "share", b), **coverage}
    return {name: found[name] for name in TAILS}


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
    """Histogram intersection with joint edges, those of the data in every column."""
    if not len(inside.values) or not len(outside.values):
        return _undefined(inside)
    edges = joint_edges(inside.values, outside.values, bins)
    shares = [_binned(group, edges) for group in (inside, outside)]
    return np.asarray(np.minimum(*shares).sum(axis=1))


def _binned(group: ScoreGroup, edges: Float64[np.ndarray, " edge"]) -> Float64[np.ndarray, "column bin"]:
    bins, r = len(edges) - 1, group.resamples
    # Counts by document first: every column is then one row of a matrix product.
    cell = r.document * bins + bin_of(group.values, edges)
    counts = np.bincount(cell, minlength=r.units * bins).reshape(-1, bins)
    drawn = r.weights.astype(np.float64) @ counts.astype(np.float64)
    return ratio(drawn, drawn.sum(axis=1, keepdims=True), empty=np.nan)


def _auroc(inside: ScoreGroup, outside: ScoreGroup) -> ByColumn:
    """Chance that an in-concept token scores above an out-of-concept one."""
    scores = np.concatenate([inside.values, outside.values])
    labels = np.arange(len(scores)) < len(inside.values)
    a, b = inside.resamples, outside.resamples
    # Both groups are of the same documents, so their weights are one matrix.
    both = replace(a, document=np.concatenate([a.document, b.document]))
    return resampled_auroc(scores, labels, both) if len(scores) else _undefined(inside)


def _precision(cell: ConceptScores) -> Drawn:
    """Share of tokens at or above the threshold that are labelled."""
    fired = reaches(cell.tokens.values, cell.cut.threshold)
    resamples = cell.tokens.resamples.of(np.flatnonzero(fired))
    return ScoreGroup(cell.tokens.values[fired], resamples).share(cell.labels[fired])


def _tail_gap(cell: ConceptScores, delta: float) -> Drawn:
    """Distance of the in-concept tail from the negatives' tail, in deviations of the negatives."""
    # Draws come from one seed: both groups, and their deviation, are of the same ones.
    inside, negatives = (
        replace(group, resamples=group.resamples.bootstrapped) for group in (cell.inside, cell.negatives)
    )
    tail = resampled_quantiles(inside.values, [1 - delta], inside.resamples)[0]
    rest = resampled_quantiles(negatives.values, [TAIL_LEVEL], negatives.resamples)[0]
    sd = _moments(negatives)["sd"] if cell.frozen_sd is None else np.asarray(cell.frozen_sd)
    gap = ratio(tail - rest, np.broadcast_to(sd, tail.shape), empty=np.nan)
    return inside.drawn(gap, "quantile", negatives)


def _moments(group: ScoreGroup) -> dict[str, ByColumn]:
    """Mean, standard deviation (divided by n) and skewness of every column."""
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


def _coverage(cell: ConceptScores) -> dict[str, Drawn]:
    above: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "coverage": lambda top: exceeds(top, cell.cut.background),
        "coverage_at_maxima": lambda top: exceeds(top, cell.cut.background_of_maxima),
        "tail_coverage": lambda top: reaches(top, cell.cut.threshold),
    }
    shares = {}
    for name, reached in above.items():
        for prefix, maxima in (("", cell.positive_maxima), ("negative_", cell.negative_maxima)):
            shares[prefix + name] = maxima.share(reached(maxima.values))
    return shares


def _undefined(group: ScoreGroup) -> ByColumn:
    return np.full(group.resamples.columns, np.nan)
