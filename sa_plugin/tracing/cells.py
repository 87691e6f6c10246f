"""From a score table to the scores of one concept at one layer: what is in, what is out, and the cuts.

A `Columns` picks one column a concept from the table's units. At each layer `cuts` fixes threshold
and background quantiles on one split, `concept_scores` gathers what is measured on another, and
`binned` makes the densities that are drawn.

Densities are in deviations of the out-of-concept scores from their mean: scores of two layers share
no unit (a vector is fitted anew at each), deviations do. The joint bins of the overlap differ
between layers and concepts; small multiples need one axis, hence the second set, with equal bins of
a quarter deviation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin._face import face_methods
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.quantile import quantiles, tail_thresholds
from sa_plugin.tracing.measures import (
    OVERLAP_BINS,
    TAIL_LEVEL,
    ConceptScores,
    Cut,
    ScoreGroup,
    bin_of,
    joint_edges,
)

Out = Literal["negative", "all"]
_COMMON_EDGES: Float64[np.ndarray, " edge"] = np.arange(-40, 81) / 4.0


@face_methods
@dataclass(frozen=True, eq=False)
class Columns:
    """A score table reduced to one column a concept.

    Attributes:
        table: The scores.
        column: Column of each concept at each layer.
        out: Which tokens are out of concept.
    """

    table: ScoreTable
    column: Int[np.ndarray, "layer concept"]
    out: Out

    def scores(self, layer: int) -> Float[np.ndarray, "concept token"]:
        """Scores at one layer."""
        return np.ascontiguousarray(self.table.scores[:, layer, self.column[layer]].T)

    @cached_property
    def inside(self) -> Bool[np.ndarray, "concept token"]:
        """Labelled tokens."""
        return np.ascontiguousarray(self.table.tokens.labels.T)

    @cached_property
    def known(self) -> Bool[np.ndarray, "concept token"] | None:
        """Tokens whose label is known; None where all are."""
        known = self.table.tokens.known
        return None if known is None else np.ascontiguousarray(known.T)

    @cached_property
    def negatives(self) -> Bool[np.ndarray, "concept token"]:
        """Tokens of negative samples."""
        tokens = self.table.tokens
        found = np.ascontiguousarray(~tokens.sample_labels[tokens.sample_of].T)
        return found if self.known is None else found & self.known

    @property
    def outside(self) -> Bool[np.ndarray, "concept token"]:
        """Out-of-concept tokens."""
        if self.out == "negative":
            return self.negatives
        return ~self.inside if self.known is None else self.known & ~self.inside

    def maxima(self, scores: Float[np.ndarray, "concept token"]) -> Float[np.ndarray, "concept sample"]:
        """Highest score of each sample; -inf for one without kept tokens."""
        bounds = self.table.tokens.bounds
        top = np.full((len(scores), len(bounds) - 1), -np.inf, dtype=np.float32)
        # reduceat would give an empty sample its neighbour's first token.
        filled = np.flatnonzero(np.diff(bounds))
        if len(filled):
            top[:, filled] = np.maximum.reduceat(scores, bounds[filled], axis=1)
        return top


def cuts(columns: Columns, layer: int, delta: float) -> tuple[Cut, ...]:
    """Threshold at delta and background quantiles of every concept, at one layer.

    Concepts without in-concept tokens (of SAE latents: without active ones) have threshold +inf,
    those without out-of-concept tokens background +inf.
    """
    scores, negative = columns.scores(layer), ~columns.table.tokens.sample_labels.T
    inside = columns.inside
    if columns.table.bank.token.scoring == "latent":
        # Zero is no activation of a latent: a threshold of zero would be reached everywhere.
        inside = inside & (scores > 0)
    threshold = tail_thresholds(scores.T, inside.T, [delta], names=columns.table.tokens.concepts)[0]
    tokens = [_high(s[rows]) for s, rows in zip(scores, columns.outside, strict=True)]
    tops = columns.maxima(scores)
    maxima = [_high(t[n & np.isfinite(t)]) for t, n in zip(tops, negative, strict=True)]
    return tuple(map(Cut, threshold.tolist(), tokens, maxima))


def concept_scores(
    columns: Columns,
    layer: int,
    cut: Sequence[Cut],
    resamples: Resamples,
    frozen_sd: Float[np.ndarray, "layer concept"] | None = None,
) -> Iterator[ConceptScores]:
    """What is measured of each concept at a layer.

    Args:
        columns: Scores of the split that is measured.
        layer: Place of the layer.
        cut: Of each concept, fixed beforehand.
        resamples: Columns of weights over the samples.
        frozen_sd: Deviations to divide tail gaps by.
    """
    tokens = columns.table.tokens
    over_tokens = resamples.of(tokens.sample_of)
    scores = columns.scores(layer)
    tops = columns.maxima(scores)
    for k, (values, top) in enumerate(zip(scores, tops, strict=True)):
        positive = tokens.sample_labels[:, k]
        # Of a token whose label is unknown nobody can say whether its firing is right.
        known = slice(None) if columns.known is None else columns.known[k]
        yield ConceptScores(
            _group(values, columns.inside[k], over_tokens),
            _group(values, columns.outside[k], over_tokens),
            _group(values, columns.negatives[k], over_tokens),
            ScoreGroup(values[known], over_tokens.of(np.arange(len(values))[known])),
            columns.inside[k][known],
            _group(top, positive, resamples),
            _group(top, ~positive, resamples),
            cut[k],
            None if frozen_sd is None else float(frozen_sd[layer, k]),
        )


def _group(
    values: Float[np.ndarray, " row"], chosen: Bool[np.ndarray, " row"], resamples: Resamples
) -> ScoreGroup:
    return ScoreGroup(values[chosen], resamples.of(np.flatnonzero(chosen)))


def _high(values: Float[np.ndarray, " row"]) -> float:
    return float(quantiles(values, [TAIL_LEVEL])[0]) if len(values) else float("inf")


@dataclass(frozen=True, eq=False)
class Densities:
    """Binned densities of in- and out-of-concept scores, in deviations of `out` from its mean.

    Attributes:
        edges: Bin edges, one row for each layer and concept, or one row for all.
        in_concept, out_of_concept: Density in each bin; a row integrates to 1, less what lies
            beyond the edges.
    """

    edges: Float64[np.ndarray, "*each edge"]
    in_concept: Float64[np.ndarray, "layer concept bin"]
    out_of_concept: Float64[np.ndarray, "layer concept bin"]

    def __repr__(self) -> str:
        return f"Densities({self.in_concept.shape[-1]} bins, sd of out)"


class Binned(NamedTuple):
    """Densities of one concept at one layer, in and out, with joint edges and with `_COMMON_EDGES`."""

    edges: Float64[np.ndarray, " edge"]
    joint: Float64[np.ndarray, "2 bin"]
    common: Float64[np.ndarray, "2 common_bin"]


def binned(cell: ConceptScores) -> Binned:
    """Bin one concept at one layer; without spread in `out` everything is NaN."""
    inside, outside = cell.inside.values, cell.outside.values
    if not len(inside) or not len(outside) or outside.min() == outside.max():
        nan = [np.full((2, n), np.nan) for n in (OVERLAP_BINS, len(_COMMON_EDGES) - 1)]
        return Binned(np.full(OVERLAP_BINS + 1, np.nan), *nan)
    # One unit for both groups: deviations of what is out of concept.
    centre, sd = outside.mean(dtype=np.float64), outside.std(dtype=np.float64)
    groups = [(x.astype(np.float64) - centre) / sd for x in (inside, outside)]
    edges = joint_edges(*groups)
    return Binned(edges, *(np.stack([_density(x, e) for x in groups]) for e in (edges, _COMMON_EDGES)))


def densities_of(layers: Sequence[Sequence[Binned]]) -> tuple[Densities, Densities]:
    """All layers and concepts: with their joint edges, and on one axis cut to the bins that hold anything."""
    edges, joint, common = (
        np.array([[getattr(one, name) for one in row] for row in layers]) for name in Binned._fields
    )
    used = np.flatnonzero((np.nan_to_num(common) > 0).any(axis=(0, 1, 2)))
    first, last = (used[0], used[-1]) if len(used) else (0, len(_COMMON_EDGES) - 2)
    kept = common[..., first : last + 1]
    return (
        Densities(edges, joint[:, :, 0], joint[:, :, 1]),
        Densities(_COMMON_EDGES[first : last + 2], kept[:, :, 0], kept[:, :, 1]),
    )


def _density(
    values: Float[np.ndarray, " row"], edges: Float64[np.ndarray, " edge"]
) -> Float64[np.ndarray, " bin"]:
    """Share of the values in each bin over its width; values beyond the edges are in none."""
    within = values[(values >= edges[0]) & (values <= edges[-1])]
    counts = np.bincount(bin_of(within, edges), minlength=len(edges) - 1)
    shares: np.ndarray = counts / (len(values) * np.diff(edges))
    return shares
